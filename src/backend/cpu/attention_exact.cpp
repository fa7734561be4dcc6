// Steps of few tokens: each row's bits depend on its query and on the keys and values it sees.
//
// A row's keys are walked in tiles at absolute indexes, and every sum of a row runs over fixed
// lanes in a fixed order: rows computed together only share loads. Keys that a row does not see
// weigh exactly 0, which changes no sum.
#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention_exact.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/attention_held-inl.h"
#include "backend/cpu/attention_scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Rows up to which AddValues() has tiles of its own; more fill those of SmallMatmul().
constexpr int64_t kFewRows = 5;

// The rows of a tile, as far as some heads read them.
HWY_INLINE RowsAhead AheadOf(const AttentionShape& shape, const AttentionUnit& unit,
                             int64_t kv_head, int64_t heads, const KeyTile& tile) {
  const auto bytes = [&](int64_t numbers) { return dtype_bytes(unit.type, numbers); };
  const int64_t key = bytes(shape.key_dim), value = bytes(shape.value_dim);
  RowsAhead ahead;
  ahead.keys = {tile.keys + kv_head * key, heads * key, bytes(unit.key_stride)};
  if (!shape.value_in_key) {
    ahead.values = {tile.values + kv_head * value, heads * value, bytes(unit.value_stride)};
  }
  ahead.rows = tile.count;
  // ScoreTile() and, of few rows, AddValues() ask with every fourth key.
  const int64_t asks = unit.rows * (shape.heads / shape.kv_heads) > kFewRows ? 1 : 2;
  ahead.steps = asks * heads * kAttentionTile / 4;
  return ahead;
}

// o [R rows, V vectors] += weights values: what SmallMatmul() computes, in tiles for few rows,
// which need several vectors of each to hide the latency of their sums.
template <int R, int V>
HWY_INLINE void AddValuesTile(int64_t keys, const float* HWY_RESTRICT weights,
                              const float* HWY_RESTRICT values, int64_t stride,
                              float* HWY_RESTRICT o, int64_t o_stride, RowsAhead& ahead) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  FloatVector sum[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) sum[r][v] = hn::Zero(d);
  }
  for (int64_t j = 0; j < keys; ++j, values += stride) {
    if (j % 4 == 0) ahead.ask();
    FloatVector weight[R];
    for (int r = 0; r < R; ++r) weight[r] = hn::Set(d, weights[r * kAttentionTile + j]);
    for (int v = 0; v < V; ++v) {
      const auto value = hn::LoadU(d, values + v * lanes);
      for (int r = 0; r < R; ++r) sum[r][v] = hn::MulAdd(weight[r], value, sum[r][v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      float* const to = o + r * o_stride + v * lanes;
      hn::StoreU(hn::Add(sum[r][v], hn::LoadU(d, to)), d, to);
    }
  }
}

template <int R, int V = R == 1 ? 8 : 4>
HWY_INLINE void AddValuesRows(int64_t dim, int64_t keys, const float* weights, const float* values,
                              int64_t stride, float* o, int64_t o_stride, RowsAhead& ahead) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  int64_t c = 0;
  for (; c + V * lanes <= dim; c += V * lanes) {
    AddValuesTile<R, V>(keys, weights, values + c, stride, o + c, o_stride, ahead);
  }
  if (c == dim) return;
  if constexpr (V > 1) {
    AddValuesRows<R, V / 2>(dim - c, keys, weights, values + c, stride, o + c, o_stride, ahead);
  } else {
    SmallMatmul(R, dim - c, keys, weights, kAttentionTile, 1, values + c, stride, o + c, o_stride,
                true);
  }
}

