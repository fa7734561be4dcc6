// A model that fills in masked tokens instead of predicting the next: "diffusion" of a
// configuration.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>

#include "formats/json.h"
#include "tensor/batch.h"

namespace pronghorn {

struct ModelConfig;

// Masked diffusion (MDLM, arXiv 2406.07524; LLaDA, 2502.09992): the model is given a text some
// tokens of which are masked, sees it both ways, and scores what is masked.
struct DiffusionConfig {
  // Stands for a token that is masked, and is never written; -1: decided with the vocabulary.
  int64_t mask_token = -1;
  // Tokens of a block (block diffusion, arXiv 2503.09573): a row sees its own block and those
  // before it. 0: the whole text is one.
  int64_t block = 0;
  // The scores of a row are of the token after it, as in the autoregressive model that it was made
  // of (Dream, arXiv 2508.15487, section 3.2); those of the first row are of the first token too.
  bool shift = false;
  // A mixer that cannot see later rows runs once more from the end to the beginning, and both
  // results are added: with weights of its own for that direction, or with the same.
  bool shared_directions = false;
};

// Throws Error for what ConfigReader refuses. vocab_size: 0 if it is not yet known; the default of
// mask_token is its last.
DiffusionConfig read_diffusion(ConfigReader reader, int64_t vocab_size);
nlohmann::json write_diffusion(const DiffusionConfig& config);

// Throws Error for parts of a model that cannot see both ways. reader: of the model.
void check_diffusion(const ModelConfig& config, const ConfigReader& reader);

// Gives a model that is to be trained the vocabulary of its texts: `tokens`, and a mask token after
// them if it needs one and has none.
void set_vocabulary(ModelConfig& config, int64_t tokens);

// The batch with the masks of such a model in place of causal ones; others stay. Throws Error for
// token trees, for states of a model that sees whole texts, and for segments that do not begin
// where a block does.
CheckedBatch with_masks(const CheckedBatch& batch, const DiffusionConfig& config);

}  // namespace pronghorn
