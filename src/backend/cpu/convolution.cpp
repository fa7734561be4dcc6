#include "backend/convolution.h"

#include <algorithm>

#include "base/threads.h"
#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/convolution.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "backend/cpu/scan-inl.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {

using Filter = ConvolutionKernels::Filter;

// Channels of one task: a few cache lines of every row.
constexpr int64_t kConvolutionGroup = 128;
// Rows of one task of the forward pass, and of one partial sum of the gradients of the parameters.
constexpr int64_t kConvolutionTile = 128;

// weight[channel ... channel + count][j] for all taps j, a vector a tap, padded with zeros.
HWY_INLINE void TransposeTaps(const Filter& filter, int64_t channel, int64_t count, float* out) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  for (int64_t j = 0; j < filter.taps; ++j) {
    for (int64_t i = 0; i < lanes; ++i) {
      out[j * lanes + i] = i < count ? filter.weight[(channel + i) * filter.taps + j] : 0.0f;
    }
  }
}

// bias + sum_j weight_j input_j, tap by tap.
HWY_INLINE FloatVector Taps(FloatVector bias, const float* weight, int64_t taps,
                            const float* const* inputs, int64_t channel, int64_t count) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  FloatVector sum = bias;
  for (int64_t j = 0; j < taps; ++j) {
    sum = hn::MulAdd(hn::Load(d, weight + j * lanes), LoadPart(d, inputs[j] + channel, count), sum);
  }
  return sum;
}

// Rows [row, end) of channels [begin, stop): y (+)= act(...).
void ConvolveTile(const Filter& filter, int64_t begin, int64_t stop, int64_t row, int64_t end,
                  const float* const* inputs, float* weight, float* y, int64_t y_stride,
                  bool accumulate) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t channel = begin; channel < stop; channel += lanes) {
    const int64_t count = std::min(lanes, stop - channel);
    TransposeTaps(filter, channel, count, weight);
    const FloatVector bias =
        filter.bias != nullptr ? LoadPart(d, filter.bias + channel, count) : hn::Zero(d);
    for (int64_t r = row; r < end; ++r) {
      FloatVector value = Taps(bias, weight, filter.taps, inputs + r * filter.taps, channel, count);
      if (filter.silu) value = hn::Mul(value, Sigmoid(d, value));
      float* to = y + r * y_stride + channel;
      if (accumulate) value = hn::Add(value, LoadPart(d, to, count));
      StorePart(d, value, to, count);
    }
  }
}

// pre_grad of rows [row, end) of channels [begin, stop), and their sums over these rows:
// sums[j * channels + c] for tap j, and for the bias at j = taps.
void ConvolveBackwardTile(const Filter& filter, int64_t begin, int64_t stop, int64_t row,
                          int64_t end, const float* const* inputs, const float* dy,
                          int64_t dy_stride, float* scratch, float* pre_grad, float* sums) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const FloatVector one = hn::Set(d, 1.0f);
  float* weight = scratch;
  float* total = scratch + filter.taps * lanes;
  for (int64_t channel = begin; channel < stop; channel += lanes) {
    const int64_t count = std::min(lanes, stop - channel);
    TransposeTaps(filter, channel, count, weight);
    const FloatVector bias =
        filter.bias != nullptr ? LoadPart(d, filter.bias + channel, count) : hn::Zero(d);
    for (int64_t j = 0; j <= filter.taps; ++j) hn::Store(hn::Zero(d), d, total + j * lanes);
    for (int64_t r = row; r < end; ++r) {
      const float* const* taps = inputs + r * filter.taps;
      FloatVector g = LoadPart(d, dy + r * dy_stride + channel, count);
      if (filter.silu) {
        // (z sigma(z))' = sigma(z) (1 + z (1 - sigma(z)))
        const FloatVector z = Taps(bias, weight, filter.taps, taps, channel, count);
        const FloatVector s = Sigmoid(d, z);
        g = hn::Mul(g, hn::Mul(s, hn::MulAdd(z, hn::Sub(one, s), one)));
      }
      StorePart(d, g, pre_grad + r * filter.channels + channel, count);
      for (int64_t j = 0; j < filter.taps; ++j) {
        float* sum = total + j * lanes;
        hn::Store(hn::MulAdd(g, LoadPart(d, taps[j] + channel, count), hn::Load(d, sum)), d, sum);
      }
      float* sum = total + filter.taps * lanes;
      hn::Store(hn::Add(hn::Load(d, sum), g), d, sum);
    }
    for (int64_t j = 0; j <= filter.taps; ++j) {
      StorePart(d, hn::Load(d, total + j * lanes), sums + j * filter.channels + channel, count);
    }
  }
}

