// Encodings of blocks: numbers that are small whole numbers times a scale which their neighbours
// share. What is the same in all of them, for kernels that compute with the whole numbers, and the
// table's entries. Sources: ggml-common.h and ggml-quants.c of ggml for the bits; OCP Microscaling
// Formats 1.0 for MXFP4.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "tensor/encoding.h"

namespace pronghorn {

constexpr int64_t kMostInBlock = 256;

// A block taken apart. Number i of the block, in group g = i / group, is
//   scale * factors[g] * value(codes[i]) + minimum * minimum_factors[g]
// in f32: first scale * factor and minimum * factor, then the product, then the sum.
struct BlockParts {
  std::array<uint8_t, kMostInBlock> codes;
  uint16_t scale = 0, minimum = 0;  // 16-bit floats
  std::array<int8_t, 16> factors, minimum_factors;
};

struct BlockLayout {
  int64_t block = 32, group = 32;  // numbers
  int bits = 4;                    // of a code
  bool has_minimum = false;        // without it the sum is omitted
  bool bf16_scale = false;         // else f16
  bool has_factors = false;        // without them all factors are 1
  // value(code) = code - offset, or, if there is a table, unsigned values[code] - offset.
  int offset = 0;
  const uint8_t* values = nullptr;  // 16 of them
  void (*take_apart)(const std::byte* block, BlockParts& parts) = nullptr;
  // The inverse.
  void (*put_together)(const BlockParts& parts, std::byte* block) = nullptr;

  int64_t groups() const { return block / group; }
};

namespace block_layouts {
extern const BlockLayout q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs,
    mxfp4;
}

// Whole blocks to f32.
void decode_blocks(const BlockLayout& layout, int64_t block_bytes, const std::byte* from,
                   int64_t count, float* to);

// The table's encodings of blocks.
namespace encodings {
extern const Encoding q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs,
    mxfp4;
}  // namespace encodings

// What an encoding's blocks are made of; null where numbers are stored one by one.
const BlockLayout* layout_of(const Encoding& encoding);

// f32 to whole blocks: scales and codes that make the sum of squared errors small.
void encode_blocks(const BlockLayout& layout, int64_t block_bytes, const float* from, int64_t count,
                   std::byte* to);

}  // namespace pronghorn
