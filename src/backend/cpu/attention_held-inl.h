// Scores and weighted sums of rows in blocks, from their whole numbers as they are held
// (backend/attention.h). Included once for each instruction set, see simd-inl.h.
#if defined(PRONGHORN_ATTENTION_HELD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_ATTENTION_HELD_INL_H_
#undef PRONGHORN_ATTENTION_HELD_INL_H_
#else
#define PRONGHORN_ATTENTION_HELD_INL_H_
#endif

#include "backend/cpu/attention_scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// One head's part of the rows of a tile.
struct HeldRows {
  const std::byte* data = nullptr;
  int64_t stride = 0;  // bytes from one to the next

  HeldRows(DType type, const std::byte* rows, int64_t first_column, int64_t row_width)
      : data(rows + dtype_bytes(type, first_column)), stride(dtype_bytes(type, row_width)) {}
};

// Queries in whole numbers of 16 bits: a query is its scale times its codes. Sums of their products
// with a block's codes are exact in 32 bits.
struct WholeQueries {
  float* scales;   // [queries]
  int16_t* codes;  // [queries, dim]

  // In queries (dim / 2 + 1) floats.
  WholeQueries(int64_t queries, float* memory)
      : scales(memory), codes(reinterpret_cast<int16_t*>(memory + queries)) {}
};

HWY_INLINE void RoundQueries(int64_t queries, int64_t dim, const float* q, float* memory) {
  constexpr float kMost = 32767;
  const WholeQueries whole(queries, memory);
  for (int64_t r = 0; r < queries; ++r) {
    float largest = 0;
    for (int64_t i = 0; i < dim; ++i) {
      const float size = std::fabs(q[r * dim + i]);
      if (!(size <= largest)) largest = size;  // what is no number stays
    }
    const bool usable = largest > std::numeric_limits<float>::min() && std::isfinite(largest);
    const float factor = usable ? kMost / largest : 0;
    whole.scales[r] = usable || largest == 0 ? largest / kMost : largest - largest;
    for (int64_t i = 0; i < dim; ++i) {
      const float code = usable ? std::nearbyint(q[r * dim + i] * factor) : 0;
      whole.codes[r * dim + i] = static_cast<int16_t>(code);
    }
  }
}

using CodeTag = hn::CappedTag<int16_t, 16>;  // half a block at most
using ProductTag = hn::RepartitionToWide<CodeTag>;
using ProductFloatTag = hn::RebindToFloat<ProductTag>;

// Sums over the lanes of the products of a block's codes and a query's.
template <DType kType>
HWY_INLINE hn::Vec<ProductFloatTag> BlockProducts(const std::byte* block,
                                                  const int16_t* HWY_RESTRICT query) {
  const CodeTag d;
  const ProductTag wide;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const std::byte* held = block + sizeof(f16_t);
  auto sum = hn::Zero(wide), other = hn::Zero(wide);
  if constexpr (kType == DType::q8_0) {
    const hn::Rebind<int8_t, CodeTag> narrow;
    for (int64_t i = 0; i < kRowBlock; i += lanes) {
      const auto code =
          hn::PromoteTo(d, hn::LoadU(narrow, reinterpret_cast<const int8_t*>(held) + i));
      sum = hn::ReorderWidenMulAccumulate(wide, code, hn::LoadU(d, query + i), sum, other);
    }
  } else {
    const hn::Rebind<uint8_t, CodeTag> narrow;
    const auto mask = hn::Set(d, 15), zero = hn::Set(d, 8);
    constexpr int64_t kHalf = kRowBlock / 2;
    for (int64_t i = 0; i < kHalf; i += lanes) {
      const auto both =
          hn::PromoteTo(d, hn::LoadU(narrow, reinterpret_cast<const uint8_t*>(held) + i));
      const auto low = hn::Sub(hn::And(both, mask), zero);
      const auto high = hn::Sub(hn::ShiftRight<4>(both), zero);
      sum = hn::ReorderWidenMulAccumulate(wide, low, hn::LoadU(d, query + i), sum, other);
      sum = hn::ReorderWidenMulAccumulate(wide, high, hn::LoadU(d, query + kHalf + i), sum, other);
    }
  }
  return hn::ConvertTo(ProductFloatTag(), hn::Add(sum, other));
}

