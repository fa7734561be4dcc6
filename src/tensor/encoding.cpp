#include "tensor/encoding.h"

#include <cstring>
#include <utility>

#include "base/float16.h"
#include "tensor/block_layouts.h"

namespace pronghorn {
namespace {

void decode_f32(const std::byte* from, int64_t count, float* to) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

template <float (*convert)(uint16_t)>
void decode_16_bits(const std::byte* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i, from += sizeof(uint16_t)) {
    uint16_t bits;
    std::memcpy(&bits, from, sizeof(bits));
    to[i] = convert(bits);
  }
}

void encode_f32(const float* from, int64_t count, std::byte* to) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

template <uint16_t (*convert)(float)>
void encode_16_bits(const float* from, int64_t count, std::byte* to) {
  for (int64_t i = 0; i < count; ++i, to += sizeof(uint16_t)) {
    const uint16_t bits = convert(from[i]);
    std::memcpy(to, &bits, sizeof(bits));
  }
}

template <const BlockLayout& layout, int64_t block_bytes>
constexpr Encoding in_blocks(std::string_view name, std::string_view file_dtype, int64_t block) {
  constexpr auto decode = [](const std::byte* from, int64_t count, float* to) {
    decode_blocks(layout, block_bytes, from, count, to);
  };
  constexpr auto encode = [](const float* from, int64_t count, std::byte* to) {
    encode_blocks(layout, block_bytes, from, count, to);
  };
  return {name, file_dtype, "float32", block, block_bytes, decode, encode};
}

}  // namespace

namespace encodings {
constinit const Encoding f32 = {"f32", "F32", "float32", 1, 4, decode_f32, encode_f32};
constinit const Encoding bf16 = {
    "bf16", "BF16", "bfloat16", 1, 2, decode_16_bits<from_bf16>, encode_16_bits<to_bf16>};
constinit const Encoding f16 = {
    "f16", "F16", "float16", 1, 2, decode_16_bits<from_f16>, encode_16_bits<to_f16>};
constinit const Encoding q4_0 = in_blocks<block_layouts::q4_0, 18>("q4_0", "Q4_0", 32);
constinit const Encoding q4_1 = in_blocks<block_layouts::q4_1, 20>("q4_1", "Q4_1", 32);
constinit const Encoding q5_0 = in_blocks<block_layouts::q5_0, 22>("q5_0", "Q5_0", 32);
constinit const Encoding q5_1 = in_blocks<block_layouts::q5_1, 24>("q5_1", "Q5_1", 32);
constinit const Encoding q8_0 = in_blocks<block_layouts::q8_0, 34>("q8_0", "Q8_0", 32);
constinit const Encoding q2_k = in_blocks<block_layouts::q2_k, 84>("q2_k", "Q2_K", 256);
constinit const Encoding q3_k = in_blocks<block_layouts::q3_k, 110>("q3_k", "Q3_K", 256);
constinit const Encoding q4_k = in_blocks<block_layouts::q4_k, 144>("q4_k", "Q4_K", 256);
constinit const Encoding q5_k = in_blocks<block_layouts::q5_k, 176>("q5_k", "Q5_K", 256);
constinit const Encoding q6_k = in_blocks<block_layouts::q6_k, 210>("q6_k", "Q6_K", 256);
constinit const Encoding iq4_nl = in_blocks<block_layouts::iq4_nl, 18>("iq4_nl", "IQ4_NL", 32);
constinit const Encoding iq4_xs = in_blocks<block_layouts::iq4_xs, 136>("iq4_xs", "IQ4_XS", 256);
constinit const Encoding mxfp4 = in_blocks<block_layouts::mxfp4, 17>("mxfp4", "MXFP4", 32);
}  // namespace encodings

std::span<const Encoding* const> all_encodings() {
  static constexpr const Encoding* kAll[] = {
      &encodings::f32,  &encodings::bf16,   &encodings::f16,    &encodings::q4_0,
      &encodings::q4_1, &encodings::q5_0,   &encodings::q5_1,   &encodings::q8_0,
      &encodings::q2_k, &encodings::q3_k,   &encodings::q4_k,   &encodings::q5_k,
      &encodings::q6_k, &encodings::iq4_nl, &encodings::iq4_xs, &encodings::mxfp4};
  return kAll;
}

const BlockLayout* layout_of(const Encoding& encoding) {
  static constexpr std::pair<const Encoding*, const BlockLayout*> kLayouts[] = {
      {&encodings::q4_0, &block_layouts::q4_0},     {&encodings::q4_1, &block_layouts::q4_1},
      {&encodings::q5_0, &block_layouts::q5_0},     {&encodings::q5_1, &block_layouts::q5_1},
      {&encodings::q8_0, &block_layouts::q8_0},     {&encodings::q2_k, &block_layouts::q2_k},
      {&encodings::q3_k, &block_layouts::q3_k},     {&encodings::q4_k, &block_layouts::q4_k},
      {&encodings::q5_k, &block_layouts::q5_k},     {&encodings::q6_k, &block_layouts::q6_k},
      {&encodings::iq4_nl, &block_layouts::iq4_nl}, {&encodings::iq4_xs, &block_layouts::iq4_xs},
      {&encodings::mxfp4, &block_layouts::mxfp4}};
  for (const auto& [known, layout] : kLayouts) {
    if (known == &encoding) return layout;
  }
  return nullptr;
}

const Encoding* find_encoding(std::string_view dtype) {
  for (const Encoding* encoding : all_encodings()) {
    if (encoding->file_dtype == dtype) return encoding;
  }
  return nullptr;
}

}  // namespace pronghorn
