#include "train/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "tensor/storage.h"
#include "train/masked_text.h"
#include "train/train_config.h"

namespace pronghorn {
namespace {

// Tokens of one forward: enough for the matrix kernels, little enough for memory.
constexpr int64_t kForwardTokens = 8192;

using ReadTokens = std::function<void(int64_t begin, std::span<int32_t> tokens)>;

// Tokens from the beginning of one window to that of the next. A diffusion model is given the first
// token of a window, which the window before it has predicted.
int64_t stride_of(const Model& model, int64_t window) {
  return model.config().diffusion ? std::max<int64_t>(1, window - 1) : window;
}

// Bounds on the windows that begin at `begins`, of up to window tokens each.
TextScore bound_windows(const Model& model, const Context& context, std::span<const int64_t> begins,
                        int64_t window, int64_t size, const ReadTokens& read,
                        const ProgressFunction& progress, int64_t samples) {
  const DiffusionConfig& diffusion = *model.config().diffusion;
  TextScore score;
  score.samples = samples;
  ForwardObserver observer;
  observer.on_load = [&](const ExpertLoad& load) { score.expert_loads.add(load); };
  const auto together = static_cast<size_t>(std::max<int64_t>(1, kForwardTokens / window));
  std::vector<int32_t> tokens;
  for (size_t first = 0; first < begins.size(); first += together) {
    const size_t end = std::min(begins.size(), first + together);
    for (int64_t sample = 0; sample < samples; ++sample) {
      MaskedText text(diffusion);
      for (size_t i = first; i < end; ++i) {
        tokens.resize(static_cast<size_t>(std::min(window, size - begins[i])));
        read(begins[i], tokens);
        const auto length = std::ssize(tokens);
        text.add(
            tokens,
            bound_mask(diffusion,
                       i * static_cast<uint64_t>(samples) + static_cast<uint64_t>(sample), length));
        if (sample == 0) score.tokens += length - 1;
      }
      score.nll += text.loss(model, context, 1, 0, observer).nll / static_cast<double>(samples);
    }
    if (progress) progress(static_cast<double>(score.tokens));
  }
  return score;
}

// What all ranks' rows gave to the experts.
ExpertLoads sum_of_loads(Ranks& ranks, const ExpertLoads& own) {
  ExpertLoads sum;
  for (const auto& [layer, rows] : own.rows()) {
    const std::vector<int64_t> all = gather<int64_t>(ranks, rows);
    for (auto from = all.begin(); from != all.end(); from += std::ssize(rows)) {
      sum.add({layer, {from, from + std::ssize(rows)}});
    }
  }
  return sum;
}

// Scores the windows that begin at `begins` of a text of `size` tokens, read through `read`.
TextScore evaluate_windows(const Model& model, Precision precision, std::span<const int64_t> begins,
                           int64_t window, int64_t size, const ReadTokens& read,
                           const ProgressFunction& progress, const CacheOptions& cache,
                           int64_t samples, const SequenceSharing& sharing = {}) {
  TextScore score;
  Context context;
  context.precision = precision;
  const bool shares = sharing.is_on();
  require(!shares || (cache == CacheOptions() && !model.config().diffusion), "sequence_parallel",
          "with a cache of another kind, or a model that fills in masked tokens");
  if (model.config().diffusion) {
    require(cache == CacheOptions(), "cache",
            "kept in another way by a model that reads texts whole and keeps none");
    return bound_windows(model, context, begins, window, size, read, progress, samples);
  }
  const auto together = static_cast<size_t>(std::max<int64_t>(1, kForwardTokens / window));
  const auto length_of = [&](int64_t begin) { return std::min(window, size - 1 - begin); };
  const auto is_shared = [&](int64_t begin) {
    return shares && length_of(begin) >= 2 * sharing.ranks->count();
  };
  for (size_t first = 0, end = 0; first < begins.size(); first = end) {
    end = std::min(begins.size(), first + together);
    const bool shared = is_shared(begins[first]);
    // The end of a text may be too short to be shared.
    while (shared && !is_shared(begins[end - 1])) --end;
    Batch batch;
    std::vector<SequenceState> states;
    states.reserve(together);
    std::vector<int32_t> targets, row;
    for (const int64_t begin : begins.subspan(first, end - first)) {
      const int64_t count = length_of(begin);
      row.resize(static_cast<size_t>(count) + 1);
      read(begin, row);
      const auto read_tokens = std::span(row).first(static_cast<size_t>(count));
      if (cache == CacheOptions()) {
        add_fresh_segment(batch, read_tokens);
      } else {
        states.push_back(model.new_state(cache));
        add_segment(batch, states.back(), read_tokens);
      }
      targets.insert(targets.end(), row.begin() + 1, row.end());
    }
    ForwardObserver observer;
    observer.on_span = [&](const SpanTrace& span) {
      const auto number = static_cast<size_t>(span.span);
      score.entered.resize(std::max(score.entered.size(), number + 1));
      score.entered[number] +=
          std::count_if(span.scores.begin(), span.scores.end(), [](float s) { return s > 0; });
    };
    ExpertLoads loads;
    observer.on_load = [&](const ExpertLoad& load) { loads.add(load); };
    CrossEntropy result;
    if (shared) {
      const SequenceShards shards(*sharing.ranks, sharing.kind, batch);
      const Tensor hidden = model.forward(context, shards.local(), observer);
      const double own = model.cross_entropy(context, hidden, shards.part_of(targets), 1, 0).nll;
      const std::vector<double> all = gather<double>(*sharing.ranks, {&own, 1});
      result.nll = std::accumulate(all.begin(), all.end(), 0.0);
      result.count = std::ssize(targets);
      loads = sum_of_loads(*sharing.ranks, loads);
    } else {
      const Tensor hidden = model.forward(context, batch, observer);
      result = model.cross_entropy(context, hidden, targets, 1, 0);
    }
    score.tokens += result.count;
    score.nll += result.nll;
    score.expert_loads += loads;
    if (progress) progress(static_cast<double>(score.tokens));
  }
  return score;
}

}  // namespace

int64_t default_window(const ModelConfig& config) {
  if (config.train.is_object()) {
    return read_train_config(ConfigReader(config.train, "train")).window;
  }
  // A checkpoint of a published family says no more about its training than its context.
  constexpr int64_t kWindow = 1024;
  const int64_t trained = trained_context(config).tokens;
  return trained > 0 ? std::min(kWindow, trained) : kWindow;
}

double TextScore::perplexity() const {
  return tokens == 0 ? 0 : std::exp(nll / static_cast<double>(tokens));
}

double TextScore::bits_per_byte() const { return bytes == 0 ? 0 : nll / std::numbers::ln2 / bytes; }

std::vector<double> TextScore::kept_shares() const {
  std::vector<double> shares;
  for (const int64_t count : entered) {
    shares.push_back(tokens == 0 ? 0 : static_cast<double>(count) / static_cast<double>(tokens));
  }
  return shares;
}

TextScore& TextScore::operator+=(const TextScore& other) {
  tokens += other.tokens;
  bytes += other.bytes;
  nll += other.nll;
  samples = std::max(samples, other.samples);
  expert_loads += other.expert_loads;
  entered.resize(std::max(entered.size(), other.entered.size()));
  for (size_t span = 0; span < other.entered.size(); ++span) entered[span] += other.entered[span];
  return *this;
}

TextScore evaluate_text(const Model& model, Precision precision, const TokenShard& shard,
                        int64_t window, int64_t max_tokens, const ProgressFunction& progress,
                        int64_t samples) {
  const int64_t predicted = shard.size() - 1;
  if (!model.config().diffusion) window = std::min(window, predicted);
  const int64_t stride = stride_of(model, window);
  const int64_t windows = predicted > 0 ? (predicted + stride - 1) / stride : 0;
  int64_t used = windows;
  if (max_tokens > 0) used = std::min(windows, std::max<int64_t>(1, max_tokens / stride));
  std::vector<int64_t> begins;
  for (int64_t i = 0; i < used; ++i) begins.push_back(i * windows / used * stride);
  TextScore score = evaluate_windows(
      model, precision, begins, window, shard.size(),
      [&](int64_t begin, std::span<int32_t> out) { shard.read(begin, out); }, progress, DType::f32,
      samples);
  // The first token is predicted by nothing, so its bytes do not count either.
  score.bytes = static_cast<double>(shard.text_bytes()) * static_cast<double>(score.tokens) /
                static_cast<double>(std::max<int64_t>(1, shard.size()));
  return score;
}

TextScore evaluate_tokens(const Model& model, Precision precision, std::span<const int32_t> tokens,
                          int64_t window, const ProgressFunction& progress,
                          const CacheOptions& cache, int64_t samples,
                          const SequenceSharing& sharing) {
  const auto size = static_cast<int64_t>(tokens.size());
  const int64_t stride = stride_of(model, window);
  std::vector<int64_t> begins;
  for (int64_t begin = 0; begin + 1 < size; begin += stride) begins.push_back(begin);
  return evaluate_windows(
      model, precision, begins, window, size,
      [&](int64_t begin, std::span<int32_t> out) {
        std::copy_n(tokens.begin() + begin, out.size(), out.begin());
      },
      progress, cache, samples, sharing);
}

double predicted_bytes(const Tokenizer& tokenizer, std::string_view text,
                       std::span<const int32_t> tokens) {
  if (tokens.size() < 2) return 0;
  const size_t unpredicted = std::min(text.size(), tokenizer.decode(tokens.first(1)).size());
  return static_cast<double>(text.size() - unpredicted);
}

std::vector<StreamPart> evaluate_stream(const Model& model, Precision precision,
                                        std::span<const int32_t> tokens, int64_t part,
                                        const ProgressFunction& progress,
                                        const CacheOptions& cache) {
  require(!model.config().diffusion, "stream",
          "a diffusion model reads texts in windows, not as a stream");
  const auto predicted = static_cast<int64_t>(tokens.size()) - 1;
  require(predicted > 0 && part > 0, "stream", "{} tokens are too few to predict one",
          tokens.size());
  Context context;
  context.precision = precision;
  SequenceState state = model.new_state(cache);
  std::vector<StreamPart> parts;
  for (int64_t begin = 0; begin < predicted; begin += part) {
    StreamPart& one = parts.emplace_back();
    one.begin = begin;
    one.tokens = std::min(part, predicted - begin);
    reset_memory_peak();
    const double start = now_seconds();
    read_in_pieces(one.tokens, [&](int64_t done, int64_t count) {
      const auto at = static_cast<size_t>(begin + done), size = static_cast<size_t>(count);
      const Tensor hidden =
          model.forward(context, continue_sequence(state, tokens.subspan(at, size)));
      one.nll += model.cross_entropy(context, hidden, tokens.subspan(at + 1, size), 1, 0).nll;
      if (progress) progress(static_cast<double>(begin + done + count));
    });
    one.seconds = now_seconds() - start;
    one.state_bytes = state.bytes();
    one.peak_bytes = memory_use().peak;
  }
  return parts;
}

TaskScore evaluate_task(const Model& model, Precision precision, DataSource& task, int64_t examples,
                        const ProgressFunction& progress) {
  require(!model.config().diffusion, "task", "a diffusion model predicts no next tokens");
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
    const Tensor hidden = model.forward(context, task.batch(tokens));
    for (int64_t i = 0; i < count; ++i) {
      const CrossEntropy result = model.cross_entropy(
          context, hidden.row_slice(i * length, length),
          std::span(targets).subspan(static_cast<size_t>(i * length), static_cast<size_t>(length)),
          1, 0);
      score.answers += result.count;
      score.correct += result.correct;
      score.solved += result.correct == result.count ? 1 : 0;
      score.nll += result.nll;
    }
    score.examples += count;
    if (progress) progress(static_cast<double>((first + count) * length));
  }
  return score;
}

}  // namespace pronghorn
