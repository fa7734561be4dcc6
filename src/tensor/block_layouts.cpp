#include "tensor/block_layouts.h"

#include <cstring>

#include "base/float16.h"

namespace pronghorn {
namespace {

uint8_t byte_at(const std::byte* block, int64_t at) { return static_cast<uint8_t>(block[at]); }

uint16_t bits16(const std::byte* from) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return bits;
}

void put16(uint16_t bits, std::byte* to) { std::memcpy(to, &bits, sizeof(bits)); }

void put8(unsigned value, std::byte* to) { *to = static_cast<std::byte>(value); }

// In all of these, of `count` neighbours the first half is in the lower bits of bytes, the second
// in the upper ones.
void take_nibbles(const std::byte* from, int64_t count, uint8_t* codes) {
  const int64_t half = count / 2;
  for (int64_t i = 0; i < half; ++i) {
    const uint8_t both = byte_at(from, i);
    codes[i] = both & 15;
    codes[i + half] = both >> 4;
  }
}

void put_nibbles(const uint8_t* codes, int64_t count, std::byte* to) {
  const int64_t half = count / 2;
  for (int64_t i = 0; i < half; ++i) {
    put8((codes[i] & 15u) | (codes[i + half] & 15u) << 4, to + i);
  }
}

// Blocks of 32: the scale, perhaps the minimum, perhaps a fifth bit of each code, codes.
template <bool kMinimum, bool kFifth>
struct Block32 {
  static constexpr int64_t kHigh = kMinimum ? 4 : 2, kLow = kHigh + (kFifth ? 4 : 0);

  static void take_apart(const std::byte* block, BlockParts& parts) {
    parts.scale = bits16(block);
    if constexpr (kMinimum) parts.minimum = bits16(block + 2);
    take_nibbles(block + kLow, 32, parts.codes.data());
    if constexpr (kFifth) {
      uint32_t high;
      std::memcpy(&high, block + kHigh, sizeof(high));
      for (size_t i = 0; i < 32; ++i) {
        parts.codes[i] = static_cast<uint8_t>(parts.codes[i] | (high >> i & 1) << 4);
      }
    }
  }