int64_t ConvolutionLanes() { return static_cast<int64_t>(hn::Lanes(FloatTag())); }

}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {
namespace {

HWY_EXPORT(ConvolveTile);
HWY_EXPORT(ConvolveBackwardTile);
HWY_EXPORT(ConvolutionLanes);

constexpr int64_t kGroup = HWY_NAMESPACE::kConvolutionGroup;
constexpr int64_t kTile = HWY_NAMESPACE::kConvolutionTile;
// Elements x taps worth a task of their own: about 10 microseconds, several forks and joins.
constexpr int64_t kTaskWork = 1 << 15;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

float* floats(const Storage& storage) { return reinterpret_cast<float*>(storage.data()); }

Storage scratch_of(int64_t count) { return Storage(static_cast<size_t>(count) * sizeof(float)); }

// Calls body(scratch, first channel, last, first row, last) for all tiles; scratch: `vectors`
// vectors.
template <typename Body>
void for_tiles(const ConvolutionKernels::Filter& filter, int64_t rows, int64_t vectors,
               const Body& body) {
  const int64_t groups = divide_up(filter.channels, kGroup), tiles = divide_up(rows, kTile);
  const int64_t tile_work = std::min(rows, kTile) * std::min(filter.channels, kGroup) * filter.taps;
  const int64_t grain = std::max<int64_t>(1, kTaskWork / std::max<int64_t>(1, tile_work));
  const int64_t lanes = HWY_DYNAMIC_DISPATCH(ConvolutionLanes)();
  parallel_for(groups * tiles, grain, [&](int64_t begin, int64_t end) {
    const Storage scratch = scratch_of(vectors * lanes);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t channel = task % groups * kGroup, row = task / groups * kTile;
      body(floats(scratch), channel, std::min(channel + kGroup, filter.channels), row,
           std::min(row + kTile, rows));
    }
  });
}

class CpuConvolutionKernels final : public ConvolutionKernels {
 public:
  void forward(const Filter& filter, int64_t rows, const float* const* inputs, float* y,
               int64_t y_stride) override {
    convolve(filter, rows, inputs, y, y_stride, false);
  }

  void backward(const Filter& filter, int64_t rows, const float* const* inputs, const float* dy,
                int64_t dy_stride, float* pre_grad, const ConvolutionGradient& weight_grad,
                const ConvolutionGradient& bias_grad) override {
    const int64_t tile_sums = (filter.taps + 1) * filter.channels;
    const Storage sums = scratch_of(divide_up(rows, kTile) * tile_sums);
    for_tiles(filter, rows, 2 * filter.taps + 1,
              [&](float* scratch, int64_t channel, int64_t stop, int64_t row, int64_t end) {
                HWY_DYNAMIC_DISPATCH(ConvolveBackwardTile)
                (filter, channel, stop, row, end, inputs, dy, dy_stride, scratch, pre_grad,
                 floats(sums) + row / kTile * tile_sums);
              });
    // The sums of the tiles in their order, whoever computed them.
    for (int64_t j = 0; j <= filter.taps; ++j) {
      const bool is_bias = j == filter.taps;
      const ConvolutionGradient& to = is_bias ? bias_grad : weight_grad;
      if (to.data == nullptr) continue;
      for (int64_t c = 0; c < filter.channels; ++c) {
        float total = 0;
        for (int64_t row = 0; row < rows; row += kTile) {
          total += floats(sums)[row / kTile * tile_sums + j * filter.channels + c];
        }
        float& target = is_bias ? to.data[c] : to.data[c * to.row_stride + j];
        target = to.accumulate ? target + total : total;
      }
    }
  }

  void backward_input(const Filter& filter, int64_t rows, const float* const* pre_grads,
                      const ConvolutionGradient& x_grad) override {
    Filter linear = filter;
    linear.bias = nullptr;
    linear.silu = false;
    convolve(linear, rows, pre_grads, x_grad.data, x_grad.row_stride, x_grad.accumulate);
  }

 private:
  static void convolve(const Filter& filter, int64_t rows, const float* const* inputs, float* y,
                       int64_t y_stride, bool accumulate) {
    for_tiles(filter, rows, filter.taps,
              [&](float* scratch, int64_t channel, int64_t stop, int64_t row, int64_t end) {
                HWY_DYNAMIC_DISPATCH(ConvolveTile)
                (filter, channel, stop, row, end, inputs, scratch, y, y_stride, accumulate);
              });
  }
};

}  // namespace

std::unique_ptr<ConvolutionKernels> make_cpu_convolution_kernels() {
  return std::make_unique<CpuConvolutionKernels>();
}

}  // namespace pronghorn
#endif  // HWY_ONCE
