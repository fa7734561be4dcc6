// Measuring a model's inference: prompts, decoding, state, at chosen contexts.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "model/model.h"

namespace pronghorn::lab {

struct Spread {
  double median = 0, min = 0, max = 0;
};

Spread spread_of(std::vector<double> values);

struct BenchOptions {
  int64_t prompt = 512;
  int64_t generate = 64;
  int64_t batch = 1;
  int repeat = 3;
  Precision precision = Precision::bf16;
};

struct BenchResult {
  Spread prefill;  // tokens a second, all sequences together
  Spread decode;
  int64_t state_bytes = 0;          // of one sequence, after the prompt
  std::vector<double> kept_shares;  // Model::measured_shares() of one sequence, at the end
};

// Reads `batch` prompts and generates from each, `repeat` times after a warm-up.
BenchResult bench_model(const Model& model, const BenchOptions& options);

struct ContextPoint {
  int64_t context = 0;
  double prompt_tokens_per_second = 0;  // for a whole prompt of this length
  double decode_tokens_per_second = 0;  // one sequence, right after it
  int64_t state_bytes = 0;
};

struct ContextOptions {
  Precision precision = Precision::bf16;
  // Longest time that reading up to one context may be expected to take; longer ones are left out.
  double max_seconds = 60;
};

// One sequence that grows through the `contexts` (ascending), measured at each. text: tokens to
// fill them with, repeated as needed.
std::vector<ContextPoint> measure_contexts(const Model& model, std::span<const int64_t> contexts,
                                           std::span<const int32_t> text,
                                           const ContextOptions& options);

}  // namespace pronghorn::lab
