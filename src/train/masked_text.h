// MaskedText: sequences some tokens of which are masked, and the loss of a diffusion model on them.
//
// Training (MDLM, arXiv 2406.07524, equation 8; LLaDA, 2502.09992, equation 3): each token is
// masked with probability t, and the loss of a masked one counts 1 / t times. Its expectation over
// t and over what is masked is an upper bound of the negative log-likelihood. With t in blocks
// (arXiv 2503.09573, section 3.1) that holds for each block, given those before it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/model.h"

namespace pronghorn {

// For each token of a sequence: 0 if it is left as it is, else how many times the loss of the
// masked one counts.
using MaskWeights = std::vector<float>;

// Of training example `index`, a function of these arguments alone. t is drawn from (0, 1) for each
// sequence, or each block, evenly over the `sequences` examples of a step (MDLM, section 3.4 and
// appendix C.1); t = 1 where blocks are single tokens. With DiffusionConfig::shift the first token
// is never masked: nothing before it scores it.
MaskWeights training_mask(const DiffusionConfig& config, uint64_t seed, uint64_t index,
                          int64_t sequences, int64_t length);

// Of sample number `sample` of the bound: of the m tokens after the first (of each block) any
// number l from 1 to m is masked, evenly over the samples, with weight m / l: less variance than
// with probabilities (LLaDA, equation 6). The first token of the sequence is given.
MaskWeights bound_mask(const DiffusionConfig& config, uint64_t sample, int64_t length);

class MaskedText {
 public:
  explicit MaskedText(const DiffusionConfig& config) : config_(config) {}

  void add(std::span<const int32_t> tokens, const MaskWeights& weights);

  // Reads the sequences and scores what is masked: as Model::cross_entropy().
  CrossEntropy loss(const Model& model, const Context& context, double gradient_scale,
                    double z_loss_weight, const ForwardObserver& observer = {}) const;

 private:
  DiffusionConfig config_;
  Batch batch_;
  std::vector<int32_t> rows_, targets_;  // of what is masked
  std::vector<float> weights_;
};

}  // namespace pronghorn
