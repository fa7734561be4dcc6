// Writing with a diffusion model: masked places are filled in, part after part from left to right.
//
// A model that sees texts whole is given the text and as many masked tokens as are to be written;
// parts of it are filled in one after the other (LLaDA, arXiv 2502.09992, appendix A.5). One with
// blocks fills in a block at a time and keeps the keys and values of finished ones, which are exact
// (BD3-LM, arXiv 2503.09573, section 3.2).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "decode/canvas.h"
#include "decode/unmasking.h"
#include "model/diffusion_config.h"

namespace pronghorn {

struct DiffusionOptions {
  int64_t steps = 0;  // of the model for a part; 0: as many as it has masked tokens
  // Tokens of a part; 0: the model's blocks, or kPart. A model with blocks takes no other.
  int64_t part = 0;
  // Above 0: each step takes all tokens that are at least so probable, and one at least; then steps
  // are as many as that needs.
  double threshold = 0;
  UnmaskOrder order = UnmaskOrder::confidence;
  CanvasCache cache = CanvasCache::none;

  static constexpr int64_t kPart = 32;
  bool operator==(const DiffusionOptions&) const = default;
};

// Throws UsageError for values out of range.
void check_diffusion_options(const DiffusionOptions& options, const DiffusionConfig& model);

// How a part of a canvas is filled in.
struct Filling {
  const Model& model;
  const DiffusionOptions& options;
  std::function<const SamplingOptions&(int64_t place)> sampling = {};  // of a place of the canvas
  std::span<const int32_t> before = {};  // tokens before the canvas, for penalties
  int64_t first = 0;                     // position of the canvas' first token in the text
  // Called for each place that is filled in, with the model's scores of it. May be empty.
  std::function<void(int64_t place, std::span<const float> scores)> on_token = {};
  // Called after each step; false leaves the rest masked. May be empty.
  std::function<bool()> on_step = {};
};

// Fills in the masked places begin ... end - 1 of `canvas`. False if on_step has ended it.
bool fill(const Filling& filling, CanvasReader& reader, std::span<int32_t> canvas, int64_t begin,
          int64_t end);

struct Generated;
struct Generation;
class Tokenizer;

// generate() with a diffusion model, one text after the other. A text may be empty, unless the
// model's scores are shifted. Throws Error for that, and for a prompt with masked tokens.
std::vector<Generated> generate_by_diffusion(const Model& model, const Tokenizer& tokenizer,
                                             std::span<const Generation> generations);

}  // namespace pronghorn
