// Encodings: how the numbers of a weight lie in memory and in files.
//
// An encoding is data: a row of the table in encoding.cpp. A new one needs its decode() to be
// complete; what reads weights (backend/cpu/packed_weight.h) then works with it, and kernels that
// know it can follow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace pronghorn {

// Compared by address; objects live as long as the process.
struct Encoding {
  std::string_view name;         // "bf16"
  std::string_view file_dtype;   // what safetensors files call it: "BF16"
  std::string_view torch_dtype;  // what configurations of published checkpoints call it
  // Numbers that are stored together, neighbours in a row, and the bytes that they take. A row is
  // whole blocks. 1, or an even number that divides 512.
  int64_t block = 1;
  int64_t block_bytes = 0;
  // `count` numbers, whole blocks, to f32. `from` need not be aligned.
  void (*decode)(const std::byte* from, int64_t count, float* to) = nullptr;
  // The opposite: rounded to nearest even, or to blocks with small errors. Null: there is none.
  void (*encode)(const float* from, int64_t count, std::byte* to) = nullptr;

  // Bytes of `count` numbers, whole blocks.
  constexpr int64_t bytes(int64_t count) const { return count / block * block_bytes; }
};

namespace encodings {
extern const Encoding f32, bf16, f16;
}

// All encodings that files may have.
std::span<const Encoding* const> all_encodings();

// The encoding that safetensors files call `dtype`; null if there is none.
const Encoding* find_encoding(std::string_view dtype);

}  // namespace pronghorn
