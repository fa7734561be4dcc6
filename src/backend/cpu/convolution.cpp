#include "backend/convolution.h"

#include <algorithm>

#include "base/threads.h"
#include "tensor/storage.h"

#ifndef PRONGHORN_CONVOLUTION_TILE_
#define PRONGHORN_CONVOLUTION_TILE_
namespace pronghorn {

// Channels and rows of one task, and rows of one partial sum of the gradients of the parameters:
// rows outside, channels inside, so that memory is read in order. A group is a multiple of the
// lanes of any vector.
constexpr int64_t kConvolutionGroup = 512;
constexpr int64_t kConvolutionTile = 64;

}  // namespace pronghorn
#endif  // PRONGHORN_CONVOLUTION_TILE_

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/convolution.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

using Filter = ConvolutionKernels::Filter;

// weight[channel ... stop][j] of all taps j as [taps][kConvolutionGroup], padded with zeros; the
// bias (or zeros) after them.
HWY_INLINE void TransposeTaps(const Filter& filter, int64_t channel, int64_t stop, float* out) {
  std::fill_n(out, (filter.taps + 1) * kConvolutionGroup, 0.0f);
  for (int64_t i = 0; i < stop - channel; ++i) {
    const float* from = filter.weight + (channel + i) * filter.taps;
    for (int64_t j = 0; j < filter.taps; ++j) out[j * kConvolutionGroup + i] = from[j];
  }
  if (filter.bias != nullptr) {
    std::copy(filter.bias + channel, filter.bias + stop, out + filter.taps * kConvolutionGroup);
  }
}

// bias + sum_j weight_j input_j, tap by tap, for the channels at `channel`; weight: at the same.
// kTaps: their number if it is known, or 0.
template <int kTaps>
HWY_INLINE FloatVector Taps(const float* HWY_RESTRICT weight, int64_t taps,
                            const float* const* HWY_RESTRICT inputs, int64_t channel,
                            int64_t count) {
  const FloatTag d;
  if constexpr (kTaps > 0) taps = kTaps;
  FloatVector sum = hn::Load(d, weight + taps * kConvolutionGroup);
  HWY_UNROLL(4)
  for (int64_t j = 0; j < taps; ++j) {
    sum = hn::MulAdd(hn::Load(d, weight + j * kConvolutionGroup),
                     LoadPart(d, inputs[j] + channel, count), sum);
  }
  return sum;
}

template <int kTaps>
HWY_NOINLINE void ConvolveRows(const Filter& filter, int64_t begin, int64_t stop, int64_t row,
                               int64_t end, const float* const* inputs, const float* weight,
                               float* y, int64_t y_stride, bool accumulate) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t r = row; r < end; ++r) {
    for (int64_t channel = begin; channel < stop; channel += lanes) {
      const int64_t count = std::min(lanes, stop - channel);
      FloatVector value = Taps<kTaps>(weight + (channel - begin), filter.taps,
                                      inputs + r * filter.taps, channel, count);
      if (filter.silu) value = hn::Mul(value, Sigmoid(d, value));
      float* to = y + r * y_stride + channel;
      if (accumulate) value = hn::Add(value, LoadPart(d, to, count));
      StorePart(d, value, to, count);
    }
  }
}

// Rows [row, end) of channels [begin, stop): y (+)= act(...). scratch: taps + 1 groups.
void ConvolveTile(const Filter& filter, int64_t begin, int64_t stop, int64_t row, int64_t end,
                  const float* const* inputs, float* scratch, float* y, int64_t y_stride,
                  bool accumulate) {
  TransposeTaps(filter, begin, stop, scratch);
  const auto rows = filter.taps == 4 ? &ConvolveRows<4> : &ConvolveRows<0>;
  rows(filter, begin, stop, row, end, inputs, scratch, y, y_stride, accumulate);
}

