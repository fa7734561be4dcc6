#include "ops/experts.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "laws/operator_case.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn::laws {
namespace {

constexpr int64_t kWidth = 12, kSize = 10;
constexpr double kClamp = 1.5;  // reached by some

struct Variant {
  RouterOptions router;
  bool clamped = false, correction = false;
  std::vector<double> thresholds = {};  // of experts that choose; none: rows do
};

// What is added to a logit, besides what the router says of the row: experts are so far apart that
// differences of f32, or of central differences, change no choice; each position has another order.
double offset_of(int32_t position, int64_t expert, int64_t experts) {
  return 0.5 * static_cast<double>((position * 3 + expert * 5) % experts);
}

double correction_of(int64_t expert) { return expert % 2 == 0 ? 0.4 : -0.3; }

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

// The experts of a row, and the scores of all.
struct Choice {
  std::vector<size_t> experts;
  std::vector<double> scores;
};

Choice choose(const Variant& variant, const std::vector<double>& z) {
  const RouterOptions& options = variant.router;
  Choice choice;
  double total = 0;
  for (const double value : z) total += std::exp(value);
  for (const double value : z) {
    choice.scores.push_back(options.sigmoid ? logistic(value) : std::exp(value) / total);
  }
  if (!variant.thresholds.empty()) {
    for (size_t e = 0; e < z.size(); ++e) {
      if (choice.scores[e] >= variant.thresholds[e]) choice.experts.push_back(e);
    }
    return choice;
  }
  std::vector<double> c = choice.scores;
  for (size_t e = 0; e < c.size() && variant.correction; ++e) {
    c[e] += correction_of(static_cast<int64_t>(e));
  }
  const auto groups = static_cast<size_t>(options.groups), size = z.size() / groups;
  std::vector<std::pair<double, size_t>> order;
  for (size_t g = 0; g < groups; ++g) {
    std::vector<double> own(c.begin() + static_cast<long>(g * size),
                            c.begin() + static_cast<long>((g + 1) * size));
    std::sort(own.rbegin(), own.rend());
    order.emplace_back(-(options.sigmoid ? own[0] + own[1] : own[0]), g);
  }
  std::sort(order.begin(), order.end());
  for (size_t i = static_cast<size_t>(options.top_groups); i < groups; ++i) {
    for (size_t e = 0; e < size; ++e) c[order[i].second * size + e] = -1e30;
  }
  std::vector<size_t> ranked(z.size());
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(), [&](size_t a, size_t b) { return c[a] > c[b]; });
  choice.experts.assign(ranked.begin(), ranked.begin() + options.top_k);
  return choice;
}

// y = M x + b for expert `e` of stacked matrices [experts, out, in].
std::vector<double> product(const std::vector<double>& matrices, const std::vector<double>& biases,
                            size_t e, const std::vector<double>& x, size_t out) {
  std::vector<double> y(out);
  for (size_t o = 0; o < out; ++o) {
    y[o] = biases[e * out + o];
    for (size_t i = 0; i < x.size(); ++i) y[o] += matrices[(e * out + o) * x.size() + i] * x[i];
  }
  return y;
}

std::vector<double> experts_reference(const Variant& variant, const Values& in,
                                      const std::vector<int32_t>& positions) {
  const auto experts = static_cast<size_t>(variant.router.experts);
  const auto width = static_cast<size_t>(kWidth), size = static_cast<size_t>(kSize);
  std::vector<double> result;
  for (size_t t = 0; t < positions.size(); ++t) {
    const std::vector<double> x(in[0].begin() + static_cast<long>(t * width),
                                in[0].begin() + static_cast<long>((t + 1) * width));
    std::vector<double> z(experts);
    for (size_t e = 0; e < experts; ++e) {
      z[e] = offset_of(positions[t], static_cast<int64_t>(e), variant.router.experts);
      for (size_t i = 0; i < width; ++i) z[e] += in[1][e * width + i] * x[i];
    }
    const Choice choice = choose(variant, z);
    double sum = variant.router.sigmoid ? variant.router.least_sum : 0;
    for (const size_t e : choice.experts) sum += choice.scores[e];
    std::vector<double> y(width);
    for (const size_t e : choice.experts) {
      const double weight =
          variant.router.scale * choice.scores[e] / (variant.router.normalize ? sum : 1);
      std::vector<double> gate = product(in[2], in[5], e, x, size);
      const std::vector<double> up = product(in[3], in[6], e, x, size);
      for (size_t i = 0; i < size; ++i) {
        if (variant.clamped) {
          const double g = std::min(gate[i], kClamp);
          gate[i] = g * logistic(1.702 * g) * (std::clamp(up[i], -kClamp, kClamp) + 1);
        } else {
          gate[i] *= logistic(gate[i]) * up[i];
        }
      }
      const std::vector<double> out = product(in[4], in[7], e, gate, width);
      for (size_t i = 0; i < width; ++i) y[i] += weight * out[i];
    }
    result.insert(result.end(), y.begin(), y.end());
  }
  return result;
}

