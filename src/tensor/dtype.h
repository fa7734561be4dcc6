// Element types of tensors, and the precision of products.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "base/float16.h"

namespace pronghorn {

// q8_0 and q4_0: blocks of numbers, in rows of caches alone (backend/attention.h).
enum class DType : uint8_t { f32, f16, bf16, i32, u8, q8_0, q4_0 };

// What rows of journals are held in.
inline constexpr std::array kRowTypes = {DType::f32, DType::bf16, DType::f16, DType::q8_0,
                                         DType::q4_0};

constexpr bool is_block_type(DType type) { return type == DType::q8_0 || type == DType::q4_0; }

// Numbers that are held together, of which rows are whole multiples.
constexpr int64_t kRowBlock = 32;
constexpr int64_t dtype_block(DType type) { return is_block_type(type) ? kRowBlock : 1; }

// Bytes of a number, or of a block of them.
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
    case DType::q8_0:
      return 2 + kRowBlock;
    case DType::q4_0:
      return 2 + kRowBlock / 2;
  }
  return 0;
}

// Bytes of `count` numbers, whole blocks.
constexpr int64_t dtype_bytes(DType type, int64_t count) {
  return count / dtype_block(type) * dtype_size(type);
}

constexpr std::string_view dtype_name(DType type) {
  constexpr std::string_view kNames[] = {"f32", "f16", "bf16", "i32", "u8", "q8_0", "q4_0"};
  return kNames[static_cast<int>(type)];
}

// How matrix products round their operands; they always add up in f32.
enum class Precision { f32, bf16 };

constexpr float kLargestF16 = 65504;

}  // namespace pronghorn
