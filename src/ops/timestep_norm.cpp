#include "ops/timestep_norm.h"

#include <cmath>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/diagonal_scan.h"
#include "ops/gates.h"
#include "ops/key_blocks.h"
#include "ops/operands.h"
#include "ops/pointwise.h"
#include "tensor/sequence_shards.h"

namespace pronghorn {
namespace {

// Of each row, the t-th of its sequence: ln(1 - 1 / t) for every group, 1 / t and 1 / (t - 1).
struct Shares {
  Tensor log_old;    // [rows, groups]
  Tensor own, past;  // [rows, 1]
};

Shares shares_of(const CheckedBatch& batch, int64_t groups, JournalSlot slot) {
  constexpr float kNothing = -100;  // the first row has nothing before it; f32 holds e^-100 as 0
  const auto rows = static_cast<size_t>(batch.rows()), width = static_cast<size_t>(groups);
  PooledVector<float> log_old(rows * width, kNothing), own(rows, 1.0f), past(rows, 0.0f);
  for (const Segment& segment : batch.segments()) {
    const int64_t before =
        segment.state == nullptr ? 0 : segment.state->journal(slot.layer, slot.index).length();
    for (int64_t i = 0; i < segment.length; ++i) {
      const auto row = static_cast<size_t>(segment.first_row + i);
      const auto earlier = static_cast<double>(index_in_sequence(segment, i, before));
      if (earlier == 0) continue;
      own[row] = static_cast<float>(1 / (earlier + 1));
      past[row] = static_cast<float>(1 / earlier);
      const auto log = static_cast<float>(std::log1p(-1 / (earlier + 1)));
      for (size_t g = 0; g < width; ++g) log_old[row * width + g] = log;
    }
  }
  const int64_t count = batch.rows();
  return {Tensor::from(log_old, {count, groups}), Tensor::from(own, {count, 1}),
          Tensor::from(past, {count, 1})};
}

}  // namespace

std::pair<Tensor, Tensor> group_moments(const Context& context, const Tensor& x, int64_t group) {
  require(group > 0 && x.columns() % group == 0, "group_moments", "{} columns in groups of {}",
          x.columns(), group);
  const Shape shape = {x.rows(), x.columns() / group};
  const Tensor mean = Tensor::empty(shape), variance = Tensor::empty(shape);
  backend().pointwise().group_moments(extent_of(x), group, input_matrix(x), output_matrix(mean),
                                      output_matrix(variance));
  if (needs_gradient(context, mean, x)) {
    variance.set_requires_grad(true);
    context.tape->record([=] {
      if (!mean.has_grad() && !variance.has_grad()) return;
      backend().pointwise().group_moments_backward(extent_of(x), group, input_matrix(x),
                                                   input_matrix(mean), output_gradient(mean),
                                                   output_gradient(variance), input_gradient(x));
    });
  }
  return {mean, variance};
}

Tensor group_norm(const Context& context, const Tensor& x, const Tensor& mean,
                  const Tensor& variance, const Tensor& weight, const Tensor& bias, float epsilon) {
  const int64_t groups = mean.columns();
  require(groups > 0 && x.columns() % groups == 0 && mean.rows() == x.rows() &&
              variance.rows() == x.rows() && variance.columns() == groups &&
              weight.size() == x.columns() && bias.size() == x.columns(),
          "group_norm", "mean {}, variance {}, weight {} and bias {} for {}", mean.shape(),
          variance.shape(), weight.shape(), bias.shape(), x.shape());
  const auto arguments = [=] {
    return GroupNorm{extent_of(x),       x.columns() / groups,   epsilon,       input_matrix(x),
                     input_matrix(mean), input_matrix(variance), weight.data(), bias.data()};
  };
  const Tensor y = Tensor::empty(x.shape());
  backend().pointwise().group_norm(arguments(), output_matrix(y));
  if (needs_gradient(context, y, x, mean, variance, weight, bias)) {
    context.tape->record([=] {
      if (!y.has_grad()) return;
      GroupNormGradients to;
      to.x = input_gradient(x);
      to.mean = input_gradient(mean);
      to.variance = input_gradient(variance);
      to.weight = vector_gradient(weight);
      to.bias = vector_gradient(bias);
      backend().pointwise().group_norm_backward(arguments(), output_gradient(y), to);
    });
  }
  return y;
}

JournalShape timestep_norm_journal(int64_t groups) { return diagonal_scan_journal(groups, false); }

Tensor timestep_norm(const Context& context, const Tensor& x, const Tensor& weight,
                     const Tensor& bias, int64_t groups, float epsilon, const CheckedBatch& batch,
                     const TimestepNormSlots& slots) {
  require(groups > 0 && x.columns() % groups == 0, "timestep_norm", "{} columns in {} groups",
          x.columns(), groups);
  require_whole(batch, "timestep_norm");  // rows are counted from the beginning of their sequence
  const Shares shares = shares_of(batch, groups, slots.means);
  const auto [own_mean, own_variance] = group_moments(context, x, x.columns() / groups);
  const Tensor mean =
      diagonal_scan(context, shares.log_old, scale_groups(context, own_mean, shares.own, groups),
                    batch, slots.means);
  // m_t - mean_t = (1 - c) (m_t - mean_t-1), so the last term is its square over t - 1.
  const Tensor away = add(context, own_mean, scale(context, mean, -1));
  const Tensor spread = scale_groups(context, multiply(context, away, away), shares.past, groups);
  const Tensor added =
      add(context, scale_groups(context, own_variance, shares.own, groups), spread);
  const Tensor variance = diagonal_scan(context, shares.log_old, added, batch, slots.variances);
  return group_norm(context, x, mean, variance, weight, bias, epsilon);
}

}  // namespace pronghorn
