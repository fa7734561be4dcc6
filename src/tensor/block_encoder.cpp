// Numbers -> blocks. For each group of numbers the scale (and minimum) is searched that makes the
// sum of squared errors small: for codes from a few steps of different widths the best scale has a
// closed form. Then the groups' scales are rounded to factors of the block's, and the codes chosen
// anew.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/float16.h"
#include "tensor/block_layouts.h"

namespace pronghorn {
namespace {

struct Line {
  float scale = 0, minimum = 0;
};

class Encoder {
 public:
  explicit Encoder(const BlockLayout& layout) : layout_(layout) {
    const int codes = 1 << layout.bits;
    for (int code = 0; code < codes; ++code) {
      const int value = layout.values == nullptr ? code : layout.values[code];
      values_[static_cast<size_t>(code)] = static_cast<float>(value - layout.offset);
    }
    const auto first = values_.begin(), last = first + codes;
    least_ = *std::min_element(first, last);
    most_ = *std::max_element(first, last);
  }

  void encode(const float* x, BlockParts& parts) const {
    parts = {};
    std::array<Line, 16> lines;
    for (int64_t g = 0; g < layout_.groups(); ++g) {
      lines[static_cast<size_t>(g)] = best_line(x + g * layout_.group);
    }
    const float scale = block_scale(lines), minimum = block_minimum(lines);
    for (int64_t g = 0; g < layout_.groups(); ++g) {
      const auto i = static_cast<size_t>(g);
      Line line{scale, minimum};
      if (layout_.has_factors) {
        const int factor = nearest_factor(lines[i].scale, scale, least_factor(), most_factor());
        const int low = nearest_factor(lines[i].minimum, minimum, -most_factor(), 0);
        parts.factors[i] = static_cast<int8_t>(factor);
        parts.minimum_factors[i] = static_cast<int8_t>(low);
        line = {scale * static_cast<float>(factor), minimum * static_cast<float>(low)};
      }
      for (int64_t k = 0; k < layout_.group; ++k) {
        parts.codes[static_cast<size_t>(g * layout_.group + k)] =
            nearest_code(x[g * layout_.group + k], line);
      }
    }
    parts.scale = layout_.bf16_scale ? to_bf16(scale) : to_f16(scale);
    parts.minimum = to_f16(minimum);
  }

 private:
  // Factors of 4, 6 or 8 bits; where codes lie around 0 they may be negative.
  int most_factor() const {
    if (layout_.bits == 2) return 15;
    if (layout_.bits == 6) return 127;
    return layout_.has_minimum ? 63 : 31;
  }
  int least_factor() const { return layout_.has_minimum ? 0 : -most_factor() - 1; }

  static int nearest_factor(float value, float unit, int least, int most) {
    if (unit == 0) return 0;
    return static_cast<int>(std::clamp(std::nearbyint(value / unit), static_cast<float>(least),
                                       static_cast<float>(most)));
  }

  uint8_t nearest_code(float x, const Line& line) const {
    if (line.scale == 0) return nearest_value(0);
    return nearest_value((x - line.minimum) / line.scale);
  }

  // The nearest whole number, the even one of two, for 0 <= value < 2^22: what is added leaves no
  // bits for fractions. Unlike std::nearbyint it is no call on the oldest instruction sets.
  static float nearest_whole(float value) {
    constexpr float kNoFractions = 0x1.8p23f;
    return (value + kNoFractions) - kNoFractions;
  }

  uint8_t nearest_value(float value) const {
    if (layout_.values == nullptr) {
      const float code = std::clamp(value + static_cast<float>(layout_.offset), 0.0f,
                                    static_cast<float>((1 << layout_.bits) - 1));
      return static_cast<uint8_t>(nearest_whole(code));
    }
    size_t best = 0;
    for (size_t code = 1; code < 16; ++code) {
      if (std::abs(values_[code] - value) < std::abs(values_[best] - value)) best = code;
    }
    return static_cast<uint8_t>(best);
  }

