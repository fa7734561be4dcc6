#include "train/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace pronghorn {
namespace {

// Tokens of one forward: enough for the matrix kernels, little enough for memory.
constexpr int64_t kForwardTokens = 8192;

// Examples for judging come from numbers that training never reaches.
constexpr uint64_t kHeldOutExamples = uint64_t{1} << 48;

}  // namespace

double TextScore::perplexity() const {
  return tokens == 0 ? 0 : std::exp(nll / static_cast<double>(tokens));
}

double TextScore::bits_per_byte() const { return bytes == 0 ? 0 : nll / std::numbers::ln2 / bytes; }

TextScore evaluate_text(const Model& model, Precision precision, const TokenShard& shard,
                        int64_t window, int64_t max_tokens, const ProgressFunction& progress) {
  TextScore score;
  const int64_t predicted = shard.size() - 1;
  if (predicted <= 0) return score;
  window = std::min(window, predicted);
  const int64_t windows = (predicted + window - 1) / window;
  int64_t used = windows;
  if (max_tokens > 0) used = std::clamp<int64_t>(max_tokens / window, 1, windows);

  Context context;
  context.precision = precision;
  const int64_t together = std::max<int64_t>(1, kForwardTokens / window);
  std::vector<int32_t> row(static_cast<size_t>(window) + 1);
  for (int64_t first = 0; first < used; first += together) {
    Batch batch;
    std::vector<int32_t> targets;
    for (int64_t i = first; i < std::min(used, first + together); ++i) {
      const int64_t begin = i * windows / used * window;
      const int64_t count = std::min(window, predicted - begin);
      row.resize(static_cast<size_t>(count) + 1);
      shard.read(begin, row);
      batch.segments.push_back({nullptr, batch.rows(), count, Mask::causal, {}});
      for (int64_t t = 0; t < count; ++t) {
        batch.tokens.push_back(row[static_cast<size_t>(t)]);
        batch.positions.push_back(static_cast<int32_t>(t));
        targets.push_back(row[static_cast<size_t>(t) + 1]);
      }
    }
    const Tensor hidden = model.forward(context, batch);
    const CrossEntropy result = linear_cross_entropy(context, hidden, model.head(), targets, 1, 0);
    score.tokens += result.count;
    score.nll += result.nll;
    if (progress) progress(static_cast<double>(score.tokens));
  }
  // The text's bytes in proportion: exactly all of them when every token is read.
  score.bytes = static_cast<double>(shard.text_bytes()) * static_cast<double>(score.tokens) /
                static_cast<double>(predicted);
  return score;
}

TaskScore evaluate_task(const Model& model, Precision precision, DataSource& task, int64_t examples,
                        const ProgressFunction& progress) {
  TaskScore score;
  Context context;
  context.precision = precision;
  const int64_t length = task.length();
  const int64_t together = std::max<int64_t>(1, kForwardTokens / length);
  for (int64_t first = 0; first < examples; first += together) {
    const int64_t count = std::min(together, examples - first);
    std::vector<int32_t> tokens(static_cast<size_t>(count * length)), targets(tokens.size());
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(i * length);
      task.fill(kHeldOutExamples + static_cast<uint64_t>(first + i),
                std::span(tokens).subspan(at, static_cast<size_t>(length)),
                std::span(targets).subspan(at, static_cast<size_t>(length)));
    }
    const Tensor hidden = model.forward(context, fresh_segments(tokens, length));
    const CrossEntropy result = linear_cross_entropy(context, hidden, model.head(), targets, 1, 0);
    score.answers += result.count;
    score.correct += result.correct;
    score.nll += result.nll;
    if (progress) progress(static_cast<double>((first + count) * length));
  }
  return score;
}

}  // namespace pronghorn
