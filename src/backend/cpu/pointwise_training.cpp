#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/pointwise_training.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>
#include <limits>

#include "backend/cpu/pointwise-inl.h"
#include "backend/cpu/pointwise_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

using V = FloatVector;

// Columns whose exponentials are summed in f32 before the sum goes on in f64.
constexpr int64_t kSumColumns = 4096;

void CrossEntropyRows(Extent extent, Matrix logits, const int32_t* targets, bool gradient,
                      double gradient_scale, double z_loss_weight, RowLoss* losses) {
  ForEachRow(extent, [&](int64_t row) {
    const FloatTag d;
    float* values = logits.row(row);
    const int64_t columns = extent.columns;
    const int32_t target = targets[row];
    if (target < 0) {
      losses[row] = {};
      if (gradient) std::fill_n(values, columns, 0.0f);
      return;
    }
    const float target_logit = values[target];
    V largest = hn::Set(d, values[0]);
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    int64_t i = 0;
    for (; i + lanes <= columns; i += lanes) largest = hn::Max(largest, hn::LoadU(d, values + i));
    float top = hn::GetLane(hn::MaxOfLanes(d, largest));
    for (; i < columns; ++i) top = std::max(top, values[i]);

    double sum = 0;
    const V shift = hn::Set(d, top);
    for (int64_t first = 0; first < columns; first += kSumColumns) {
      V part = hn::Zero(d);
      float* from = values + first;
      const int64_t count = std::min(kSumColumns, columns - first);
      ForEachVector(count, [&](auto v, int64_t c) PRONGHORN_VECTOR_LAMBDA {
        const V e = v.zero_rest(Exp(d, hn::Sub(v.load(from + c), shift)));
        if (gradient) v.store(e, from + c);
        part = hn::Add(part, e);
      });
      sum += static_cast<double>(Total(part));
    }
    const double log_z = std::log(sum) + static_cast<double>(top);
    losses[row] = {log_z - static_cast<double>(target_logit), log_z, target_logit >= top};
    if (!gradient) return;
    // d nll = p - onehot, d (log_z)^2 = 2 log_z p
    const double factor = gradient_scale * (1 + 2 * z_loss_weight * log_z) / sum;
    const V times = hn::Set(d, static_cast<float>(factor));
    ForEachVector(columns, [&](auto v, int64_t c) PRONGHORN_VECTOR_LAMBDA {
      v.store(hn::Mul(v.load(values + c), times), values + c);
    });
    values[target] -= static_cast<float>(gradient_scale);
  });
}

void AdamWSpan(int64_t count, float* parameters, const float* gradients, float* m, float* v_moment,
               const AdamW& s) {
  const auto steps = static_cast<double>(s.step);
  const double first_correction = 1 - std::pow(s.beta1, steps);
  const double second_correction = 1 - std::pow(s.beta2, steps);
  const auto step_size = static_cast<float>(s.learning_rate / first_correction);
  const auto root = static_cast<float>(1 / std::sqrt(second_correction));
  const auto keep = static_cast<float>(1 - s.learning_rate * s.weight_decay);
  const auto beta1 = static_cast<float>(s.beta1), beta2 = static_cast<float>(s.beta2);
  const auto new1 = static_cast<float>(1 - s.beta1), new2 = static_cast<float>(1 - s.beta2);
  const auto epsilon = static_cast<float>(s.epsilon);
  const auto scale = static_cast<float>(s.gradient_scale);
  parallel_for(count, kPointwiseGrain, [&](int64_t begin, int64_t end) {
    const FloatTag d;
    const V b1 = hn::Set(d, beta1), b2 = hn::Set(d, beta2), n1 = hn::Set(d, new1);
    const V n2 = hn::Set(d, new2), eps = hn::Set(d, epsilon), correction = hn::Set(d, root);
    const V rate = hn::Set(d, step_size), kept = hn::Set(d, keep), clip = hn::Set(d, scale);
    ForEachVector(end - begin, [&](auto v, int64_t offset) PRONGHORN_VECTOR_LAMBDA {
      const int64_t i = begin + offset;
      const V g = hn::Mul(v.load(gradients + i), clip);
      const V first = hn::MulAdd(v.load(m + i), b1, hn::Mul(g, n1));
      const V second = hn::MulAdd(v.load(v_moment + i), b2, hn::Mul(hn::Mul(g, g), n2));
      v.store(first, m + i);
      v.store(second, v_moment + i);
      const V denominator = hn::MulAdd(hn::Sqrt(second), correction, eps);
      const V update = hn::Div(hn::Mul(first, rate), denominator);
      v.store(hn::Sub(hn::Mul(v.load(parameters + i), kept), update), parameters + i);
    });
  });
}

void SumsOfSquares(std::span<const std::span<const float>> parts, double* sums) {
  parallel_for(std::ssize(parts), 1, [&](int64_t first, int64_t last) {
    const hn::ScalableTag<double> d;
    const hn::Rebind<float, decltype(d)> half;
    const size_t lanes = hn::Lanes(d);
    for (int64_t p = first; p < last; ++p) {
      const std::span<const float> part = parts[static_cast<size_t>(p)];
      const float* values = part.data();
      auto even = hn::Zero(d), odd = hn::Zero(d);
      size_t i = 0;
      for (; i + 2 * lanes <= part.size(); i += 2 * lanes) {
        const auto a = hn::PromoteTo(d, hn::LoadU(half, values + i));
        const auto b = hn::PromoteTo(d, hn::LoadU(half, values + i + lanes));
        even = hn::MulAdd(a, a, even);
        odd = hn::MulAdd(b, b, odd);
      }
      double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
      for (; i < part.size(); ++i) {
        sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
      }
      sums[p] = sum;
    }
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(CrossEntropyRows);
HWY_EXPORT(AdamWSpan);
HWY_EXPORT(SumsOfSquares);

void CpuPointwiseKernels::cross_entropy(Extent extent, Matrix logits, const int32_t* targets,
                                        bool gradient, double gradient_scale, double z_loss_weight,
                                        RowLoss* losses) {
  HWY_DYNAMIC_DISPATCH(CrossEntropyRows)
  (extent, logits, targets, gradient, gradient_scale, z_loss_weight, losses);
}

void CpuPointwiseKernels::adamw(int64_t count, float* parameters, const float* gradients, float* m,
                                float* v, const AdamW& settings) {
  HWY_DYNAMIC_DISPATCH(AdamWSpan)(count, parameters, gradients, m, v, settings);
}

void CpuPointwiseKernels::sums_of_squares(std::span<const std::span<const float>> parts,
                                          double* sums) {
  HWY_DYNAMIC_DISPATCH(SumsOfSquares)(parts, sums);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
