// What the tests of whole models share: tokens, forwards that return logits, and comparisons.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cctype>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "base/random.h"
#include "model/model.h"

namespace pronghorn::testing_support {

// Fit for the name of a test.
inline std::string test_name(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return std::isalnum(c) == 0; }, '_');
  return text;
}

inline std::vector<int32_t> random_tokens(int64_t count, int64_t vocab_size, uint64_t seed) {
  Random random(seed, "tokens");
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(vocab_size))));
  }
  return tokens;
}

// The logits of all rows of a batch.
inline std::vector<float> run(const Model& model, const Batch& batch, Precision precision) {
  Context context;
  context.precision = precision;
  const Tensor logits = model.logits(context, model.forward(context, batch));
  return {logits.values().begin(), logits.values().end()};
}

// Continues `state` with tokens in the given steps, from the first of `tokens`; the logits of all.
inline std::vector<float> decode(const Model& model, SequenceState& state,
                                 std::span<const int32_t> tokens, std::span<const int64_t> steps,
                                 Precision precision = Precision::f32) {
  std::vector<float> logits;
  for (const int64_t step : steps) {
    const auto count = static_cast<size_t>(step);
    const auto part = run(model, continue_sequence(state, tokens.first(count)), precision);
    logits.insert(logits.end(), part.begin(), part.end());
    tokens = tokens.subspan(count);
  }
  return logits;
}

// Empty if all bits are the same, else what the first difference is.
inline std::string bit_difference(std::span<const float> actual, std::span<const float> expected) {
  if (actual.size() != expected.size()) {
    return fmt::format("{} values where {} were expected", actual.size(), expected.size());
  }
  size_t different = 0, first = 0;
  for (size_t i = actual.size(); i-- > 0;) {
    if (std::bit_cast<uint32_t>(actual[i]) != std::bit_cast<uint32_t>(expected[i])) {
      first = i;
      ++different;
    }
  }
  if (different == 0) return {};
  return fmt::format("{} of {} values differ, the first at {}: {:.9g} where {:.9g} was expected",
                     different, actual.size(), first, actual[first], expected[first]);
}

// Largest difference as a share of the largest value expected; infinite where a number is not
// finite or sizes differ.
inline double relative_difference(std::span<const float> actual, std::span<const float> expected) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  if (actual.size() != expected.size() || expected.empty()) return kInfinite;
  double difference = 0, largest = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (!std::isfinite(actual[i])) return kInfinite;
    difference = std::max(difference, std::fabs(double{actual[i]} - double{expected[i]}));
    largest = std::max(largest, std::fabs(double{expected[i]}));
  }
  return difference / largest;
}

}  // namespace pronghorn::testing_support
