// Pieces of tiled attention on vectors. Included once for each instruction set, see simd-inl.h.
#if defined(PRONGHORN_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_ATTENTION_INL_H_
#undef PRONGHORN_ATTENTION_INL_H_
#else
#define PRONGHORN_ATTENTION_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "backend/cpu/attention_tasks.h"
#include "backend/cpu/row_blocks-inl.h"
#include "backend/cpu/simd-inl.h"
#include "backend/cpu/tanh-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// to[i] = factor from[i]
HWY_INLINE void ScaleInto(int64_t n, float factor, const float* HWY_RESTRICT from,
                          float* HWY_RESTRICT to) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto scale = hn::Set(d, factor);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(hn::Mul(hn::LoadU(d, from + i), scale), d, to + i);
  for (; i < n; ++i) to[i] = from[i] * factor;
}

// The same in place.
HWY_INLINE void ScaleBy(int64_t n, float factor, float* values) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto scale = hn::Set(d, factor);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, values + i), scale), d, values + i);
  }
  for (; i < n; ++i) values[i] *= factor;
}

// to[rows x columns], contiguous, = factor from: neighbouring rows of one head are a power of two
// apart often enough that reading them in place would thrash the first-level cache.
HWY_INLINE void PackRows(int64_t rows, int64_t columns, float factor, const float* from,
                         int64_t stride, float* to) {
  for (int64_t i = 0; i < rows; ++i)
    ScaleInto(columns, factor, from + i * stride, to + i * columns);
}

// to[columns x kAttentionTile] = from[rows x columns] transposed, rows <= kAttentionTile; the rest
// is filled with zeros.
HWY_INLINE void PackTransposed(int64_t rows, int64_t columns, const float* from, int64_t stride,
                               float* HWY_RESTRICT to) {
  constexpr int64_t kBlock = 16;  // columns: a cache line of `from`
  for (int64_t c0 = 0; c0 < columns; c0 += kBlock) {
    const int64_t c1 = std::min(columns, c0 + kBlock);
    for (int64_t j = 0; j < rows; ++j) {
      const float* HWY_RESTRICT row = from + j * stride;
      for (int64_t c = c0; c < c1; ++c) to[c * kAttentionTile + j] = row[c];
    }
  }
  if (rows == kAttentionTile) return;
  for (int64_t c = 0; c < columns; ++c) {
    std::fill(to + c * kAttentionTile + rows, to + (c + 1) * kAttentionTile, 0.0f);
  }
}

// Numbers as they are held -> f32. All conversions are exact.
HWY_INLINE void ConvertRow(int64_t n, const hwy::bfloat16_t* HWY_RESTRICT from,
                           float* HWY_RESTRICT to) {
  const FloatTag d;
  const hn::RebindToUnsigned<FloatTag> wide;
  const hn::Rebind<uint16_t, FloatTag> narrow;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto* HWY_RESTRICT bits = reinterpret_cast<const uint16_t*>(from);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto upper = hn::ShiftLeft<16>(hn::PromoteTo(wide, hn::LoadU(narrow, bits + i)));
    hn::StoreU(hn::BitCast(d, upper), d, to + i);
  }
  for (; i < n; ++i) to[i] = from_bf16(bits[i]);
}

HWY_INLINE void ConvertRow(int64_t n, const hwy::float16_t* HWY_RESTRICT from,
                           float* HWY_RESTRICT to) {
  int64_t i = 0;
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
  const FloatTag d;
  const hn::Rebind<hwy::float16_t, FloatTag> narrow;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(hn::PromoteTo(d, hn::LoadU(narrow, from + i)), d, to + i);
  }
#endif
  const auto* HWY_RESTRICT bits = reinterpret_cast<const uint16_t*>(from);
  for (; i < n; ++i) to[i] = from_f16(bits[i]);
}

template <class T>
HWY_INLINE ConstMatrix ConvertRows(int64_t rows, int64_t columns, const T* from, int64_t stride,
                                   float* to) {
  for (int64_t i = 0; i < rows; ++i) ConvertRow(columns, from + i * stride, to + i * columns);
  return {to, columns};
}

// Columns first_column ... of rows that are held as `type`, in f32: where they are, or converted
// to `scratch` [rows, columns]. Blocks stay turned.
HWY_INLINE ConstMatrix FloatRows(DType type, const std::byte* from, int64_t first_column,
                                 int64_t stride, int64_t rows, int64_t columns, float* scratch) {
  from += dtype_bytes(type, first_column);
  switch (type) {
    case DType::bf16:
      return ConvertRows(rows, columns, reinterpret_cast<const hwy::bfloat16_t*>(from), stride,
                         scratch);
    case DType::f16:
      return ConvertRows(rows, columns, reinterpret_cast<const hwy::float16_t*>(from), stride,
                         scratch);
    case DType::q8_0:
    case DType::q4_0:
      for (int64_t i = 0; i < rows; ++i, from += dtype_bytes(type, stride)) {
        if (type == DType::q8_0) LoadQ8Blocks(columns, from, scratch + i * columns);
        if (type == DType::q4_0) LoadQ4Blocks(columns, from, scratch + i * columns);
      }
      return {scratch, columns};
    default:
      return {reinterpret_cast<const float*>(from), stride};
  }
}