// pre_grad of rows [row, end) of channels [begin, stop), and their sums over these rows:
// sums[j * channels + c] for tap j, and for the bias at j = taps. scratch: 2 (taps + 1) groups.
void ConvolveBackwardTile(const Filter& filter, int64_t begin, int64_t stop, int64_t row,
                          int64_t end, const float* const* inputs, const float* dy,
                          int64_t dy_stride, float* scratch, float* pre_grad, float* sums) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const FloatVector one = hn::Set(d, 1.0f);
  const int64_t size = (filter.taps + 1) * kConvolutionGroup;
  float* total = scratch + size;
  TransposeTaps(filter, begin, stop, scratch);
  std::fill_n(total, size, 0.0f);
  for (int64_t r = row; r < end; ++r) {
    const float* const* taps = inputs + r * filter.taps;
    for (int64_t channel = begin; channel < stop; channel += lanes) {
      const int64_t count = std::min(lanes, stop - channel);
      FloatVector g = LoadPart(d, dy + r * dy_stride + channel, count);
      if (filter.silu) {
        // (z sigma(z))' = sigma(z) (1 + z (1 - sigma(z)))
        const FloatVector z =
            Taps<0>(scratch + (channel - begin), filter.taps, taps, channel, count);
        const FloatVector s = Sigmoid(d, z);
        g = hn::Mul(g, hn::Mul(s, hn::MulAdd(z, hn::Sub(one, s), one)));
      }
      StorePart(d, g, pre_grad + r * filter.channels + channel, count);
      float* sum = total + (channel - begin);
      for (int64_t j = 0; j < filter.taps; ++j, sum += kConvolutionGroup) {
        hn::Store(hn::MulAdd(g, LoadPart(d, taps[j] + channel, count), hn::Load(d, sum)), d, sum);
      }
      hn::Store(hn::Add(hn::Load(d, sum), g), d, sum);
    }
  }
  for (int64_t j = 0; j <= filter.taps; ++j) {
    const float* from = total + j * kConvolutionGroup;
    std::copy(from, from + (stop - begin), sums + j * filter.channels + begin);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {
namespace {

HWY_EXPORT(ConvolveTile);
HWY_EXPORT(ConvolveBackwardTile);

// Elements x taps worth a task of their own: about 10 microseconds, several forks and joins.
constexpr int64_t kTaskWork = 1 << 15;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

float* floats(const Storage& storage) { return reinterpret_cast<float*>(storage.data()); }

Storage scratch_of(int64_t count) { return Storage(static_cast<size_t>(count) * sizeof(float)); }

// Calls body(scratch, first channel, last, first row, last) for all tiles; scratch: `parts`
// groups.
template <typename Body>
void for_tiles(const ConvolutionKernels::Filter& filter, int64_t rows, int64_t parts,
               const Body& body) {
  const int64_t groups = divide_up(filter.channels, kConvolutionGroup),
                tiles = divide_up(rows, kConvolutionTile);
  const int64_t tile_work =
      std::min(rows, kConvolutionTile) * std::min(filter.channels, kConvolutionGroup) * filter.taps;
  const int64_t grain = std::max<int64_t>(1, kTaskWork / std::max<int64_t>(1, tile_work));
  parallel_for(groups * tiles, grain, [&](int64_t begin, int64_t end) {
    const Storage scratch = scratch_of(parts * kConvolutionGroup);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t channel = task % groups * kConvolutionGroup,
                    row = task / groups * kConvolutionTile;
      body(floats(scratch), channel, std::min(channel + kConvolutionGroup, filter.channels), row,
           std::min(row + kConvolutionTile, rows));
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
                int64_t dy_stride, float* pre_grad, const Matrix& weight_grad,
                const Matrix& bias_grad) override {
    const int64_t tile_sums = (filter.taps + 1) * filter.channels;
    const Storage sums = scratch_of(divide_up(rows, kConvolutionTile) * tile_sums);
    for_tiles(filter, rows, 2 * (filter.taps + 1),
              [&](float* scratch, int64_t channel, int64_t stop, int64_t row, int64_t end) {
                HWY_DYNAMIC_DISPATCH(ConvolveBackwardTile)
                (filter, channel, stop, row, end, inputs, dy, dy_stride, scratch, pre_grad,
                 floats(sums) + row / kConvolutionTile * tile_sums);
              });
    // The sums of the tiles in their order, whoever computed them.
    for (int64_t j = 0; j <= filter.taps; ++j) {
      const bool is_bias = j == filter.taps;
      const Matrix& to = is_bias ? bias_grad : weight_grad;
      if (to.data == nullptr) continue;
      for (int64_t c = 0; c < filter.channels; ++c) {
        float total = 0;
        for (int64_t row = 0; row < rows; row += kConvolutionTile) {
          total += floats(sums)[row / kConvolutionTile * tile_sums + j * filter.channels + c];
        }
        float& target = is_bias ? to.data[c] : to.data[c * to.stride + j];
        target = to.accumulate ? target + total : total;
      }
    }
  }

  void backward_input(const Filter& filter, int64_t rows, const float* const* pre_grads,
                      const Matrix& x_grad) override {
    Filter linear = filter;
    linear.bias = nullptr;
    linear.silu = false;
    convolve(linear, rows, pre_grads, x_grad.data, x_grad.stride, x_grad.accumulate);
  }

 private:
  static void convolve(const Filter& filter, int64_t rows, const float* const* inputs, float* y,
                       int64_t y_stride, bool accumulate) {
    for_tiles(filter, rows, filter.taps + 1,
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
