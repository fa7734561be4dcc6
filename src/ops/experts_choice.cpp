#include <algorithm>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "ops/router_scores.h"

namespace pronghorn {
namespace {

constexpr char kWhere[] = "router";

// The scores of all rows, row-major.
std::vector<double> scores_of(const Tensor& logits, const RouterOptions& options) {
  check_logits(logits, options);
  const int64_t rows = logits.rows(), width = options.experts;
  const PooledVector<float> z = logits.read();
  std::vector<double> scores(z.size());
  for_rows(rows, width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      router_scores(
          options, row_of(z, row, width),
          std::span(scores).subspan(static_cast<size_t>(row * width), static_cast<size_t>(width)));
    }
  });
  return scores;
}

// taken: [rows, width]. The experts of each row in their order, -1 after them: as many slots for
// each as the row that has most needs, and at least one.
std::vector<int32_t> listed(const std::vector<bool>& taken, int64_t rows, int64_t width) {
  const auto size = static_cast<size_t>(width);
  std::vector<std::vector<int32_t>> chosen(static_cast<size_t>(rows));
  size_t slots = 1;
  for (size_t row = 0; row < chosen.size(); ++row) {
    for (size_t e = 0; e < size; ++e) {
      if (taken[row * size + e]) chosen[row].push_back(static_cast<int32_t>(e));
    }
    slots = std::max(slots, chosen[row].size());
  }
  std::vector<int32_t> all(chosen.size() * slots, -1);
  for (size_t row = 0; row < chosen.size(); ++row) {
    std::ranges::copy(chosen[row], all.begin() + static_cast<std::ptrdiff_t>(row * slots));
  }
  return all;
}

}  // namespace

std::vector<int32_t> experts_above(const Tensor& logits, const Tensor& threshold,
                                   const RouterOptions& options) {
  require(threshold.size() == options.experts, kWhere, "{} thresholds for {} experts",
          threshold.size(), options.experts);
  const std::vector<double> scores = scores_of(logits, options);
  const PooledVector<float> least = threshold.read();
  std::vector<bool> taken(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    taken[i] = scores[i] >= double{least[i % least.size()]};
  }
  return listed(taken, logits.rows(), options.experts);
}

RowsOfExperts highest_rows(const Tensor& logits, const RouterOptions& options) {
  const int64_t rows = logits.rows(), width = options.experts;
  require(options.top_k >= 1 && options.top_k <= width && rows > 0, kWhere,
          "{} of {} experts for each of {} rows", options.top_k, width, rows);
  const std::vector<double> scores = scores_of(logits, options);
  const auto capacity = static_cast<size_t>((rows * options.top_k + width - 1) / width);
  std::vector<bool> taken(scores.size());
  RowsOfExperts result;
  std::vector<double> own(static_cast<size_t>(rows));
  std::vector<size_t> order(own.size());
  for (size_t e = 0; e < static_cast<size_t>(width); ++e) {
    for (size_t row = 0; row < own.size(); ++row) {
      const double score = scores[row * static_cast<size_t>(width) + e];
      // What is no number has no order.
      own[row] = score == score ? score : -std::numeric_limits<double>::infinity();
    }
    std::iota(order.begin(), order.end(), size_t{0});
    const auto better = [&](size_t a, size_t b) {
      return own[a] > own[b] || (own[a] == own[b] && a < b);
    };
    const auto last = order.begin() + static_cast<std::ptrdiff_t>(capacity) - 1;
    std::nth_element(order.begin(), last, order.end(), better);
    for (size_t i = 0; i < capacity; ++i) taken[order[i] * static_cast<size_t>(width) + e] = true;
    result.least.push_back(own[*last]);
  }
  result.experts = listed(taken, rows, width);
  return result;
}

Routing route_by_experts(const Context& context, const Tensor& logits, const Tensor& threshold,
                         int64_t sequences, const RouterOptions& options) {
  Routing routing;
  if (context.tape == nullptr) {
    routing.experts = experts_above(logits, threshold, options);
  } else {
    RowsOfExperts chosen = highest_rows(logits, options);
    routing.experts = std::move(chosen.experts);
    if (context.training_step.has_value() && threshold.requires_grad()) {
      context.tape->record([threshold, sequences, least = std::move(chosen.least)] {
        const GradTarget target = threshold.grad_target();
        PooledVector<float> excess = gradient_so_far(target);
        const PooledVector<float> values = threshold.read();
        for (size_t e = 0; e < excess.size(); ++e) {
          excess[e] += static_cast<float>(sequences) * (values[e] - static_cast<float>(least[e]));
        }
        target.tensor.write(excess);
      });
    }
  }
  routing.weights = expert_weights(context, logits, routing.experts, options);
  return routing;
}

}  // namespace pronghorn
