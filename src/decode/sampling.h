// From scores to a token: greedy, or sampled with the usual restrictions.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "grammar/token_mask.h"

namespace pronghorn {

struct SamplingOptions {
  double temperature = 0;  // 0: the most likely token
  int64_t top_k = 0;       // keep the k likeliest; 0: all
  double top_p = 1;        // keep the likeliest that together reach p (arXiv 1904.09751)
  double min_p = 0;        // keep those at least min_p as likely as the likeliest (2407.01082)
  double repetition_penalty = 1;  // divides positive and multiplies negative scores of tokens seen
                                  // lately (arXiv 1909.05858); 1: none
  int64_t repetition_window = 256;
  // Taken from the score of a token for each time that it was written, and once if it was written
  // at all. What is written begins at position penalty_start; of a long text its end counts, as far
  // as `recent` goes (OpenAI's API, "frequency and presence penalties").
  double frequency_penalty = 0, presence_penalty = 0;
  int64_t penalty_start = 0;
  // Added to the scores of tokens, before all else; -infinity rules a token out.
  std::vector<std::pair<int32_t, float>> logit_bias;
  uint64_t seed = 0;

  // Whether earlier tokens change the scores.
  bool looks_back() const {
    return repetition_penalty != 1 || frequency_penalty != 0 || presence_penalty != 0;
  }
};

struct TokenScore {
  int32_t token = 0;
  float log_probability = 0;
};

// A token of a text that is being written, with log-probabilities by the model's raw scores: before
// bias, penalties, temperature and restrictions.
struct WrittenToken {
  int32_t token = 0;
  float log_probability = 0;          // if asked for
  std::vector<TokenScore> likeliest;  // as many as were asked for, best first
};

// ln p of tokens under the softmax of `scores`, which must outlive it.
class LogProbabilities {
 public:
  explicit LogProbabilities(std::span<const float> scores);
  double operator()(int32_t token) const {
    return static_cast<double>(scores_[static_cast<size_t>(token)]) - largest_ - log_total_;
  }

 private:
  std::span<const float> scores_;
  double largest_, log_total_;
};

// `token` with its log-probability and the `likeliest` tokens, ties by the lower id.
WrittenToken written_token(std::span<const float> scores, int32_t token, int64_t likeliest);

// Throws UsageError for values out of range.
void check_sampling(const SamplingOptions& options);

// A distribution of the next token: what sample() draws from. Tokens that it cannot draw are left
// out.
struct TokenDistribution {
  std::vector<int32_t> tokens;        // ascending
  std::vector<double> probabilities;  // of each; they add up to 1

  double probability(int32_t token) const;
  // The token where the running sum of probabilities first exceeds u in [0, 1).
  int32_t draw(double u) const;
};

// The distribution that sample() follows: after bias, penalties, temperature and restrictions. At
// temperature 0 a single token. allowed: as for sample(); the distribution is empty if none of them
// can be drawn. Throws Error for scores that are not numbers.
TokenDistribution token_distribution(std::span<const float> scores, const SamplingOptions& options,
                                     std::span<const int32_t> recent, int64_t position,
                                     const TokenMask* allowed = nullptr);

// The `count` tokens that come first when the noise of sample() is added to their scores: the first
// is sample()'s choice, the next what it would choose if that one were banned, and so on. Fewer if
// the restrictions leave fewer; none only if `allowed` (as for sample()) leaves none.
std::vector<int32_t> sample_ranked(std::span<const float> scores, const SamplingOptions& options,
                                   std::span<const int32_t> recent, int64_t position, int64_t count,
                                   const TokenMask* allowed = nullptr);

// The next token. scores: logits of the vocabulary. recent: earlier tokens of the sequence, for the
// penalties. position: of the token to be drawn. The noise is a Gumbel variate for each (seed,
// position, token), so that the choice depends on nothing but the scores and these: not on the
// batch, the threads, or how the token came to be proposed. Ties go to the lower id. allowed: the
// tokens that may be drawn, before all other restrictions; null: all. Throws Error if none of them
// can be.
int32_t sample(std::span<const float> scores, const SamplingOptions& options,
               std::span<const int32_t> recent, int64_t position,
               const TokenMask* allowed = nullptr);

}  // namespace pronghorn
