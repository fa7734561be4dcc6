#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "ops/router_scores.h"

namespace pronghorn {
namespace {

constexpr char kWhere[] = "router";

// The experts of a row: those in front of the first -1.
std::span<const int32_t> chosen(std::span<const int32_t> experts, int64_t row, int64_t slots) {
  const auto own = experts.subspan(static_cast<size_t>(row * slots), static_cast<size_t>(slots));
  const auto end = std::ranges::find_if(own, [](int32_t e) { return e < 0; });
  return {own.begin(), end};
}

void weigh(const RouterOptions& options, std::span<const float> z, std::span<const int32_t> experts,
           std::span<double> scores, float* weights) {
  const auto at = [&](size_t i) { return static_cast<size_t>(experts[i]); };
  if (options.normalize && !options.sigmoid) {
    double most = -std::numeric_limits<double>::infinity(), sum = 0;
    for (size_t i = 0; i < experts.size(); ++i) most = std::max(most, double{z[at(i)]});
    for (size_t i = 0; i < experts.size(); ++i) sum += std::exp(z[at(i)] - most);
    for (size_t i = 0; i < experts.size(); ++i) {
      weights[i] = static_cast<float>(options.scale * std::exp(z[at(i)] - most) / sum);
    }
    return;
  }
  router_scores(options, z, scores);
  double sum = options.normalize ? options.least_sum : 1;
  for (size_t i = 0; i < experts.size() && options.normalize; ++i) sum += scores[at(i)];
  for (size_t i = 0; i < experts.size(); ++i) {
    weights[i] = static_cast<float>(options.scale * scores[at(i)] / sum);
  }
}

// dz += the gradient of a row's weights, dw.
void weigh_backward(const RouterOptions& options, std::span<const float> z,
                    std::span<const int32_t> experts, std::span<const float> dw,
                    std::span<double> scores, std::span<float> dz) {
  if (experts.empty()) return;
  router_scores(options, z, scores);
  const double scale = options.scale;
  double sum = 0, mean = 0;  // of the chosen scores; of dw under the weights
  for (const int32_t e : experts) sum += scores[static_cast<size_t>(e)];
  if (options.sigmoid) sum += options.least_sum;
  const double divisor = options.normalize ? sum : 1;
  for (size_t i = 0; i < experts.size(); ++i) {
    mean += dw[i] * scores[static_cast<size_t>(experts[i])] / divisor;
  }
  if (!options.sigmoid && !options.normalize) {
    for (size_t e = 0; e < z.size(); ++e) dz[e] -= static_cast<float>(scale * scores[e] * mean);
  }
  for (size_t i = 0; i < experts.size(); ++i) {
    const auto e = static_cast<size_t>(experts[i]);
    const double s = scores[e], centred = options.normalize ? dw[i] - mean : dw[i];
    const double slope = options.sigmoid ? s * (1 - s) : s;
    dz[e] += static_cast<float>(scale * centred * slope / divisor);
  }
}

}  // namespace

double log_sum_exp(std::span<const float> z) {
  const double most = *std::ranges::max_element(z);
  double sum = 0;
  for (const float value : z) sum += std::exp(value - most);
  return most + std::log(sum);
}

void router_scores(const RouterOptions& options, std::span<const float> z,
                   std::span<double> scores) {
  const double log_z = options.sigmoid ? 0 : log_sum_exp(z);
  for (size_t e = 0; e < z.size(); ++e) {
    scores[e] = options.sigmoid ? 1 / (1 + std::exp(-double{z[e]})) : std::exp(z[e] - log_z);
  }
}

void check_logits(const Tensor& logits, const RouterOptions& options) {
  require(logits.columns() == options.experts && logits.contiguous(), kWhere,
          "logits {} for {} experts", logits.shape(), options.experts);
}

Tensor expert_weights(const Context& context, const Tensor& logits,
                      std::span<const int32_t> experts, const RouterOptions& options) {
  check_logits(logits, options);
  const int64_t rows = logits.rows(), width = options.experts;
  const int64_t slots = rows == 0 ? 1 : static_cast<int64_t>(experts.size()) / rows;
  require(slots > 0 && static_cast<int64_t>(experts.size()) == rows * slots, kWhere,
          "{} choices for {} rows", experts.size(), rows);
  const auto size = static_cast<size_t>(width);
  const PooledVector<float> z = logits.read();
  PooledVector<float> weights(experts.size());
  for_rows(rows, width, [&](int64_t begin, int64_t end) {
    std::vector<double> scores(size);
    for (int64_t row = begin; row < end; ++row) {
      weigh(options, row_of(z, row, width), chosen(experts, row, slots), scores,
            weights.data() + row * slots);
    }
  });
  const Tensor result = Tensor::from(weights, {rows, slots});
  if (!needs_gradient(context, result, logits)) return result;
  context.tape->record([logits, result, options, rows, width, slots, size,
                        experts = std::vector<int32_t>(experts.begin(), experts.end())] {
    if (!result.has_grad()) return;
    const PooledVector<float> dw = result.grad().read(), values = logits.read();
    const GradTarget target = logits.grad_target();
    PooledVector<float> dz = gradient_so_far(target);
    for_rows(rows, width, [&](int64_t begin, int64_t end) {
      std::vector<double> scores(size);
      for (int64_t row = begin; row < end; ++row) {
        weigh_backward(options, row_of(values, row, width), chosen(experts, row, slots),
                       row_of(dw, row, slots), scores, {dz.data() + row * width, size});
      }
    });
    target.tensor.write(dz);
  });
  return result;
}

}  // namespace pronghorn
