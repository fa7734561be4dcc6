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

}  // namespace pronghorn