// scores = soft_cap tanh(scores / soft_cap), a tile of one row. Where `slope` is not null, it
// becomes the derivative: 1 - tanh^2.
HWY_INLINE void CapScores(float soft_cap, float* HWY_RESTRICT scores, float* HWY_RESTRICT slope) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto cap = hn::Set(d, soft_cap), inverse = hn::Set(d, 1 / soft_cap);
  for (int64_t j = 0; j < kAttentionTile; j += lanes) {
    const auto t = ExactTanh(d, hn::Mul(hn::LoadU(d, scores + j), inverse));
    hn::StoreU(hn::Mul(cap, t), d, scores + j);
    if (slope != nullptr) hn::StoreU(hn::NegMulAdd(t, t, hn::Set(d, 1.0f)), d, slope + j);
  }
}

// Sets the scores of one row with the keys of a tile that it does not see to -inf. The tile has
// `count` keys, the first of index tile_begin.
HWY_INLINE void MaskRow(const KeyRange& visible, int64_t tile_begin, int64_t count, float* scores) {
  const int64_t begin = std::clamp<int64_t>(visible.begin - tile_begin, 0, kAttentionTile);
  const int64_t end = std::max(begin, std::min(visible.end - tile_begin, count));
  const int64_t first =
      std::clamp<int64_t>(std::min(visible.prefix, visible.end) - tile_begin, 0, begin);
  std::fill(scores + first, scores + begin, kMinusInfinity);
  std::fill(scores + end, scores + kAttentionTile, kMinusInfinity);
}

// The same for the keys of a tile that a row's list leaves out.
HWY_INLINE void MaskUnlisted(const cpu_attention::RowList& list, int64_t block, int64_t tile_begin,
                             float* scores) {
  const int32_t* entry = cpu_attention::first_listed(list, block, tile_begin);
  if (block >= kAttentionTile && entry != list.end) return;
  int64_t next = 0;  // keys before it are done
  for (; entry != list.end && *entry * block < tile_begin + kAttentionTile; ++entry) {
    const int64_t begin = *entry * block - tile_begin;
    std::fill(scores + next, scores + begin, kMinusInfinity);
    next = begin + block;
  }
  std::fill(scores + next, scores + kAttentionTile, kMinusInfinity);
}

// Scores of a row with keys below `prefix`, in place of others.
HWY_INLINE void TakePrefix(int64_t prefix, int64_t tile_begin, const float* from, float* scores) {
  const int64_t count = std::clamp<int64_t>(prefix - tile_begin, 0, kAttentionTile);
  std::copy(from, from + count, scores);
}

// Rows `rows` of a contiguous matrix, one after another.
HWY_INLINE void GatherRows(int64_t count, const int32_t* rows, int64_t columns, const float* from,
                           float* to) {
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(from + rows[i] * columns, columns, to + i * columns);
  }
}

// to[rows[i]] += from[i]
HWY_INLINE void ScatterAddRows(int64_t count, const int32_t* rows, int64_t columns,
                               const float* from, float* to, int64_t stride) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < count; ++i) {
    const float* HWY_RESTRICT source = from + i * columns;
    float* HWY_RESTRICT target = to + rows[i] * stride;
    int64_t c = 0;
    for (; c + lanes <= columns; c += lanes) {
      hn::StoreU(hn::Add(hn::LoadU(d, target + c), hn::LoadU(d, source + c)), d, target + c);
    }
    for (; c < columns; ++c) target[c] += source[c];
  }
}

HWY_INLINE float ExpOne(float x) {
  const FloatTag d;
  return hn::GetLane(Exp(d, hn::Set(d, x)));
}

HWY_INLINE float LogOne(float x) {
  const FloatTag d;
  return hn::GetLane(Log(d, hn::Set(d, x)));
}

// One row's step of online softmax over a tile: replaces kAttentionTile scores by exp(score - m),
// with m the new running maximum, adds them to `sum`, and returns what the old sums of values have
// to be multiplied by.
HWY_INLINE float OnlineSoftmaxRow(float* HWY_RESTRICT scores, float& maximum, float& sum) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto largest = hn::LoadU(d, scores);
  for (int64_t j = lanes; j < kAttentionTile; j += lanes) {
    largest = hn::Max(largest, hn::LoadU(d, scores + j));
  }
  const float tile_maximum = hn::GetLane(hn::MaxOfLanes(d, largest));
  float factor = 1;
  if (tile_maximum > maximum) {
    factor = ExpOne(maximum - tile_maximum);
    maximum = tile_maximum;
  } else if (tile_maximum == kMinusInfinity) {
    std::fill(scores, scores + kAttentionTile, 0.0f);
    return 1;
  }
  const auto shift = hn::Set(d, maximum);
  auto total = hn::Zero(d);
  for (int64_t j = 0; j < kAttentionTile; j += lanes) {
    const auto p = Exp(d, hn::Sub(hn::LoadU(d, scores + j), shift));
    hn::StoreU(p, d, scores + j);
    total = hn::Add(total, p);
  }
  sum = sum * factor + hn::GetLane(hn::SumOfLanes(d, total));
  return factor;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_ATTENTION_INL_H_