// Scores of all queries and the first `count` keys of a tile, as ScoreTile().
template <DType kType>
HWY_INLINE void ScoreHeld(int64_t dim, int64_t queries, const WholeQueries& q, const HeldRows& keys,
                          int64_t count, float* scores, RowsAhead* ahead) {
  const ProductFloatTag d;
  const int64_t blocks = dim / kRowBlock;
  for (int64_t j = 0; j < count; j += 4) {
    if (ahead != nullptr) ahead->ask();
    for (int64_t r = 0; r < queries; ++r) {
      hn::Vec<ProductFloatTag> sum[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
      for (int c = 0; c < 4 && j + c < count; ++c) {
        const std::byte* block = keys.data + (j + c) * keys.stride;
        for (int64_t b = 0; b < blocks; ++b, block += dtype_size(kType)) {
          const auto products = BlockProducts<kType>(block, q.codes + r * dim + b * kRowBlock);
          sum[c] = hn::MulAdd(hn::Set(d, BlockScale(block)), products, sum[c]);
        }
      }
      float* to = scores + r * kAttentionTile + j;
      SumFour(d, sum[0], sum[1], sum[2], sum[3], to);
      for (int c = 0; c < 4; ++c) to[c] *= q.scales[r];
    }
  }
}

// o [R rows, one block] += weights values.
template <DType kType, int R>
HWY_INLINE void AddHeldBlock(int64_t keys, const float* HWY_RESTRICT weights,
                             const std::byte* HWY_RESTRICT block, int64_t stride,
                             float* HWY_RESTRICT o, int64_t o_stride, RowsAhead& ahead) {
  const hn::CappedTag<float, 16> d;
  using Tag = hn::CappedTag<float, 16>;
  const hn::RebindToSigned<Tag> whole;
  constexpr int64_t kLanes = hn::MaxLanes(Tag()), kHalf = kRowBlock / 2;
  constexpr int kVectors = kRowBlock / kLanes;
  hn::Vec<Tag> sum[R][kVectors];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(d);
  }
  for (int64_t j = 0; j < keys; ++j, block += stride) {
    if (j % 4 == 0) ahead.ask();
    const float scale = BlockScale(block);
    hn::Vec<Tag> weight[R];
    for (int r = 0; r < R; ++r) weight[r] = hn::Set(d, weights[r * kAttentionTile + j] * scale);
    const std::byte* held = block + sizeof(f16_t);
    for (int v = 0; v < kVectors; ++v) {
      auto code = hn::Zero(whole);
      if constexpr (kType == DType::q8_0) {
        const hn::Rebind<int8_t, Tag> narrow;
        code = hn::PromoteTo(whole,
                             hn::LoadU(narrow, reinterpret_cast<const int8_t*>(held) + v * kLanes));
      } else {
        const hn::Rebind<uint8_t, Tag> narrow;
        const auto both = hn::PromoteTo(
            whole, hn::LoadU(narrow, reinterpret_cast<const uint8_t*>(held) + v * kLanes % kHalf));
        code = v * kLanes < kHalf ? hn::And(both, hn::Set(whole, 15)) : hn::ShiftRight<4>(both);
        code = hn::Sub(code, hn::Set(whole, 8));
      }
      const auto value = hn::ConvertTo(d, code);
      for (int r = 0; r < R; ++r) sum[r][v] = hn::MulAdd(weight[r], value, sum[r][v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      float* const to = o + r * o_stride + v * kLanes;
      hn::StoreU(hn::Add(sum[r][v], hn::LoadU(d, to)), d, to);
    }
  }
}

// o [rows, dim] += weights [rows, kAttentionTile] values [keys, dim], which stay turned.
template <DType kType>
HWY_INLINE void AddHeld(int64_t rows, int64_t dim, int64_t keys, const float* weights,
                        const HeldRows& values, float* o, RowsAhead& ahead) {
  for (int64_t some = 0; rows > 0; rows -= some) {
    some = rows == 4 ? 2 : std::min<int64_t>(rows, 3);
    for (int64_t c = 0; c < dim; c += kRowBlock) {
      const std::byte* block = values.data + dtype_bytes(kType, c);
      if (some == 1) AddHeldBlock<kType, 1>(keys, weights, block, values.stride, o + c, dim, ahead);
      if (some == 2) AddHeldBlock<kType, 2>(keys, weights, block, values.stride, o + c, dim, ahead);
      if (some == 3) AddHeldBlock<kType, 3>(keys, weights, block, values.stride, o + c, dim, ahead);
    }
    weights += some * kAttentionTile;
    o += some * dim;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_ATTENTION_HELD_INL_H_
