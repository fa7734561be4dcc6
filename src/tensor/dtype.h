// Element types of tensors and files.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

namespace pronghorn {

enum class DType : uint8_t { f32, f16, bf16, i32, u8 };

constexpr int64_t dtype_size(DType type) {
  switch (type) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

constexpr std::string_view dtype_name(DType type) {
  constexpr std::string_view kNames[] = {"f32", "f16", "bf16", "i32", "u8"};
  return kNames[static_cast<int>(type)];
}

// The upper half of a float32: 8 bits of exponent, 7 of mantissa.
using bf16_t = uint16_t;

// Round to nearest even; NaN stays NaN.
inline bf16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16_t>((bits >> 16) | 0x40);
  return static_cast<bf16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

inline float from_bf16(bf16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// IEEE 754 half precision: 5 bits of exponent, 10 of mantissa.
using f16_t = uint16_t;
constexpr float kLargestF16 = 65504;

// Round to nearest even; beyond the range: infinity; NaN stays NaN.
inline f16_t to_f16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<f16_t>(sign | 0x7e00u);
  if (magnitude >= 0x47800000u) return static_cast<f16_t>(sign | 0x7c00u);  // 65536
  if (magnitude < 0x38800000u) {
    // Below the smallest normal number f16 counts in steps of 2^-24, as f32 does from 1/2 on.
    float shifted;
    std::memcpy(&shifted, &magnitude, sizeof(shifted));
    shifted += 0.5f;
    uint32_t steps;
    std::memcpy(&steps, &shifted, sizeof(steps));
    return static_cast<f16_t>(sign | (steps - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23);
  return static_cast<f16_t>(sign | (rounded >> 13));
}

inline float from_f16(f16_t value) {
  const uint32_t sign = (value & 0x8000u) << 16, exponent = (value >> 10) & 0x1fu;
  uint32_t bits = (value & 0x7fffu) << 13;
  float magnitude;
  if (exponent == 0) {
    bits += 113u << 23;  // 2^-14 (1 + mantissa), of which only the mantissa is meant
    std::memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude -= 0x1p-14f;
  } else {
    bits += (exponent == 0x1f ? 224u : 112u) << 23;
    std::memcpy(&magnitude, &bits, sizeof(magnitude));
  }
  uint32_t result;
  std::memcpy(&result, &magnitude, sizeof(result));
  result |= sign;
  std::memcpy(&magnitude, &result, sizeof(magnitude));
  return magnitude;
}

}  // namespace pronghorn