  Line best_line(const float* x) const {
    const auto [low, high] = std::minmax_element(x, x + layout_.group);
    const float most = std::max(std::abs(*low), std::abs(*high));
    // Also for what is not a number, of which nothing can be kept.
    if (!(most > 0) || !std::isfinite(most)) return {};
    if (layout_.bf16_scale) return best_power_of_two(x, most);
    if (layout_.bits == 8) return {most / most_, 0};
    return layout_.has_minimum ? best_with_minimum(x, *low, *high)
                               : best_without_minimum(x, std::abs(*low) > *high ? *low : *high);
  }

  float error_of(const float* x, const Line& line) const {
    float error = 0;
    for (int64_t k = 0; k < layout_.group; ++k) {
      const float difference = line.scale * values_[nearest_code(x[k], line)] + line.minimum - x[k];
      error += difference * difference;
    }
    return error;
  }

  Line best_power_of_two(const float* x, float most) const {
    Line best;
    float least_error = std::numeric_limits<float>::infinity();
    const int exponent = std::ilogb(most / most_);
    for (int e = exponent; e <= exponent + 1; ++e) {
      const Line line{std::ldexp(1.0f, std::clamp(e, -128, 126)), 0};
      const float error = error_of(x, line);
      if (error < least_error) {
        least_error = error;
        best = line;
      }
    }
    return best;
  }

  // What follows looks at several lines at once: numbers one by one and lines side by side, so that
  // each sum is in the order of the numbers and a vector register holds sums of several lines.
  template <size_t kLines>
  struct Lines {
    std::array<float, kLines> scales, minima;
  };

  // For each line the value of x's nearest code.
  template <size_t kLines>
  std::array<float, kLines> nearest_values(float x, const Lines<kLines>& lines) const {
    std::array<float, kLines> values;
    if (layout_.values != nullptr) {
      for (size_t i = 0; i < kLines; ++i) {
        values[i] = values_[nearest_code(x, {lines.scales[i], lines.minima[i]})];
      }
      return values;
    }
    const auto offset = static_cast<float>(layout_.offset);
    const auto most = static_cast<float>((1 << layout_.bits) - 1);
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < kLines; ++i) {
      // By infinity where the scale is 0: the code of 0.
      const float divisor = lines.scales[i] == 0 ? kInfinity : lines.scales[i];
      const float code = (x - lines.minima[i]) / divisor + offset;
      values[i] = nearest_whole(code < 0 ? 0 : (code > most ? most : code)) - offset;
    }
    return values;
  }

  // Sums over a group: of the values, their squares, and their products with the numbers.
  template <size_t kLines>
  struct Sums {
    std::array<float, kLines> v{}, vv{}, xv{};
  };
  template <size_t kLines>
  Sums<kLines> sums_of(const float* x, const Lines<kLines>& lines) const {
    Sums<kLines> sums;
    for (int64_t k = 0; k < layout_.group; ++k) {
      const auto values = nearest_values(x[k], lines);
      for (size_t i = 0; i < kLines; ++i) {
        sums.v[i] += values[i];
        sums.vv[i] += values[i] * values[i];
        sums.xv[i] += x[k] * values[i];
      }
    }
    return sums;
  }

  template <size_t kLines>
  std::array<float, kLines> errors_of(const float* x, const Lines<kLines>& lines) const {
    std::array<float, kLines> errors{};
    for (int64_t k = 0; k < layout_.group; ++k) {
      const auto values = nearest_values(x[k], lines);
      for (size_t i = 0; i < kLines; ++i) {
        const float difference = lines.scales[i] * values[i] + lines.minima[i] - x[k];
        errors[i] += difference * difference;
      }
    }
    return errors;
  }