  static void put_together(const BlockParts& parts, std::byte* block) {
    put16(parts.scale, block);
    if constexpr (kMinimum) put16(parts.minimum, block + 2);
    put_nibbles(parts.codes.data(), 32, block + kLow);
    if constexpr (kFifth) {
      uint32_t high = 0;
      for (size_t i = 0; i < 32; ++i) high |= static_cast<uint32_t>(parts.codes[i] >> 4 & 1) << i;
      std::memcpy(block + kHigh, &high, sizeof(high));
    }
  }
};

// The scale and 32 signed bytes.
struct Q8_0 {
  static void take_apart(const std::byte* block, BlockParts& parts) {
    parts.scale = bits16(block);
    for (int64_t i = 0; i < 32; ++i) {
      parts.codes[static_cast<size_t>(i)] = byte_at(block, 2 + i) ^ 0x80;
    }
  }
  static void put_together(const BlockParts& parts, std::byte* block) {
    put16(parts.scale, block);
    for (int64_t i = 0; i < 32; ++i) {
      put8(parts.codes[static_cast<size_t>(i)] ^ 0x80u, block + 2 + i);
    }
  }
};

// The scale is a power of two, 2^(e - 128), whose half as a bf16 (subnormal for e < 2) is exact.
struct Mxfp4 {
  static void take_apart(const std::byte* block, BlockParts& parts) {
    const uint8_t e = byte_at(block, 0);
    parts.scale = static_cast<uint16_t>(e < 2 ? 0x20 << e : (e - 1) << 7);
    take_nibbles(block + 1, 32, parts.codes.data());
  }
  static void put_together(const BlockParts& parts, std::byte* block) {
    const unsigned scale = parts.scale;
    put8(scale < 0x80 ? scale >> 6 : (scale >> 7) + 1, block);
    put_nibbles(parts.codes.data(), 32, block + 1);
  }
};

// Four codes of two bits a byte: byte l of 32 holds the codes l, l + 32, l + 64, l + 96 of 128.
void take_pairs(const std::byte* from, uint8_t* codes) {
  for (int64_t half = 0; half < 256; half += 128, from += 32) {
    for (int64_t l = 0; l < 32; ++l) {
      for (int64_t k = 0; k < 4; ++k) codes[half + 32 * k + l] = byte_at(from, l) >> 2 * k & 3;
    }
  }
}

void put_pairs(const uint8_t* codes, std::byte* to) {
  for (int64_t half = 0; half < 256; half += 128, to += 32) {
    for (int64_t l = 0; l < 32; ++l) {
      unsigned all = 0;
      for (int64_t k = 0; k < 4; ++k) all |= (codes[half + 32 * k + l] & 3u) << 2 * k;
      put8(all, to + l);
    }
  }
}

// Byte l of 32 holds bit k of the codes l + 32 k.
void take_bits(const std::byte* from, int bit, uint8_t* codes) {
  for (int64_t k = 0; k < 8; ++k) {
    for (int64_t l = 0; l < 32; ++l) {
      codes[32 * k + l] =
          static_cast<uint8_t>(codes[32 * k + l] | (byte_at(from, l) >> k & 1) << bit);
    }
  }
}

void put_bits(const uint8_t* codes, int bit, std::byte* to) {
  for (int64_t l = 0; l < 32; ++l) {
    unsigned all = 0;
    for (int64_t k = 0; k < 8; ++k) all |= (codes[32 * k + l] >> bit & 1u) << k;
    put8(all, to + l);
  }
}

// Scales and minima of 4 bits, 64 bytes of codes, the block's scale and minimum.
struct Q2K {
  static void take_apart(const std::byte* block, BlockParts& parts) {
    for (size_t g = 0; g < 16; ++g) {
      const uint8_t both = byte_at(block, static_cast<int64_t>(g));
      parts.factors[g] = static_cast<int8_t>(both & 15);
      parts.minimum_factors[g] = static_cast<int8_t>(-(both >> 4));
    }
    take_pairs(block + 16, parts.codes.data());
    parts.scale = bits16(block + 80);
    parts.minimum = bits16(block + 82);
  }
  static void put_together(const BlockParts& parts, std::byte* block) {
    for (size_t g = 0; g < 16; ++g) {
      const auto scale = static_cast<unsigned>(parts.factors[g]);
      const auto minimum = static_cast<unsigned>(-parts.minimum_factors[g]);
      put8((scale & 15) | (minimum & 15) << 4, block + g);
    }
    put_pairs(parts.codes.data(), block + 16);
    put16(parts.scale, block + 80);
    put16(parts.minimum, block + 82);
  }
};

// Third bits of the codes, the other two, scales of 6 bits, the block's scale.
struct Q3K {
  static void take_apart(const std::byte* block, BlockParts& parts) {
    take_pairs(block + 32, parts.codes.data());
    take_bits(block, 2, parts.codes.data());
    const std::byte* scales = block + 96;
    for (int64_t g = 0; g < 16; ++g) {
      const int low = g < 8 ? byte_at(scales, g) & 15 : byte_at(scales, g - 8) >> 4;
      const int high = byte_at(scales, 8 + g % 4) >> 2 * (g / 4) & 3;
      parts.factors[static_cast<size_t>(g)] = static_cast<int8_t>((low | high << 4) - 32);
    }
    parts.scale = bits16(block + 108);
  }
  static void put_together(const BlockParts& parts, std::byte* block) {
    put_bits(parts.codes.data(), 2, block);
    put_pairs(parts.codes.data(), block + 32);
    std::array<unsigned, 12> scales{};
    for (size_t g = 0; g < 16; ++g) {
      const auto factor = static_cast<unsigned>(parts.factors[g] + 32);
      scales[g % 8] |= (factor & 15) << (g < 8 ? 0 : 4);
      scales[8 + g % 4] |= (factor >> 4 & 3) << 2 * (g / 4);
    }
    for (size_t i = 0; i < 12; ++i) put8(scales[i], block + 96 + i);
    put16(parts.scale, block + 108);
  }
};

// Scales and minima of 6 bits in 12 bytes: the first four of each in the lower bits of four bytes;
// of the others four bits together in a byte, and two in the upper bits of the first.
void take_six_bits(const std::byte* from, BlockParts& parts) {
  for (int64_t g = 0; g < 4; ++g) {
    const auto i = static_cast<size_t>(g);
    const int scale = byte_at(from, g), minimum = byte_at(from, g + 4), both = byte_at(from, g + 8);
    parts.factors[i] = static_cast<int8_t>(scale & 63);
    parts.minimum_factors[i] = static_cast<int8_t>(-(minimum & 63));
    parts.factors[i + 4] = static_cast<int8_t>((both & 15) | scale >> 6 << 4);
    parts.minimum_factors[i + 4] = static_cast<int8_t>(-(both >> 4 | minimum >> 6 << 4));
  }
}

void put_six_bits(const BlockParts& parts, std::byte* to) {
  for (size_t g = 0; g < 4; ++g) {
    const auto scale = static_cast<unsigned>(parts.factors[g]);
    const auto minimum = static_cast<unsigned>(-parts.minimum_factors[g]);
    const auto scale4 = static_cast<unsigned>(parts.factors[g + 4]);
    const auto minimum4 = static_cast<unsigned>(-parts.minimum_factors[g + 4]);
    put8((scale & 63) | (scale4 >> 4 & 3) << 6, to + g);
    put8((minimum & 63) | (minimum4 >> 4 & 3) << 6, to + g + 4);
    put8((scale4 & 15) | (minimum4 & 15) << 4, to + g + 8);
  }
}

// The block's scale and minimum, those of its groups, perhaps fifth bits, codes.
template <bool kFifth>
struct Q45K {
  static constexpr int64_t kLow = kFifth ? 48 : 16;

