#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "ops/router_scores.h"

namespace pronghorn {
namespace {

constexpr char kWhere[] = "router";

// The highest of those that are not taken yet; the lower index first, also where none compares.
size_t best_of(std::span<const double> values, const std::vector<bool>& taken) {
  size_t best = values.size();
  for (size_t i = 0; i < values.size(); ++i) {
    if (taken[i]) continue;
    if (best == values.size() || values[i] > values[best]) best = i;
  }
  return best;
}

// One thread's memory for rows.
class Chooser {
 public:
  explicit Chooser(const RouterOptions& options)
      : options_(options),
        scores_(static_cast<size_t>(options.experts)),
        choice_(scores_.size()),
        taken_(scores_.size()) {}

  // The experts of a row. correction: null for none.
  void choose(std::span<const float> z, const float* correction, int32_t* experts) {
    const auto count = static_cast<size_t>(options_.top_k);
    // Logits order as softmax does.
    const bool by_logits = !options_.sigmoid && correction == nullptr;
    if (!by_logits) router_scores(options_, z, scores_);
    for (size_t e = 0; e < z.size(); ++e) {
      choice_[e] = by_logits ? z[e] : scores_[e] + (correction == nullptr ? 0 : correction[e]);
    }
    std::fill(taken_.begin(), taken_.end(), false);
    if (options_.groups > 1) leave_groups_out();
    for (size_t i = 0; i < count; ++i) {
      const size_t best = best_of(choice_, taken_);
      taken_[best] = true;
      experts[i] = static_cast<int32_t>(best);
    }
  }

 private:
  void leave_groups_out() {
    const auto groups = static_cast<size_t>(options_.groups), size = choice_.size() / groups;
    std::vector<double> values(groups);
    for (size_t g = 0; g < groups; ++g) {
      // No sorting: numbers that are none have no order.
      double best = -std::numeric_limits<double>::infinity(), second = best;
      for (const double score : std::span(choice_).subspan(g * size, size)) {
        if (score > best) {
          second = std::exchange(best, score);
        } else if (score > second) {
          second = score;
        }
      }
      values[g] = options_.sigmoid && size > 1 ? best + second : best;
    }
    std::vector<bool> kept(groups);
    for (int64_t i = 0; i < options_.top_groups; ++i) kept[best_of(values, kept)] = true;
    for (size_t e = 0; e < choice_.size(); ++e) taken_[e] = !kept[e / size];
  }