  // extreme: the number farthest from 0, which becomes about the value farthest from 0.
  Line best_without_minimum(const float* x, float extreme) const {
    constexpr int kSteps = 9;
    constexpr size_t kLines = 2 * kSteps + 1;
    Lines<kLines> trials{};
    for (size_t i = 0; i < kLines; ++i) {
      const int step = static_cast<int>(i) - kSteps;
      trials.scales[i] = extreme / (least_ * (1 + 0.02f * static_cast<float>(step)));
    }
    const auto sums = sums_of(x, trials);
    Line best;
    float gain = -1;
    for (size_t i = 0; i < kLines; ++i) {
      const float xv = sums.xv[i], vv = sums.vv[i];
      // The error of the best scale xv / vv for these codes is the sum of x^2 less this.
      if (vv > 0 && xv * xv / vv > gain) {
        gain = xv * xv / vv;
        best.scale = xv / vv;
      }
    }
    return best;
  }

  Line best_with_minimum(const float* x, float low, float high) const {
    constexpr int kSteps = 12;
    constexpr size_t kLines = 2 * kSteps + 1;
    // Minima that are multiples of the block's are at most 0.
    if (layout_.has_factors) low = std::min(low, 0.0f);
    if (high <= low) return {0, low};
    const auto n = static_cast<float>(layout_.group);
    float sum_x = 0;
    for (int64_t k = 0; k < layout_.group; ++k) sum_x += x[k];
    Lines<kLines> trials;
    for (size_t i = 0; i < kLines; ++i) {
      const int step = static_cast<int>(i) - kSteps;
      trials.scales[i] = (high - low) / (most_ + most_ / 60 * static_cast<float>(step));
      trials.minima[i] = low;
    }
    const auto sums = sums_of(x, trials);
    // The best line for the codes of each; where they are all the same, none.
    Lines<kLines> fits{};
    for (size_t i = 0; i < kLines; ++i) {
      const float sum_v = sums.v[i], vv = sums.vv[i], xv = sums.xv[i];
      const float determinant = n * vv - sum_v * sum_v;
      if (determinant <= 0) continue;
      Line line{(n * xv - sum_x * sum_v) / determinant, (vv * sum_x - sum_v * xv) / determinant};
      if (layout_.has_factors && line.minimum > 0) line = {xv / vv, 0};
      fits.scales[i] = line.scale;
      fits.minima[i] = line.minimum;
    }
    const auto errors = errors_of(x, fits);
    Line best{(high - low) / most_, low};
    float least_error = error_of(x, best);
    for (size_t i = 0; i < kLines; ++i) {
      if (fits.scales[i] > 0 && errors[i] < least_error) {
        least_error = errors[i];
        best = {fits.scales[i], fits.minima[i]};
      }
    }
    return best;
  }

  // Rounded to what the block stores.
  float stored(float value) const {
    constexpr float kMost = 65504;
    if (layout_.bf16_scale) return value;
    return from_f16(to_f16(std::clamp(value, -kMost, kMost)));
  }

  float block_scale(const std::array<Line, 16>& lines) const {
    if (!layout_.has_factors) return stored(lines[0].scale);
    float extreme = 0;
    for (const Line& line : lines) {
      if (std::abs(line.scale) > std::abs(extreme)) extreme = line.scale;
    }
    return stored(extreme /
                  static_cast<float>(layout_.has_minimum ? most_factor() : least_factor()));
  }

  float block_minimum(const std::array<Line, 16>& lines) const {
    if (!layout_.has_factors) return stored(lines[0].minimum);
    float least = 0;
    for (const Line& line : lines) least = std::min(least, line.minimum);
    return stored(-least / static_cast<float>(most_factor()));
  }

  const BlockLayout& layout_;
  std::array<float, 256> values_{};
  float least_ = 0, most_ = 0;
};

}  // namespace

void encode_blocks(const BlockLayout& layout, int64_t block_bytes, const float* from, int64_t count,
                   std::byte* to) {
  const Encoder encoder(layout);
  BlockParts parts;
  for (int64_t begin = 0; begin < count; begin += layout.block, to += block_bytes) {
    encoder.encode(from + begin, parts);
    layout.put_together(parts, to);
  }
}

}  // namespace pronghorn
