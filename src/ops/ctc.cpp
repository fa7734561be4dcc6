#include "ops/ctc.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/edit_distance.h"
#include "base/error.h"
#include "base/threads.h"
#include "ops/operands.h"
#include "tensor/pool.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "ctc_loss";
constexpr double kNever = -std::numeric_limits<double>::infinity();

// ln(e^a + e^b)
double log_add(double a, double b) {
  const double most = std::max(a, b);
  if (most == kNever) return kNever;
  return most + std::log1p(std::exp(std::min(a, b) - most));
}

// The symbols with a blank before, between and after them: the states of an alignment. From one
// row to the next an alignment stays, goes on by one, or leaves out a blank between two symbols
// that are not the same.
struct States {
  explicit States(std::span<const int32_t> symbols) {
    written.push_back(kCtcBlank);
    for (const int32_t symbol : symbols) {
      written.push_back(symbol);
      written.push_back(kCtcBlank);
    }
  }
  size_t count() const { return written.size(); }
  bool skips_to(size_t state) const {
    return state >= 2 && written[state] != kCtcBlank && written[state] != written[state - 2];
  }

  std::vector<int32_t> written;
};

// ln softmax of each row of scores [rows, vocab_size].
std::vector<double> log_softmax(std::span<const float> scores, size_t vocabulary) {
  std::vector<double> result;
  for (size_t first = 0; first < scores.size(); first += vocabulary) {
    const auto row = scores.subspan(first, vocabulary);
    const double most = double{*std::ranges::max_element(row)};
    double sum = 0;
    for (const float score : row) sum += std::exp(double{score} - most);
    for (const float score : row) result.push_back(double{score} - most - std::log(sum));
  }
  return result;
}

// What is computed of one segment.
struct SegmentLoss {
  double nll = 0;
  int64_t correct = 0;
};

// gradient: null, or [rows, vocab_size] that receives that of the scores, times `scale`.
SegmentLoss segment_loss(std::span<const float> scores, size_t vocabulary,
                         const std::vector<int32_t>& symbols, double scale, float* gradient) {
  const std::vector<double> log_p = log_softmax(scores, vocabulary);
  const States states(symbols);
  const size_t rows = scores.size() / vocabulary, count = states.count();
  const auto at = [&](size_t row, size_t state) {
    return log_p[row * vocabulary + static_cast<size_t>(states.written[state])];
  };
  // The sums over the ways to a state at a row, that row's symbol included.
  std::vector<double> forward(rows * count, kNever);
  for (size_t s = 0; s < std::min<size_t>(2, count); ++s) forward[s] = at(0, s);
  for (size_t row = 1; row < rows; ++row) {
    const double* before = forward.data() + (row - 1) * count;
    for (size_t s = 0; s < count; ++s) {
      double sum = before[s];
      if (s >= 1) sum = log_add(sum, before[s - 1]);
      if (states.skips_to(s)) sum = log_add(sum, before[s - 2]);
      forward[row * count + s] = sum + at(row, s);
    }
  }
  const double* last = forward.data() + (rows - 1) * count;
  const double total = count == 1 ? last[0] : log_add(last[count - 1], last[count - 2]);
  const std::vector<int32_t> said = ctc_greedy(scores, static_cast<int64_t>(vocabulary));
  SegmentLoss loss;
  loss.nll = -total;
  loss.correct = std::max<int64_t>(
      0, std::ssize(symbols) - static_cast<int64_t>(edit_distance(said, symbols)));
  if (gradient == nullptr) return loss;
  // The sums over the ways from a state at a row to the end, that row's symbol left out.
  std::vector<double> backward(count, kNever), next(count);
  backward[count - 1] = 0;
  if (count > 1) backward[count - 2] = 0;
  for (size_t row = rows; row-- > 0;) {
    float* to = gradient + row * vocabulary;
    for (size_t k = 0; k < vocabulary; ++k) {
      to[k] = static_cast<float>(scale * std::exp(log_p[row * vocabulary + k]));
    }
    std::vector<double> share(vocabulary, kNever);
    for (size_t s = 0; s < count; ++s) {
      double& sum = share[static_cast<size_t>(states.written[s])];
      sum = log_add(sum, forward[row * count + s] + backward[s]);
    }
    for (size_t k = 0; k < vocabulary; ++k) {
      to[k] -= static_cast<float>(scale * std::exp(share[k] - total));
    }
    if (row == 0) break;
    for (size_t s = 0; s < count; ++s) {
      double sum = backward[s] + at(row, s);
      if (s + 1 < count) sum = log_add(sum, backward[s + 1] + at(row, s + 1));
      if (s + 2 < count && states.skips_to(s + 2)) {
        sum = log_add(sum, backward[s + 2] + at(row, s + 2));
      }
      next[s] = sum;
    }
    std::swap(backward, next);
  }
  return loss;
}

}  // namespace

