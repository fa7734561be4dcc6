#include "tensor/encoding.h"

#include <cstring>

#include "base/float16.h"

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

}  // namespace

namespace encodings {
constinit const Encoding f32 = {"f32", "F32", "float32", 1, 4, decode_f32, encode_f32};
constinit const Encoding bf16 = {
    "bf16", "BF16", "bfloat16", 1, 2, decode_16_bits<from_bf16>, encode_16_bits<to_bf16>};
constinit const Encoding f16 = {
    "f16", "F16", "float16", 1, 2, decode_16_bits<from_f16>, encode_16_bits<to_f16>};
}  // namespace encodings

std::span<const Encoding* const> all_encodings() {
  static constexpr const Encoding* kAll[] = {&encodings::f32, &encodings::bf16, &encodings::f16};
  return kAll;
}

const Encoding* find_encoding(std::string_view dtype) {
  for (const Encoding* encoding : all_encodings()) {
    if (encoding->file_dtype == dtype) return encoding;
  }
  return nullptr;
}

}  // namespace pronghorn
