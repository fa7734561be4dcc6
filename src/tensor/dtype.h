// Element types of tensors, and the precision of products.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/float16.h"

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

// How matrix products round their operands; they always add up in f32.
enum class Precision { f32, bf16 };

constexpr float kLargestF16 = 65504;

}  // namespace pronghorn