Tensor experts_forward(const Variant& variant, const Context& context,
                       const std::vector<Tensor>& in, const CheckedBatch& batch) {
  const int64_t experts = variant.router.experts;
  std::vector<float> offsets, correction;
  for (const int32_t position : batch.positions()) {
    for (int64_t e = 0; e < experts; ++e) {
      offsets.push_back(static_cast<float>(offset_of(position, e, experts)));
    }
  }
  for (int64_t e = 0; e < experts; ++e) {
    correction.push_back(static_cast<float>(correction_of(e)));
  }
  const Tensor logits = add(context, linear(context, in[0], Weight(in[1])),
                            Tensor::from(offsets, {batch.rows(), experts}));
  Routing routing;
  if (variant.thresholds.empty()) {
    routing =
        route(context, logits, variant.correction ? Tensor::from(correction, {experts}) : Tensor(),
              variant.router);
  } else {
    // What inference does, whose gradient is that of training: only the choice is another there.
    const std::vector<float> thresholds(variant.thresholds.begin(), variant.thresholds.end());
    routing.experts = experts_above(logits, Tensor::from(thresholds, {experts}), variant.router);
    routing.weights = expert_weights(context, logits, routing.experts, variant.router);
  }
  const ExpertRows sorted = sort_by_expert(routing.experts, experts, routing.weights.columns());
  const auto grouped = [&](const Tensor& x, const Tensor& matrices, const Tensor& biases) {
    const int64_t out = matrices.rows() / experts;
    std::vector<Weight> weights;
    std::vector<Tensor> added;
    for (int64_t e = 0; e < experts; ++e) {
      weights.emplace_back(matrices.row_slice(e * out, out));
      added.push_back(biases.row_slice(e, 1));
    }
    return grouped_linear(context, x, weights, added, sorted.begins);
  };
  const Tensor rows = embedding(context, in[0], sorted.rows);
  const Tensor gate = grouped(rows, in[2], in[5]), up = grouped(rows, in[3], in[6]);
  const Tensor inside =
      variant.clamped ? clamped_swiglu(context, gate, up, kClamp) : swiglu(context, gate, up);
  return combine_rows(context, grouped(inside, in[4], in[7]), routing.weights, sorted.places);
}

OperatorCase experts_case(std::string name, const Variant& variant) {
  const int64_t experts = variant.router.experts;
  OperatorCase row;
  row.name = std::move(name);
  row.inputs = {{"x", kWidth, {}, -1, 1},
                // What it says of two experts differs by less than their distance.
                {"router", 0, {experts, kWidth}, -0.01, 0.01},
                {"gate", 0, {experts * kSize, kWidth}, -1, 1},
                {"up", 0, {experts * kSize, kWidth}, -1, 1},
                {"down", 0, {experts * kWidth, kSize}, -1, 1},
                {"gate_bias", 0, {experts, kSize}, -1, 1},
                {"up_bias", 0, {experts, kSize}, -1, 1},
                {"down_bias", 0, {experts, kWidth}, -1, 1}};
  row.output_width = kWidth;
  row.forward = [variant](const Context& context, const std::vector<Tensor>& in,
                          const CheckedBatch& batch) {
    return experts_forward(variant, context, in, batch);
  };
  row.reference = [variant](const Values& inputs, const std::vector<int32_t>& positions) {
    return experts_reference(variant, inputs, positions);
  };
  return row;
}

}  // namespace

std::vector<OperatorCase> experts_cases() {
  return {
      experts_case("experts", {{.experts = 7, .top_k = 2}}),
      experts_case("experts_plain_softmax",
                   {{.experts = 4, .top_k = 3, .normalize = false, .scale = 2.5f}}),
      experts_case("experts_groups_by_best",
                   {{.experts = 9, .top_k = 2, .normalize = false, .groups = 3, .top_groups = 1}}),
      experts_case("experts_sigmoid", {{.experts = 8,
                                        .top_k = 3,
                                        .sigmoid = true,
                                        .scale = 1.7f,
                                        .least_sum = 0.4,
                                        .groups = 4,
                                        .top_groups = 2},
                                       false,
                                       true}),
      experts_case("experts_sigmoid_plain",
                   {{.experts = 6, .top_k = 1, .sigmoid = true, .normalize = false}}),
      experts_case("experts_clamped", {{.experts = 6, .top_k = 4}, true, false}),
      // Thresholds between what the offsets make of scores; some rows are given to no expert.
      experts_case("experts_that_choose", {{.experts = 6, .top_k = 2, .normalize = false},
                                           false,
                                           false,
                                           {0.07, 0.2, 0.9, 0.12, 0.33, 0.02}}),
      experts_case("experts_that_choose_sigmoid",
                   {{.experts = 4, .top_k = 1, .sigmoid = true, .scale = 1.3f, .least_sum = 0.4},
                    false,
                    false,
                    {0.78, 0.78, 0.95, 0.68}})};
}

}  // namespace pronghorn::laws
