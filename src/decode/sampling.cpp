#include "decode/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/random.h"

namespace pronghorn {
namespace {

constexpr uint64_t kSamplingStream = stream_id("sampling");

double gumbel(uint64_t seed, int64_t position, int32_t token) {
  const uint64_t counter = static_cast<uint64_t>(position) << 32 | static_cast<uint32_t>(token);
  // (0, 1): half a step above 0 keeps the logarithm finite.
  const double u = unit_interval(philox(seed, counter, kSamplingStream)) + 0x1.0p-54;
  return -std::log(-std::log(u));
}

struct Candidate {
  int32_t token;
  double score;
};

bool likelier(const Candidate& a, const Candidate& b) {
  return a.score != b.score ? a.score > b.score : a.token < b.token;
}

// Drops all but the likeliest tokens whose probabilities first add up to top_p.
void restrict_to_top_p(std::vector<Candidate>& candidates, double top_p) {
  std::sort(candidates.begin(), candidates.end(), likelier);
  const double largest = candidates.front().score;
  double total = 0;
  for (const Candidate& c : candidates) total += std::exp(c.score - largest);
  double sum = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    sum += std::exp(candidates[i].score - largest);
    if (sum >= top_p * total) {
      candidates.resize(i + 1);
      return;
    }
  }
}

}  // namespace

void check(const SamplingOptions& options) {
  const auto refuse = [](const char* name, double value, const char* allowed) {
    throw UsageError(name, fmt::format("{} is out of range", value), allowed);
  };
  if (!(options.temperature >= 0)) refuse("--temperature", options.temperature, "0 or more");
  if (options.top_k < 0) refuse("--top-k", static_cast<double>(options.top_k), "0 or more");
  if (!(options.top_p > 0 && options.top_p <= 1)) refuse("--top-p", options.top_p, "above 0, to 1");
  if (!(options.min_p >= 0 && options.min_p <= 1)) refuse("--min-p", options.min_p, "0 to 1");
  if (!(options.repetition_penalty > 0)) {
    refuse("--repetition-penalty", options.repetition_penalty, "above 0");
  }
}

int32_t sample(std::span<const float> scores, const SamplingOptions& options,
               std::span<const int32_t> recent, int64_t position) {
  require(!scores.empty(), "sampling", "no scores");
  std::vector<Candidate> candidates(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    require(!std::isnan(scores[i]), "sampling",
            "the score of token {} is not a number: the model's weights are damaged", i);
    candidates[i] = {static_cast<int32_t>(i), static_cast<double>(scores[i])};
  }
  if (options.repetition_penalty != 1) {
    const auto window = std::min<size_t>(
        recent.size(), static_cast<size_t>(std::max<int64_t>(0, options.repetition_window)));
    std::vector<int32_t> seen(recent.end() - static_cast<int64_t>(window), recent.end());
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    for (const int32_t token : seen) {
      if (token < 0 || token >= static_cast<int32_t>(scores.size())) continue;
      double& score = candidates[static_cast<size_t>(token)].score;
      score = score > 0 ? score / options.repetition_penalty : score * options.repetition_penalty;
    }
  }
  if (options.temperature == 0) {
    return std::min_element(candidates.begin(), candidates.end(), likelier)->token;
  }
  // Relative to the largest, so that the smallest temperatures do not overflow.
  const double largest = std::min_element(candidates.begin(), candidates.end(), likelier)->score;
  for (Candidate& c : candidates) {
    c.score = c.score == largest ? 0 : (c.score - largest) / options.temperature;
  }
  if (options.top_k > 0 && options.top_k < static_cast<int64_t>(candidates.size())) {
    std::nth_element(candidates.begin(), candidates.begin() + options.top_k - 1, candidates.end(),
                     likelier);
    candidates.resize(static_cast<size_t>(options.top_k));
  }
  if (options.min_p > 0) {
    const double least = std::log(options.min_p);  // the likeliest has 0
    std::erase_if(candidates, [&](const Candidate& c) { return c.score < least; });
  }
  if (options.top_p < 1) restrict_to_top_p(candidates, options.top_p);
  for (Candidate& c : candidates) c.score += gumbel(options.seed, position, c.token);
  return std::min_element(candidates.begin(), candidates.end(), likelier)->token;
}

}  // namespace pronghorn
