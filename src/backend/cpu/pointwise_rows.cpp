#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/pointwise_rows.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/pointwise-inl.h"
#include "backend/cpu/pointwise_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

void Upsample(const Upsampling& in, Matrix out) {
  ForEachRow({in.selected, in.extent.columns}, [&](int64_t i) {
    const float *x = in.x.row(in.rows[i]), *y = in.y.row(i);
    float* to = out.row(in.rows[i]);
    const FloatVector weight = hn::Set(FloatTag(), in.weights[i]);
    ForEachVector(in.extent.columns, [&](auto v, int64_t c) PRONGHORN_VECTOR_LAMBDA {
      const FloatVector old = v.load(x + c);
      const FloatVector step = hn::Mul(weight, v.load(in.bypass_scale + c));
      v.store(hn::MulAdd(step, hn::Sub(v.load(y + c), old), old), to + c);
    });
  });
}

// The gradients at the selected rows; dx holds d_out there already.
void UpsampleBackward(const Upsampling& in, ConstMatrix d_out, Matrix dx, Matrix dy,
                      Matrix dweights, GradVector d_bypass_scale) {
  SumOverRows({in.selected, in.extent.columns}, in.extent.columns, d_bypass_scale, {},
              [&](int64_t i, float* d_scale, float*) {
                const float *x = in.x.row(in.rows[i]), *y = in.y.row(i), *d = d_out.row(in.rows[i]);
                const FloatVector weight = hn::Set(FloatTag(), in.weights[i]);
                FloatVector d_weight = hn::Zero(FloatTag());
                ForEachVector(in.extent.columns, [&](auto v, int64_t c) PRONGHORN_VECTOR_LAMBDA {
                  const FloatVector scale = v.load(in.bypass_scale + c), g = v.load(d + c);
                  const FloatVector moved = hn::Mul(hn::Sub(v.load(y + c), v.load(x + c)), g);
                  const FloatVector through = hn::Mul(hn::Mul(weight, scale), g);
                  d_weight = hn::MulAdd(scale, v.zero_rest(moved), d_weight);
                  if (dx.data != nullptr) {
                    float* to = dx.row(in.rows[i]) + c;
                    v.store(hn::Sub(v.load(to), through), to);
                  }
                  if (dy.data != nullptr) v.store(through, dy.row(i) + c, dy.accumulate);
                  if (d_scale != nullptr) {
                    v.store(hn::MulAdd(weight, moved, v.load(d_scale + c)), d_scale + c);
                  }
                });
                if (dweights.data != nullptr) {
                  float* to = dweights.row(i);
                  *to = Total(d_weight) + (dweights.accumulate ? *to : 0);
                }
              });
}

void CombineRows(const Combination& in, Matrix y) {
  ForEachRow(in.extent, [&](int64_t row) {
    const int32_t* places = in.places + row * in.slots;
    const float* weights = in.weights + row * in.slots;
    float* to = y.row(row);
    ForEachVector(in.extent.columns, [&](auto v, int64_t c) PRONGHORN_VECTOR_LAMBDA {
      FloatVector sum = hn::Zero(FloatTag());
      for (int64_t s = 0; s < in.slots; ++s) {
        if (places[s] < 0) continue;
        const FloatVector weight = hn::Set(FloatTag(), weights[s]);
        sum = hn::MulAdd(weight, v.load(in.x.row(places[s]) + c), sum);
      }
      v.store(sum, to + c, y.accumulate);
    });
  });
}

void CombineRowsBackward(const Combination& in, ConstMatrix dy, Matrix dx, Matrix dweights) {
  ForEachRow(in.extent, [&](int64_t row) {
    const float* from = dy.row(row);
    for (int64_t s = 0; s < in.slots; ++s) {
      const int32_t place = in.places[row * in.slots + s];
      if (place < 0) {
        if (dweights.data != nullptr && !dweights.accumulate) dweights.row(row)[s] = 0;
        continue;
      }
      const float* x = in.x.row(place);
      const FloatVector weight = hn::Set(FloatTag(), in.weights[row * in.slots + s]);
      FloatVector product = hn::Zero(FloatTag());
      ForEachVector(in.extent.columns, [&](auto v, int64_t c) PRONGHORN_VECTOR_LAMBDA {
        const FloatVector g = v.load(from + c);
        product = hn::Add(product, v.zero_rest(hn::Mul(g, v.load(x + c))));
        if (dx.data) v.store(hn::Mul(weight, g), dx.row(place) + c, dx.accumulate);
      });
      if (dweights.data == nullptr) continue;
      float* to = dweights.row(row) + s;
      *to = Total(product) + (dweights.accumulate ? *to : 0);
    }
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(Upsample);
HWY_EXPORT(UpsampleBackward);
HWY_EXPORT(CombineRows);
HWY_EXPORT(CombineRowsBackward);

void CpuPointwiseKernels::upsample(const Upsampling& arguments, Matrix out) {
  scale(arguments.extent, arguments.x, 1, out);
  HWY_DYNAMIC_DISPATCH(Upsample)(arguments, out);
}

void CpuPointwiseKernels::upsample_backward(const Upsampling& arguments, ConstMatrix d_out,
                                            Matrix dx, Matrix dy, Matrix dweights,
                                            GradVector d_bypass_scale) {
  if (dx.data != nullptr) scale(arguments.extent, d_out, 1, dx);
  HWY_DYNAMIC_DISPATCH(UpsampleBackward)(arguments, d_out, dx, dy, dweights, d_bypass_scale);
}

void CpuPointwiseKernels::combine_rows(const Combination& arguments, Matrix y) {
  HWY_DYNAMIC_DISPATCH(CombineRows)(arguments, y);
}

void CpuPointwiseKernels::combine_rows_backward(const Combination& arguments, ConstMatrix dy,
                                                Matrix dx, Matrix dweights) {
  HWY_DYNAMIC_DISPATCH(CombineRowsBackward)(arguments, dy, dx, dweights);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