int64_t ctc_rows(std::span<const int32_t> symbols) {
  int64_t rows = std::ssize(symbols);
  for (size_t i = 1; i < symbols.size(); ++i) rows += symbols[i] == symbols[i - 1];
  return rows;
}

CrossEntropy ctc_loss(const Context& context, const Tensor& scores, const CheckedBatch& batch,
                      std::span<const std::vector<int32_t>> symbols, double gradient_scale) {
  const int64_t vocabulary = scores.columns();
  require(scores.rows() == batch.rows() && vocabulary > 1, kWhere, "scores {} for {} rows",
          scores.shape(), batch.rows());
  require(symbols.size() == batch.segments().size(), kWhere, "symbols of {} sequences for {}",
          symbols.size(), batch.segments().size());
  for (size_t s = 0; s < symbols.size(); ++s) {
    for (const int32_t symbol : symbols[s]) {
      require(symbol != kCtcBlank && symbol > 0 && symbol < vocabulary, kWhere,
              "symbol {} of a vocabulary of {}", symbol, vocabulary);
    }
    const int64_t rows = batch.segments()[s].length, least = ctc_rows(symbols[s]);
    require(rows >= std::max<int64_t>(1, least), kWhere, "{} rows for {} symbols, which need {}",
            rows, symbols[s].size(), std::max<int64_t>(1, least));
  }
  const bool wanted = context.tape != nullptr && scores.requires_grad();
  const PooledVector<float> values = scores.read();
  PooledVector<float> gradient(wanted ? values.size() : 0);
  std::vector<SegmentLoss> losses(symbols.size());
  parallel_for(std::ssize(symbols), 1, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      const Segment& segment = batch.segments()[static_cast<size_t>(s)];
      const auto first = static_cast<size_t>(segment.first_row * vocabulary);
      losses[static_cast<size_t>(s)] =
          segment_loss(std::span<const float>(values.data() + first,
                                              static_cast<size_t>(segment.length * vocabulary)),
                       static_cast<size_t>(vocabulary), symbols[static_cast<size_t>(s)],
                       gradient_scale, wanted ? gradient.data() + first : nullptr);
    }
  });
  CrossEntropy result;
  for (size_t s = 0; s < losses.size(); ++s) {
    result.nll += losses[s].nll;
    result.correct += losses[s].correct;
    result.count += std::ssize(symbols[s]);
  }
  if (wanted) {
    const Tensor added = Tensor::from(gradient, scores.shape());
    context.tape->record([scores, added] { scores.give_grad(added); });
  }
  return result;
}

std::vector<int32_t> ctc_greedy(std::span<const float> scores, int64_t vocab_size) {
  std::vector<int32_t> symbols;
  int32_t before = kCtcBlank;
  const auto width = static_cast<size_t>(vocab_size);
  for (size_t first = 0; first + width <= scores.size(); first += width) {
    const auto row = scores.subspan(first, width);
    const auto best = static_cast<int32_t>(std::ranges::max_element(row) - row.begin());
    if (best != before && best != kCtcBlank) symbols.push_back(best);
    before = best;
  }
  return symbols;
}

}  // namespace pronghorn
