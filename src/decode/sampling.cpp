#include "decode/sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <numeric>

#include "base/error.h"
#include "base/random.h"

namespace pronghorn {
namespace {

constexpr uint64_t kSamplingStream = stream_id("sampling");

uint64_t noise_bits(uint64_t seed, int64_t position, int32_t token) {
  const uint64_t counter = static_cast<uint64_t>(position) << 32 | static_cast<uint32_t>(token);
  return philox(seed, counter, kSamplingStream);
}

double gumbel(uint64_t bits) {
  // (0, 1): half a step above 0 keeps the logarithm finite.
  const double u = unit_interval(bits) + 0x1.0p-54;
  return -std::log(-std::log(u));
}

// No less than gumbel(bits), without a logarithm: -ln(-ln u) <= -ln(1 - u), and 1 - u is at least
// a power of two that the leading bits tell.
double gumbel_bound(uint64_t bits) {
  constexpr double kRounding = 1e-9;
  const uint64_t below_one = ~bits >> 11;
  return (54 - std::bit_width(below_one)) * std::numbers::ln2 + kRounding;
}

struct Candidate {
  int32_t token;
  double score;
};

bool likelier(const Candidate& a, const Candidate& b) {
  return a.score != b.score ? a.score > b.score : a.token < b.token;
}

[[noreturn]] void refuse_nan(std::span<const float> scores) {
  const auto bad = std::find_if(scores.begin(), scores.end(), [](float s) { return s != s; });
  throw Error("sampling", fmt::format("the score of token {} is not a number: the model's weights "
                                      "are damaged",
                                      bad - scores.begin()));
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

void check_sampling(const SamplingOptions& options) {
  const auto refuse = [](const char* name, double value, const char* allowed) {
    throw UsageError(name, fmt::format("{} is out of range", value), allowed);
  };
  if (!(options.temperature >= 0)) refuse("temperature", options.temperature, "0 or more");
  if (options.top_k < 0) refuse("top_k", static_cast<double>(options.top_k), "0 or more");
  if (!(options.top_p > 0 && options.top_p <= 1)) refuse("top_p", options.top_p, "above 0, to 1");
  if (!(options.min_p >= 0 && options.min_p <= 1)) refuse("min_p", options.min_p, "0 to 1");
  if (!(options.repetition_penalty > 0)) {
    refuse("repetition_penalty", options.repetition_penalty, "above 0");
  }
  if (!std::isfinite(options.frequency_penalty)) {
    refuse("frequency_penalty", options.frequency_penalty, "a number");
  }
  if (!std::isfinite(options.presence_penalty)) {
    refuse("presence_penalty", options.presence_penalty, "a number");
  }
  for (const auto& [token, bias] : options.logit_bias) {
    if (token < 0) refuse("logit_bias", token, "ids of tokens");
    if (std::isnan(bias) || bias == INFINITY) refuse("logit_bias", bias, "a number or -infinity");
  }
}

namespace {

[[noreturn]] void refuse_all() {
  throw Error("sampling", "no token may be written here",
              "the grammar, or the bias of scores, rules all of them out");
}

// The likeliest token of scores that nothing changes; ties go to the lower id.
int32_t greedy(std::span<const float> scores) {
  size_t best = 0;
  bool numbers = true;
  for (size_t i = 0; i < scores.size(); ++i) {
    numbers &= scores[i] == scores[i];
    if (scores[i] > scores[best]) best = i;
  }
  if (!numbers) refuse_nan(scores);
  return static_cast<int32_t>(best);
}

// The score of a token, if it is a candidate. Candidates are in the order of their tokens.
double* score_of(std::vector<Candidate>& candidates, int32_t token) {
  const auto index = static_cast<size_t>(token);
  if (index < candidates.size() && candidates[index].token == token)
    return &candidates[index].score;
  const auto found = std::ranges::lower_bound(candidates, token, {}, &Candidate::token);
  return found != candidates.end() && found->token == token ? &found->score : nullptr;
}

// Calls change(score, times) for each token among the last `count` of `recent`.
template <typename Change>
void for_each_seen(std::vector<Candidate>& candidates, std::span<const int32_t> recent,
                   int64_t count, const Change& change) {
  const std::span<const int32_t> last =
      recent.last(static_cast<size_t>(std::clamp<int64_t>(count, 0, std::ssize(recent))));
  std::vector<int32_t> seen(last.begin(), last.end());
  std::sort(seen.begin(), seen.end());
  for (auto at = seen.begin(); at != seen.end();) {
    const auto next = std::upper_bound(at, seen.end(), *at);
    if (double* score = score_of(candidates, *at)) change(*score, static_cast<double>(next - at));
    at = next;
  }
}

// The scores with bias and penalties.
std::vector<Candidate> penalised(std::span<const float> scores, const SamplingOptions& options,
                                 std::span<const int32_t> recent, int64_t position,
                                 const TokenMask* allowed) {
  std::vector<Candidate> candidates;
  candidates.reserve(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    if (std::isnan(scores[i])) refuse_nan(scores);
    const auto token = static_cast<int32_t>(i);
    if (allowed != nullptr && !allowed->allows(token)) continue;
    candidates.push_back({token, static_cast<double>(scores[i])});
  }
  for (const auto& [token, bias] : options.logit_bias) {
    if (double* score = score_of(candidates, token)) *score += static_cast<double>(bias);
  }
  if (allowed != nullptr) {
    std::erase_if(candidates, [](const Candidate& c) { return c.score == -INFINITY; });
  }
  if (options.repetition_penalty != 1) {
    for_each_seen(candidates, recent, options.repetition_window, [&](double& score, double) {
      score = score > 0 ? score / options.repetition_penalty : score * options.repetition_penalty;
    });
  }
  if (options.frequency_penalty != 0 || options.presence_penalty != 0) {
    for_each_seen(candidates, recent, position - options.penalty_start,
                  [&](double& score, double times) {
                    score -= times * options.frequency_penalty + options.presence_penalty;
                  });
  }
  return candidates;
}

// Tokens that may be drawn (only where `allowed` is given there may be none), with scores relative
// to the likeliest's, in units of the temperature (at temperature 0: as bias and penalties leave
// them, all of them).
std::vector<Candidate> candidates_of(std::span<const float> scores, const SamplingOptions& options,
                                     std::span<const int32_t> recent, int64_t position,
                                     const TokenMask* allowed) {
  std::vector<Candidate> candidates = penalised(scores, options, recent, position, allowed);
  if (options.temperature == 0 || candidates.empty()) return candidates;
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
  return candidates;
}

}  // namespace

double TokenDistribution::probability(int32_t token) const {
  const auto found = std::lower_bound(tokens.begin(), tokens.end(), token);
  if (found == tokens.end() || *found != token) return 0;
  return probabilities[static_cast<size_t>(found - tokens.begin())];
}

int32_t TokenDistribution::draw(double u) const {
  require(!tokens.empty(), "sampling", "no token can be drawn");
  double sum = 0;
  size_t last = 0;  // with a probability above 0: what rounding leaves of the sum is its own
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (probabilities[i] > 0) last = i;
    sum += probabilities[i];
    if (u < sum) return tokens[i];
  }
  return tokens[last];
}

TokenDistribution token_distribution(std::span<const float> scores, const SamplingOptions& options,
                                     std::span<const int32_t> recent, int64_t position,
                                     const TokenMask* allowed) {
  require(!scores.empty(), "sampling", "no scores");
  if (options.temperature == 0) {
    const std::vector<int32_t> best = sample_ranked(scores, options, recent, position, 1, allowed);
    return {best, std::vector<double>(best.size(), 1.0)};
  }
  std::vector<Candidate> candidates = candidates_of(scores, options, recent, position, allowed);
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  TokenDistribution distribution;
  double total = 0;
  for (const Candidate& c : candidates) {
    distribution.tokens.push_back(c.token);
    distribution.probabilities.push_back(std::exp(c.score));
    total += distribution.probabilities.back();
  }
  for (double& probability : distribution.probabilities) probability /= total;
  return distribution;
}

std::vector<int32_t> sample_ranked(std::span<const float> scores, const SamplingOptions& options,
                                   std::span<const int32_t> recent, int64_t position, int64_t count,
                                   const TokenMask* allowed) {
  require(!scores.empty() && count > 0, "sampling", "{} tokens wanted of {} scores", count,
          scores.size());
  if (count == 1 && options.temperature == 0 && !options.looks_back() &&
      options.logit_bias.empty() && allowed == nullptr) {
    return {greedy(scores)};
  }
  std::vector<Candidate> candidates = candidates_of(scores, options, recent, position, allowed);
  if (candidates.empty()) return {};
  std::vector<Candidate> best;  // sorted; at most `count`
  // The likeliest first: then most others need no logarithm to be ruled out.
  std::iter_swap(candidates.begin(),
                 std::min_element(candidates.begin(), candidates.end(), likelier));
  const bool noisy = options.temperature != 0;
  const auto wanted = static_cast<size_t>(count);
  for (Candidate& c : candidates) {
    if (noisy) {
      const uint64_t bits = noise_bits(options.seed, position, c.token);
      if (best.size() == wanted && c.score + gumbel_bound(bits) < best.back().score) continue;
      c.score += gumbel(bits);
    }
    if (best.size() == wanted && !likelier(c, best.back())) continue;
    best.insert(std::upper_bound(best.begin(), best.end(), c, likelier), c);
    if (best.size() > wanted) best.pop_back();
  }
  std::vector<int32_t> tokens;
  for (const Candidate& c : best) tokens.push_back(c.token);
  return tokens;
}

int32_t sample(std::span<const float> scores, const SamplingOptions& options,
               std::span<const int32_t> recent, int64_t position, const TokenMask* allowed) {
  const std::vector<int32_t> best = sample_ranked(scores, options, recent, position, 1, allowed);
  if (best.empty()) refuse_all();
  return best.front();
}

LogProbabilities::LogProbabilities(std::span<const float> scores)
    : scores_(scores), largest_(*std::max_element(scores.begin(), scores.end())) {
  double total = 0;
  for (const float score : scores) total += std::exp(static_cast<double>(score) - largest_);
  log_total_ = std::log(total);
}

WrittenToken written_token(std::span<const float> scores, int32_t token, int64_t likeliest) {
  require(token >= 0 && token < std::ssize(scores), "sampling", "token {} of {} scores", token,
          scores.size());
  const LogProbabilities all(scores);
  const auto log_probability = [&](int32_t id) { return static_cast<float>(all(id)); };
  WrittenToken written{token, log_probability(token), {}};
  if (likeliest <= 0) return written;
  std::vector<int32_t> best(scores.size());
  std::iota(best.begin(), best.end(), 0);
  const auto count = std::min<int64_t>(likeliest, std::ssize(scores));
  std::partial_sort(best.begin(), best.begin() + count, best.end(), [&](int32_t a, int32_t b) {
    const float x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  for (int64_t i = 0; i < count; ++i) {
    const int32_t id = best[static_cast<size_t>(i)];
    written.likeliest.push_back({id, log_probability(id)});
  }
  return written;
}

}  // namespace pronghorn
