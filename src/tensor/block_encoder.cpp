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

  uint8_t nearest_value(float value) const {
    if (layout_.values == nullptr) {
      const float code = std::nearbyint(value + static_cast<float>(layout_.offset));
      return static_cast<uint8_t>(
          std::clamp(code, 0.0f, static_cast<float>((1 << layout_.bits) - 1)));
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

  // extreme: the number farthest from 0, which becomes about the value farthest from 0.
  Line best_without_minimum(const float* x, float extreme) const {
    constexpr int kSteps = 9;
    Line best;
    float gain = -1;
    for (int step = -kSteps; step <= kSteps; ++step) {
      const Line trial{extreme / (least_ * (1 + 0.02f * static_cast<float>(step))), 0};
      float xv = 0, vv = 0;
      for (int64_t k = 0; k < layout_.group; ++k) {
        const float value = values_[nearest_code(x[k], trial)];
        xv += x[k] * value;
        vv += value * value;
      }
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
    // Minima that are multiples of the block's are at most 0.
    if (layout_.has_factors) low = std::min(low, 0.0f);
    if (high <= low) return {0, low};
    const auto n = static_cast<float>(layout_.group);
    float sum_x = 0;
    for (int64_t k = 0; k < layout_.group; ++k) sum_x += x[k];
    Line best{(high - low) / most_, low};
    float least_error = error_of(x, best);
    for (int step = -kSteps; step <= kSteps; ++step) {
      const Line trial{(high - low) / (most_ + most_ / 60 * static_cast<float>(step)), low};
      float sum_v = 0, vv = 0, xv = 0;
      for (int64_t k = 0; k < layout_.group; ++k) {
        const float value = values_[nearest_code(x[k], trial)];
        sum_v += value;
        vv += value * value;
        xv += x[k] * value;
      }
      const float determinant = n * vv - sum_v * sum_v;
      if (determinant <= 0) continue;
      Line line{(n * xv - sum_x * sum_v) / determinant, (vv * sum_x - sum_v * xv) / determinant};
      if (layout_.has_factors && line.minimum > 0) line = {xv / vv, 0};
      const float error = error_of(x, line);
      if (line.scale > 0 && error < least_error) {
        least_error = error;
        best = line;
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
