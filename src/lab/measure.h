// Measuring a model's inference: prompts, decoding, state, at chosen contexts.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "decode/generator.h"
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
  CacheOptions cache;  // of the states
  // One per sequence, of prompt + generate tokens, fed one by one after the prompt. Empty:
  // prompts are random, and decoding goes on with the likeliest token.
  std::vector<std::vector<int32_t>> texts;
};

struct BenchResult {
  Spread prefill;  // tokens a second, all sequences together
  Spread decode;
  int64_t state_bytes = 0;          // of one sequence, after the prompt
  std::vector<double> kept_shares;  // Model::measured_shares() of one sequence, at the end
};

// The prompts of `batch` sequences: the beginnings of `texts`, or random tokens.
std::vector<std::vector<int32_t>> bench_prompts(const Model& model, const BenchOptions& options);

// Reads one prompt into each state, all of one length, in forwards of at most kPromptPiece tokens;
// returns the scores after each.
Tensor read_prompts(const Model& model, const Context& context, std::vector<SequenceState>& states,
                    const std::vector<std::vector<int32_t>>& prompts);

// One token for every state: the next of its text, or the likeliest by `logits` if there are no
// texts. Returns the scores after it.
Tensor decode_step(const Model& model, const Context& context, std::vector<SequenceState>& states,
                   const Tensor& logits, std::span<const std::vector<int32_t>> texts);

// Reads `batch` prompts and generates from each, `repeat` times after a warm-up.
BenchResult bench_model(const Model& model, const BenchOptions& options);

struct DraftBenchOptions {
  int64_t generate = 128;  // tokens for each prompt
  int64_t batch = 1;       // prompts together
  int repeat = 3;          // measured runs, after one that warms up; 0: that one alone
  Precision precision = Precision::f32;
  CacheOptions cache;  // of the states
  double temperature = 0;
  std::vector<std::string> stop;  // a text ends before the first of these
  SpeculationOptions speculation;
};

// One way of decoding the same texts.
struct DraftBenchRow {
  std::string drafter;  // empty: plain
  Spread tokens_per_second;
  double speed_up = 1;  // over plain decoding: the median of the runs
  bool same_text = true;
  SpeculationStats stats;  // of the last run
};

// Continues every prompt on its own with each drafter in turn, plain decoding first, and again
// `repeat` times: what disturbs the machine disturbs all of them. A drafter keeps what it has
// learnt from one prompt to the next.
std::vector<DraftBenchRow> bench_drafters(const Model& model, const Tokenizer& tokenizer,
                                          std::span<const std::vector<int32_t>> prompts,
                                          std::span<const std::string> drafters,
                                          const DraftBenchOptions& options);

struct ContextPoint {
  int64_t context = 0;
  double prompt_tokens_per_second = 0;  // for a whole prompt of this length
  double decode_tokens_per_second = 0;  // one sequence, right after it
  int64_t state_bytes = 0;
};

struct ContextOptions {
  Precision precision = Precision::bf16;
  // Longest time that reading up to one context may be expected to take; longer ones are omitted.
  double max_seconds = 60;
};

// One sequence that grows through the `contexts` (ascending), measured at each. text: tokens to
// fill them with, repeated as needed.
std::vector<ContextPoint> measure_contexts(const Model& model, std::span<const int64_t> contexts,
                                           std::span<const int32_t> text,
                                           const ContextOptions& options);

}  // namespace pronghorn::lab
