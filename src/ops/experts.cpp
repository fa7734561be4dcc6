#include "ops/experts.h"

#include <algorithm>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/linear.h"
#include "ops/operands.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

constexpr char kWhere[] = "experts";

// A range of rows that belongs to one expert.
struct Group {
  size_t expert = 0;
  int64_t first = 0, rows = 0;
};

std::vector<Group> groups_of(std::span<const int64_t> begins) {
  std::vector<Group> groups;
  for (size_t e = 0; e + 1 < begins.size(); ++e) {
    if (begins[e + 1] > begins[e]) groups.push_back({e, begins[e], begins[e + 1] - begins[e]});
  }
  return groups;
}

ConstMatrix rows_of(ConstMatrix matrix, const Group& group) {
  return {matrix.row(group.first), matrix.stride};
}
Matrix rows_of(Matrix matrix, const Group& group) {
  return {matrix.row(group.first), matrix.stride, matrix.accumulate};
}

void check(const Tensor& x, std::span<const Weight> weights, std::span<const Tensor> biases,
           std::span<const int64_t> begins) {
  require(!weights.empty() && begins.size() == weights.size() + 1 && begins.front() == 0 &&
              begins.back() == x.rows() && std::ranges::is_sorted(begins),
          kWhere, "{} rows for {} experts that end at {}", x.rows(), weights.size(),
          begins.empty() ? 0 : begins.back());
  const int64_t in = weights[0].in(), out = weights[0].out();
  for (const Weight& weight : weights) {
    require(weight.in() == in && weight.out() == out && x.columns() == in, kWhere,
            "a weight [{}, {}] beside one [{}, {}] for rows of {}", weight.out(), weight.in(), out,
            in, x.columns());
  }
  require(biases.empty() || biases.size() == weights.size(), kWhere, "{} biases for {} experts",
          biases.size(), weights.size());
  for (const Tensor& bias : biases) {
    require(bias.size() == out && bias.contiguous(), kWhere, "bias of shape {} for {} columns",
            bias.shape(), out);
  }
}

Tensor grouped_product(const Context& context, const Tensor& x, std::span<const Weight> weights,
                       std::span<const Tensor> biases, std::span<const int64_t> begins) {
  check(x, weights, biases, begins);
  const int64_t in = weights[0].in(), out = weights[0].out();
  const Tensor y = Tensor::empty({x.rows(), out});
  std::vector<Group> groups = groups_of(begins);
  std::vector<GroupedProduct> products;
  bool recorded = context.tape != nullptr && x.requires_grad();
  for (const Group& group : groups) {
    const float* bias = biases.empty() ? nullptr : biases[group.expert].data();
    products.push_back({&weights[group.expert], rows_of(input_matrix(x), group), group.rows, bias,
                        rows_of(output_matrix(y), group)});
    recorded = recorded || (context.tape != nullptr &&
                            (weights[group.expert].trainable().requires_grad() ||
                             (!biases.empty() && biases[group.expert].requires_grad())));
  }
  const Precision precision = context.precision;
  backend().matmul().grouped_forward(products, precision, context.tape == nullptr && context.exact);
  if (!recorded) return y;
  y.set_requires_grad(true);
  context.tape->record([x, y, precision, in, out, groups = std::move(groups),
                        weights = std::vector<Weight>(weights.begin(), weights.end()),
                        biases = std::vector<Tensor>(biases.begin(), biases.end())] {
    if (!y.has_grad()) return;
    MatmulKernels& kernels = backend().matmul();
    const ConstMatrix dy = output_gradient(y);
    const Matrix dx = input_gradient(x);
    for (const Group& group : groups) {
      const Weight& weight = weights[group.expert];
      const ConstMatrix own = rows_of(dy, group);
      if (dx.data != nullptr) {
        linear_input_gradient(weight, own, group.rows, rows_of(dx, group), precision);
      }
      if (weight.trainable().requires_grad()) {
        kernels.linear_backward_weight(own, rows_of(input_matrix(x), group), group.rows, out, in,
                                       input_gradient(weight.trainable()), precision);
      }
      if (!biases.empty() && biases[group.expert].requires_grad()) {
        kernels.linear_backward_bias(own, group.rows, out, vector_gradient(biases[group.expert]));
      }
    }
  });
  return y;
}

}  // namespace

