#include "ops/timestep_norm.h"

#include "backend/backend.h"
#include "base/error.h"
#include "ops/diagonal_scan.h"
#include "ops/forks.h"
#include "ops/gates.h"
#include "ops/key_blocks.h"
#include "ops/operands.h"
#include "ops/pointwise.h"
#include "tensor/sequence_shards.h"

namespace pronghorn {
namespace {

// Of each row, the t-th of its sequence: 1 / t and t / (t - 1), 0 of the first; [rows, 1].
struct Shares {
  Tensor one, all;
};

Shares shares_of(const CheckedBatch& batch, JournalSlot slot) {
  const auto rows = static_cast<size_t>(batch.rows());
  PooledVector<float> one(rows, 1.0f), all(rows, 0.0f);
  for (const Segment& segment : batch.segments()) {
    const int64_t before =
        segment.state == nullptr ? 0 : segment.state->journal(slot.layer, slot.index).length();
    for (int64_t i = 0; i < segment.length; ++i) {
      const auto row = static_cast<size_t>(segment.first_row + i);
      const auto earlier = static_cast<double>(index_in_sequence(segment, i, before));
      if (earlier == 0) continue;
      one[row] = static_cast<float>(1 / (earlier + 1));
      all[row] = static_cast<float>((earlier + 1) / earlier);
    }
  }
  const int64_t count = batch.rows();
  return {Tensor::from(one, {count, 1}), Tensor::from(all, {count, 1})};
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

JournalShape timestep_norm_journal(int64_t groups) {
  JournalShape shape = running_sum_journal(groups);
  shape.forks = false;  // rows are counted from the beginning of their segment
  return shape;
}

Tensor timestep_norm(const Context& context, const Tensor& x, const Tensor& weight,
                     const Tensor& bias, int64_t groups, float epsilon, const CheckedBatch& batch,
                     const TimestepNormSlots& slots) {
  require(groups > 0 && x.columns() % groups == 0, "timestep_norm", "{} columns in {} groups",
          x.columns(), groups);
  require_whole(batch, "timestep_norm");  // rows are counted from the beginning of their sequence
  require(!has_forks(batch), "timestep_norm", "segments cannot go on from others of a batch");
  const Shares shares = shares_of(batch, slots.means);
  const auto [own_mean, own_variance] = group_moments(context, x, x.columns() / groups);
  const auto mean_of = [&](const Tensor& values, JournalSlot slot) {
    return scale_groups(context, running_sum(context, values, 0, batch, slot), shares.one, groups);
  };
  const Tensor mean = mean_of(own_mean, slots.means);
  // m_t - mean_t = (1 - 1 / t) (m_t - mean_t-1), so the last term is its square times t / (t - 1).
  const Tensor away = add(context, own_mean, scale(context, mean, -1));
  const Tensor spread = scale_groups(context, multiply(context, away, away), shares.all, groups);
  const Tensor variance = mean_of(add(context, own_variance, spread), slots.variances);
  return group_norm(context, x, mean, variance, weight, bias, epsilon);
}

}  // namespace pronghorn