  const RouterOptions& options_;
  std::vector<double> scores_, choice_;
  std::vector<bool> taken_;
};

std::vector<int64_t> counts_of(std::span<const int32_t> experts, int64_t count) {
  std::vector<int64_t> counts(static_cast<size_t>(count));
  for (const int32_t e : experts) ++counts[static_cast<size_t>(e)];
  return counts;
}

void add_excess(const Tensor& correction, std::span<const int32_t> experts) {
  const std::vector<int64_t> counts = counts_of(experts, correction.size());
  const double mean = static_cast<double>(experts.size()) / static_cast<double>(counts.size());
  const GradTarget target = correction.grad_target();
  PooledVector<float> sum = gradient_so_far(target);
  for (size_t e = 0; e < counts.size(); ++e) {
    sum[e] += static_cast<float>(static_cast<double>(counts[e]) - mean);
  }
  target.tensor.write(sum);
}

void check(const Tensor& logits, const Tensor& correction, const RouterOptions& options) {
  const int64_t experts = options.experts, k = options.top_k;
  check_logits(logits, options);
  require(k >= 1 && k <= experts, kWhere, "{} of {} experts", k, experts);
  require(options.groups >= 1 && experts % options.groups == 0 && options.top_groups >= 1 &&
              options.top_groups <= options.groups &&
              k <= options.top_groups * (experts / options.groups),
          kWhere, "{} of {} experts in {} of {} groups", k, experts, options.top_groups,
          options.groups);
  require(!correction.defined() || correction.size() == experts, kWhere,
          "a correction of {} for {} experts", correction.defined() ? correction.size() : 0,
          experts);
}

}  // namespace

Routing route(const Context& context, const Tensor& logits, const Tensor& correction,
              const RouterOptions& options) {
  check(logits, correction, options);
  const int64_t rows = logits.rows(), k = options.top_k, width = options.experts;
  const PooledVector<float> z = logits.read();
  PooledVector<float> bias;
  if (correction.defined()) bias = correction.read();
  Routing routing;
  routing.experts.resize(static_cast<size_t>(rows * k));
  for_rows(rows, width, [&](int64_t begin, int64_t end) {
    Chooser chooser(options);
    for (int64_t row = begin; row < end; ++row) {
      chooser.choose(row_of(z, row, width), bias.empty() ? nullptr : bias.data(),
                     routing.experts.data() + row * k);
    }
  });
  routing.weights = expert_weights(context, logits, routing.experts, options);
  if (context.tape != nullptr && context.training_step.has_value() && correction.defined() &&
      correction.requires_grad()) {
    context.tape->record(
        [correction, experts = routing.experts] { add_excess(correction, experts); });
  }
  return routing;
}

Tensor balance_loss(const Context& context, const Tensor& logits, const Routing& routing,
                    const RouterOptions& options) {
  const int64_t rows = logits.rows(), width = options.experts;
  const PooledVector<float> z = logits.read();
  std::vector<double> shares, scores(static_cast<size_t>(width));
  for (const int64_t count : counts_of(routing.experts, width)) {
    shares.push_back(static_cast<double>(count) / static_cast<double>(routing.experts.size()));
  }
  double sum = 0;
  for (int64_t row = 0; row < rows; ++row) {
    router_scores(options, row_of(z, row, width), scores);
    const double total = std::accumulate(scores.begin(), scores.end(), 0.0);
    sum += std::inner_product(scores.begin(), scores.end(), shares.begin(), 0.0) / total;
  }
  const double factor = static_cast<double>(width) / static_cast<double>(rows);
  const Tensor loss = Tensor::full({1}, static_cast<float>(factor * sum));
  if (!needs_gradient(context, loss, logits)) return loss;
  context.tape->record([logits, loss, shares, options, rows, width, factor] {
    if (!loss.has_grad()) return;
    const double gradient = factor * double{loss.grad().read()[0]};
    const PooledVector<float> values = logits.read();
    const GradTarget target = logits.grad_target();
    PooledVector<float> dz = gradient_so_far(target);
    std::vector<double> s(static_cast<size_t>(width));
    for (int64_t row = 0; row < rows; ++row) {
      router_scores(options, row_of(values, row, width), s);
      const double total = std::accumulate(s.begin(), s.end(), 0.0);
      const double mean = std::inner_product(s.begin(), s.end(), shares.begin(), 0.0) / total;
      for (size_t e = 0; e < s.size(); ++e) {
        // Of s_e / sum s; ds_e/dz_e is s (1 - s), or with softmax s, whose sum is 1.
        const double slope = options.sigmoid ? s[e] * (1 - s[e]) : s[e];
        dz[static_cast<size_t>(row * width) + e] +=
            static_cast<float>(gradient * (shares[e] - mean) * slope / total);
      }
    }
    target.tensor.write(dz);
  });
  return loss;
}

Tensor router_z_loss(const Context& context, const Tensor& logits) {
  const int64_t rows = logits.rows(), width = logits.columns();
  const PooledVector<float> z = logits.read();
  double sum = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const double log_z = log_sum_exp(row_of(z, row, width));
    sum += log_z * log_z;
  }
  const Tensor loss = Tensor::full({1}, static_cast<float>(sum / static_cast<double>(rows)));
  if (!needs_gradient(context, loss, logits)) return loss;
  context.tape->record([logits, loss, rows, width] {
    if (!loss.has_grad()) return;
    const double gradient = 2 * double{loss.grad().read()[0]} / static_cast<double>(rows);
    const PooledVector<float> values = logits.read();
    const GradTarget target = logits.grad_target();
    PooledVector<float> dz = gradient_so_far(target);
    for (int64_t row = 0; row < rows; ++row) {
      const double log_z = log_sum_exp(row_of(values, row, width));
      for (int64_t e = 0; e < width; ++e) {
        const auto at = static_cast<size_t>(row * width + e);
        dz[at] += static_cast<float>(gradient * log_z * std::exp(values[at] - log_z));
      }
    }
    target.tensor.write(dz);
  });
  return loss;
}

}  // namespace pronghorn