// o [rows, dim] += weights [rows, kAttentionTile] values [keys, dim]
HWY_INLINE void AddValues(int64_t rows, int64_t dim, int64_t keys, const float* weights,
                          const ConstMatrix& values, float* o, RowsAhead& ahead) {
  if (rows > kFewRows) {
    SmallMatmul(rows, dim, keys, weights, kAttentionTile, 1, values.data, values.stride, o, dim,
                true);
    return;
  }
  for (int64_t some = 0; rows > 0; rows -= some) {
    some = std::min<int64_t>(rows == 4 ? 2 : 3, rows);
    if (some == 1) AddValuesRows<1>(dim, keys, weights, values.data, values.stride, o, dim, ahead);
    if (some == 2) AddValuesRows<2>(dim, keys, weights, values.data, values.stride, o, dim, ahead);
    if (some == 3) AddValuesRows<3>(dim, keys, weights, values.data, values.stride, o, dim, ahead);
    weights += some * kAttentionTile;
    o += some * dim;
  }
}

// Queries of the rows of a unit and the heads of a group, scaled: [rows, group, key_dim]. For keys
// in blocks they are turned and rounded: WholeQueries, in as much memory.
HWY_INLINE void ScaleQueries(const AttentionShape& shape, const AttentionUnit& unit,
                             int64_t kv_head, const ConstMatrix& from, float* to) {
  const int64_t group = shape.heads / shape.kv_heads, width = group * shape.key_dim;
  const bool rounds = is_block_type(unit.type);
  const Storage memory(rounds ? static_cast<size_t>(unit.rows * width) * sizeof(float) : 1);
  float* scaled = rounds ? reinterpret_cast<float*>(memory.data()) : to;
  for (int64_t i = 0; i < unit.rows; ++i) {
    ScaleInto(width, shape.scale, from.row(unit.first_row + i) + kv_head * width,
              scaled + i * width);
  }
  if (!rounds) return;
  TurnBlocks(unit.rows * width, scaled);
  RoundQueries(unit.rows * group, shape.key_dim, scaled, to);
}

// The first tile at `key` or after it, before `end`, of which some row sees something; end or more:
// none.
HWY_INLINE int64_t NextTile(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
                            const KeyLists& lists, const cpu_attention::SeenTiles& seen,
                            int64_t key, int64_t end) {
  key = seen.from(key);
  while (key < end && !cpu_attention::lists_tile(shape, lists, unit, kv_head, key)) {
    key = seen.from(key + kAttentionTile);
  }
  return key;
}

// What a part computes with: queries of all its heads, then what one head needs at a time.
struct ExactBuffers {
  float *q, *prefix_q;                      // [heads, count, key_dim]
  float *scores, *prefix_scores, *scratch;  // [count, kAttentionTile]; rows that are converted
};

// Scores of a tile of keys in blocks and all queries of a head.
HWY_INLINE void ScoreBlocks(const AttentionUnit& unit, int64_t dim, int64_t count, float* q,
                            const HeldRows& keys, int64_t width, float* scores, RowsAhead* ahead) {
  if (unit.type == DType::q8_0) {
    ScoreHeld<DType::q8_0>(dim, count, WholeQueries(count, q), keys, width, scores, ahead);
  } else {
    ScoreHeld<DType::q4_0>(dim, count, WholeQueries(count, q), keys, width, scores, ahead);
  }
}

// o [count, value_dim] += scores values, of values in blocks.
HWY_INLINE void AddBlocks(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
                          const KeyTile& tile, int64_t width, int64_t count, const float* scores,
                          float* o, RowsAhead& ahead) {
  const HeldRows values(unit.type, shape.value_in_key ? tile.keys : tile.values,
                        kv_head * shape.value_step(),
                        shape.value_in_key ? unit.key_stride : unit.value_stride);
  if (unit.type == DType::q8_0) {
    AddHeld<DType::q8_0>(count, shape.value_dim, width, scores, values, o, ahead);
  } else {
    AddHeld<DType::q4_0>(count, shape.value_dim, width, scores, values, o, ahead);
  }
}