std::vector<int64_t> ExpertRows::counts() const {
  std::vector<int64_t> counts;
  for (size_t e = 0; e + 1 < begins.size(); ++e) counts.push_back(begins[e + 1] - begins[e]);
  return counts;
}

ExpertRows sort_by_expert(std::span<const int32_t> experts, int64_t count, int64_t slots) {
  ExpertRows sorted;
  sorted.begins.assign(static_cast<size_t>(count) + 1, 0);
  for (const int32_t e : experts) {
    require(e >= -1 && e < count, kWhere, "expert {} of {}", e, count);
    if (e >= 0) ++sorted.begins[static_cast<size_t>(e) + 1];
  }
  for (size_t e = 1; e < sorted.begins.size(); ++e) sorted.begins[e] += sorted.begins[e - 1];
  std::vector<int64_t> next = sorted.begins;
  sorted.rows.resize(static_cast<size_t>(sorted.begins.back()));
  for (size_t i = 0; i < experts.size(); ++i) {
    if (experts[i] < 0) {
      sorted.places.push_back(-1);
      continue;
    }
    const int64_t place = next[static_cast<size_t>(experts[i])]++;
    sorted.rows[static_cast<size_t>(place)] = static_cast<int32_t>(static_cast<int64_t>(i) / slots);
    sorted.places.push_back(static_cast<int32_t>(place));
  }
  return sorted;
}

Tensor grouped_linear(const Context& context, const Tensor& x, std::span<const Weight> weights,
                      std::span<const Tensor> biases, std::span<const int64_t> begins) {
  const Tensor y = grouped_product(context, x, weights, biases, begins);
  const auto adapted = [](const Weight& weight) { return weight.adapter() != nullptr; };
  if (std::ranges::none_of(weights, adapted)) return y;
  std::vector<Weight> a, b;
  for (const Weight& weight : weights) {
    const LowRank *change = weight.adapter().get(), *first = weights[0].adapter().get();
    require(change != nullptr && first != nullptr && change->scale == first->scale, kWhere,
            "the experts of a layer have adapters of different factors, or some have none");
    a.push_back(change->a);
    b.push_back(change->b);
  }
  const float factor = weights[0].adapter()->scale;
  const Tensor low = grouped_product(context, x, a, {}, begins);
  return add(context, y, scale(context, grouped_product(context, low, b, {}, begins), factor));
}

Tensor combine_rows(const Context& context, const Tensor& x, const Tensor& weights,
                    std::span<const int32_t> places) {
  require(weights.contiguous() && weights.size() == static_cast<int64_t>(places.size()), kWhere,
          "weights {} for {} places", weights.shape(), places.size());
  const Tensor y = Tensor::empty({weights.rows(), x.columns()});
  const auto arguments = [=](const int32_t* from) {
    return Combination{extent_of(y), weights.columns(), from, weights.data(), input_matrix(x)};
  };
  for (const int32_t place : places) {
    require(place >= -1 && place < x.rows(), kWhere, "place {} of {}", place, x.rows());
  }
  backend().pointwise().combine_rows(arguments(places.data()), output_matrix(y));
  if (needs_gradient(context, y, x, weights)) {
    context.tape->record([=, kept = std::vector<int32_t>(places.begin(), places.end())] {
      if (!y.has_grad()) return;
      const Matrix dx = input_gradient(x), dweights = input_gradient(weights);
      backend().pointwise().combine_rows_backward(arguments(kept.data()), output_gradient(y), dx,
                                                  dweights);
    });
  }
  return y;
}

}  // namespace pronghorn