  static void take_apart(const std::byte* block, BlockParts& parts) {
    parts.scale = bits16(block);
    parts.minimum = bits16(block + 2);
    take_six_bits(block + 4, parts);
    for (int64_t i = 0; i < 256; i += 64) {
      take_nibbles(block + kLow + i / 2, 64, parts.codes.data() + i);
    }
    if constexpr (kFifth) take_bits(block + 16, 4, parts.codes.data());
  }
  static void put_together(const BlockParts& parts, std::byte* block) {
    put16(parts.scale, block);
    put16(parts.minimum, block + 2);
    put_six_bits(parts, block + 4);
    for (int64_t i = 0; i < 256; i += 64) {
      put_nibbles(parts.codes.data() + i, 64, block + kLow + i / 2);
    }
    if constexpr (kFifth) put_bits(parts.codes.data(), 4, block + 16);
  }
};

// Lower four bits of the codes, upper two, signed scales of 8 bits, the block's scale.
struct Q6K {
  static void take_apart(const std::byte* block, BlockParts& parts) {
    const std::byte *low = block, *high = block + 128;
    for (int64_t half = 0; half < 256; half += 128, low += 64, high += 32) {
      uint8_t* codes = parts.codes.data() + half;
      take_nibbles(low, 128, codes);
      for (int64_t l = 0; l < 32; ++l) {
        for (int64_t k = 0; k < 4; ++k) {
          codes[32 * k + l] =
              static_cast<uint8_t>(codes[32 * k + l] | (byte_at(high, l) >> 2 * k & 3) << 4);
        }
      }
    }
    std::memcpy(parts.factors.data(), block + 192, 16);
    parts.scale = bits16(block + 208);
  }
  static void put_together(const BlockParts& parts, std::byte* block) {
    std::byte *low = block, *high = block + 128;
    for (int64_t half = 0; half < 256; half += 128, low += 64, high += 32) {
      const uint8_t* codes = parts.codes.data() + half;
      put_nibbles(codes, 128, low);
      for (int64_t l = 0; l < 32; ++l) {
        unsigned all = 0;
        for (int64_t k = 0; k < 4; ++k) all |= (codes[32 * k + l] >> 4 & 3u) << 2 * k;
        put8(all, high + l);
      }
    }
    std::memcpy(block + 192, parts.factors.data(), 16);
    put16(parts.scale, block + 208);
  }
};

// The block's scale, upper two bits of the groups' scales, lower four, codes of a table.
struct Iq4Xs {
  static void take_apart(const std::byte* block, BlockParts& parts) {
    parts.scale = bits16(block);
    const unsigned high = bits16(block + 2);
    for (int64_t g = 0; g < 8; ++g) {
      const int low = byte_at(block, 4 + g / 2) >> 4 * (g % 2) & 15;
      const int factor = low | static_cast<int>(high >> 2 * g & 3) << 4;
      parts.factors[static_cast<size_t>(g)] = static_cast<int8_t>(factor - 32);
      take_nibbles(block + 8 + 16 * g, 32, parts.codes.data() + 32 * g);
    }
  }
  static void put_together(const BlockParts& parts, std::byte* block) {
    put16(parts.scale, block);
    unsigned high = 0;
    std::array<unsigned, 4> low{};
    for (size_t g = 0; g < 8; ++g) {
      const auto factor = static_cast<unsigned>(parts.factors[g] + 32);
      high |= (factor >> 4 & 3) << 2 * g;
      low[g / 2] |= (factor & 15) << 4 * (g % 2);
      put_nibbles(parts.codes.data() + 32 * g, 32, block + 8 + 16 * g);
    }
    put16(static_cast<uint16_t>(high), block + 2);
    for (size_t i = 0; i < 4; ++i) put8(low[i], block + 4 + i);
  }
};

// -127, -104, .., 113 and the numbers of a 4-bit float doubled, each above its offset.
constexpr int kNonlinearOffset = 128, kFloatOffset = 12;
constexpr uint8_t kNonlinear[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                    129, 141, 153, 166, 181, 197, 217, 241};
constexpr uint8_t kFloat4[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

template <typename Format>
constexpr BlockLayout with(BlockLayout layout) {
  layout.take_apart = Format::take_apart;
  layout.put_together = Format::put_together;
  return layout;
}

template <typename Format>
constexpr BlockLayout of_32(int bits, int offset, bool has_minimum,
                            const uint8_t* values = nullptr) {
  BlockLayout layout;
  layout.bits = bits;
  layout.offset = offset;
  layout.has_minimum = has_minimum;
  layout.values = values;
  return with<Format>(layout);
}

template <typename Format>
constexpr BlockLayout of_256(int64_t group, int bits, int offset, bool has_minimum,
                             const uint8_t* values = nullptr) {
  BlockLayout layout = of_32<Format>(bits, offset, has_minimum, values);
  layout.block = 256;
  layout.group = group;
  layout.has_factors = true;
  return layout;
}

constexpr BlockLayout mxfp4_layout() {
  BlockLayout layout = of_32<Mxfp4>(4, kFloatOffset, false, kFloat4);
  layout.bf16_scale = true;
  return layout;
}

}  // namespace

namespace block_layouts {
constinit const BlockLayout q4_0 = of_32<Block32<false, false>>(4, 8, false);
constinit const BlockLayout q4_1 = of_32<Block32<true, false>>(4, 0, true);
constinit const BlockLayout q5_0 = of_32<Block32<false, true>>(5, 16, false);
constinit const BlockLayout q5_1 = of_32<Block32<true, true>>(5, 0, true);
constinit const BlockLayout q8_0 = of_32<Q8_0>(8, 128, false);
constinit const BlockLayout q2_k = of_256<Q2K>(16, 2, 0, true);
constinit const BlockLayout q3_k = of_256<Q3K>(16, 3, 4, false);
constinit const BlockLayout q4_k = of_256<Q45K<false>>(32, 4, 0, true);
constinit const BlockLayout q5_k = of_256<Q45K<true>>(32, 5, 0, true);
constinit const BlockLayout q6_k = of_256<Q6K>(16, 6, 32, false);
constinit const BlockLayout iq4_nl =
    of_32<Block32<false, false>>(4, kNonlinearOffset, false, kNonlinear);
constinit const BlockLayout iq4_xs = of_256<Iq4Xs>(32, 4, kNonlinearOffset, false, kNonlinear);
constinit const BlockLayout mxfp4 = mxfp4_layout();
}  // namespace block_layouts

void decode_blocks(const BlockLayout& layout, int64_t block_bytes, const std::byte* from,
                   int64_t count, float* to) {
  BlockParts parts;
  const auto convert = layout.bf16_scale ? from_bf16 : from_f16;
  for (int64_t begin = 0; begin < count; begin += layout.block, from += block_bytes) {
    layout.take_apart(from, parts);
    const float scale = convert(parts.scale), minimum = convert(parts.minimum);
    for (int64_t g = 0; g < layout.groups(); ++g, to += layout.group) {
      const auto i = static_cast<size_t>(g);
      const float s = layout.has_factors ? scale * static_cast<float>(parts.factors[i]) : scale;
      const float m =
          layout.has_factors ? minimum * static_cast<float>(parts.minimum_factors[i]) : minimum;
      const uint8_t* codes = parts.codes.data() + g * layout.group;
      for (int64_t k = 0; k < layout.group; ++k) {
        const int unsigned_value = layout.values == nullptr ? codes[k] : layout.values[codes[k]];
        to[k] = s * static_cast<float>(unsigned_value - layout.offset);
      }
      for (int64_t k = 0; layout.has_minimum && k < layout.group; ++k) to[k] += m;
    }
  }
}

}  // namespace pronghorn