// A tile of keys met by the queries of one head: partial as exact_part() has it.
HWY_INLINE void ExactTile(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
                          const AttentionOperands& operands, int64_t key, int64_t width, float* q,
                          float* prefix_q, const ExactBuffers& buffers, float* partial,
                          RowsAhead& ahead) {
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim;
  const int64_t group = shape.heads / shape.kv_heads, count = unit.rows * group;
  const KeyTile& tile = cpu_attention::tile_at(unit, key);
  const KeyLists& lists = operands.lists;
  float *maximum = partial, *sum = maximum + count, *o = sum + count;
  const bool blocks = is_block_type(unit.type);
  ConstMatrix keys;
  if (blocks) {
    const HeldRows held(unit.type, tile.keys, kv_head * key_dim, unit.key_stride);
    ScoreBlocks(unit, key_dim, count, q, held, width, buffers.scores, &ahead);
    if (prefix_q != nullptr) {
      ScoreBlocks(unit, key_dim, count, prefix_q, held, width, buffers.prefix_scores, nullptr);
    }
  } else {
    keys = FloatRows(unit.type, tile.keys, kv_head * key_dim, unit.key_stride, width, key_dim,
                     buffers.scratch);
    ScoreTile(key_dim, count, q, keys, width, buffers.scores, &ahead);
    if (prefix_q != nullptr) {
      ScoreTile(key_dim, count, prefix_q, keys, width, buffers.prefix_scores);
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    float* row = buffers.scores + r * kAttentionTile;
    if (prefix_q != nullptr) {
      TakePrefix(unit.visible[r / group].prefix, key, buffers.prefix_scores + r * kAttentionTile,
                 row);
    }
    if (shape.soft_cap > 0) CapScores(shape.soft_cap, row, nullptr);
    MaskRow(unit.visible[r / group], key, tile.count, row);
    if (lists.blocks != nullptr) {
      const cpu_attention::RowList list = cpu_attention::row_list(
          shape, lists, unit.first_row + r / group, kv_head * group + r % group);
      MaskUnlisted(list, lists.block, key, row);
    }
    const float factor = OnlineSoftmaxRow(row, maximum[r], sum[r]);
    if (factor != 1) ScaleBy(value_dim, factor, o + r * value_dim);
  }
  if (blocks) {
    return AddBlocks(shape, unit, kv_head, tile, width, count, buffers.scores, o, ahead);
  }
  const ConstMatrix values = shape.value_in_key
                                 ? keys
                                 : FloatRows(unit.type, tile.values, kv_head * value_dim,
                                             unit.value_stride, width, value_dim, buffers.scratch);
  AddValues(count, value_dim, width, buffers.scores, values, o, ahead);
}

void ExactPart(const AttentionShape& shape, const cpu_attention::ExactPart& part,
               const cpu_attention::ExactPart* following, const AttentionOperands& operands,
               float* partial, int64_t partial_stride) {
  const AttentionUnit& unit = *part.unit;
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim, heads = part.heads;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t count = unit.rows * group;  // query i * group + h: row i, head h of the group
  // Rows of 16 bits are converted: the keys of a tile, then its values.
  const bool converts = unit.type != DType::f32 && !is_block_type(unit.type);
  const int64_t converted = converts ? kAttentionTile * std::max(key_dim, value_dim) : 0;
  const cpu_attention::RowsRange range = cpu_attention::rows_range(unit, 0, unit.rows);
  const int64_t begin = part.split * cpu_attention::kSplitKeys;
  const bool rolls = operands.prefix_q.data != nullptr && range.any.prefix > begin;
  const int64_t queries = count * key_dim, scores = count * kAttentionTile;
  const Storage memory(static_cast<size_t>((1 + rolls) * (heads * queries + scores) + converted) *
                       sizeof(float));
  ExactBuffers buffers;
  buffers.q = reinterpret_cast<float*>(memory.data());
  buffers.prefix_q = buffers.q + heads * queries;
  buffers.scores = buffers.prefix_q + rolls * heads * queries;
  buffers.prefix_scores = buffers.scores + scores;
  buffers.scratch = buffers.prefix_scores + rolls * scores;
  for (int64_t h = 0; h < heads; ++h) {
    ScaleQueries(shape, unit, part.kv_head + h, operands.q, buffers.q + h * queries);
    if (rolls) {
      ScaleQueries(shape, unit, part.kv_head + h, operands.prefix_q,
                   buffers.prefix_q + h * queries);
    }
    float* own = partial + h * partial_stride;
    std::fill_n(own, count, kMinusInfinity);
    std::fill_n(own + count, count * (value_dim + 1), 0.0f);
  }

  const int64_t end = std::min(range.any.end, begin + cpu_attention::kSplitKeys);
  const cpu_attention::SeenTiles seen(range.any);
  const auto next_tile = [&](int64_t key) {
    return NextTile(shape, unit, part.kv_head, operands.lists, seen, key, end);
  };
  // Heads are the inner loop: what they read of a row lies side by side.
  for (int64_t key = next_tile(begin), next = 0; key < end; key = next) {
    next = next_tile(key + kAttentionTile);
    RowsAhead ahead;
    if (next < end) {
      ahead = AheadOf(shape, unit, part.kv_head, heads, cpu_attention::tile_at(unit, next));
    } else if (following != nullptr) {
      ahead = AheadOf(shape, *following->unit, following->kv_head, following->heads,
                      cpu_attention::tile_at(*following->unit, following->first_key));
    }
    const int64_t width = std::min<int64_t>(cpu_attention::tile_at(unit, key).count, end - key);
    const bool prefix = rolls && key < range.any.prefix;
    for (int64_t h = 0; h < heads; ++h) {
      ExactTile(shape, unit, part.kv_head + h, operands, key, width, buffers.q + h * queries,
                prefix ? buffers.prefix_q + h * queries : nullptr, buffers,
                partial + h * partial_stride, ahead);
    }
  }
}

void ExactMerge(const AttentionShape& shape, const AttentionUnit& unit, int64_t kv_head,
                const float* partials, int64_t splits, const AttentionOperands& operands) {
  const int64_t dim = shape.value_dim;
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t count = unit.rows * group;
  const int64_t size = cpu_attention::partial_size(shape, unit);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t row = unit.first_row + r / group, head = kv_head * group + r % group;
    float* to = operands.o.row(row) + head * dim;
    std::fill_n(to, dim, 0.0f);
    // A sink is a key whose value is 0.
    float maximum = operands.sinks == nullptr ? kMinusInfinity : operands.sinks[head];
    float sum = operands.sinks == nullptr ? 0.0f : 1.0f;
    for (int64_t s = 0; s < splits; ++s) {
      const float* partial = partials + s * size;
      const float part_maximum = partial[r], part_sum = partial[count + r];
      if (part_sum == 0) continue;  // this row sees nothing there
      const float* part = partial + 2 * count + r * dim;
      const float joint = std::max(maximum, part_maximum);
      const float old_factor = ExpOne(maximum - joint), factor = ExpOne(part_maximum - joint);
      sum = sum * old_factor + part_sum * factor;
      for (int64_t c = 0; c < dim; ++c) to[c] = to[c] * old_factor + part[c] * factor;
      maximum = joint;
    }
    if (sum > 0) ScaleBy(dim, 1 / sum, to);
    if (is_block_type(unit.type)) TurnBlocks(dim, to);
    if (operands.log_sum_exp == nullptr) continue;
    operands.log_sum_exp[row * shape.heads + head] = sum > 0 ? maximum + LogOne(sum) : 0.0f;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(ExactPart);
HWY_EXPORT(ExactMerge);

void cpu_attention::exact_part(const AttentionShape& shape, const cpu_attention::ExactPart& part,
                               const cpu_attention::ExactPart* following,
                               const AttentionOperands& operands, float* partial,
                               int64_t partial_stride) {
  HWY_DYNAMIC_DISPATCH(ExactPart)(shape, part, following, operands, partial, partial_stride);
}

void cpu_attention::exact_merge(const AttentionShape& shape, const AttentionUnit& unit,
                                int64_t kv_head, const float* partials, int64_t splits,
                                const AttentionOperands& operands) {
  HWY_DYNAMIC_DISPATCH(ExactMerge)(shape, unit, kv_head, partials, splits, operands);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
