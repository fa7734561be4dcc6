// What an indexer learns from: the divergence of its scores from what attention's heads look at,
// with the gradients, in one pass over the rows of a segment.
#include <optional>

#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention_indexer_loss.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/attention_scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kLossRows = 16;                          // rows that are worked on together
constexpr int64_t kLossTile = kLossRows * kAttentionTile;  // their numbers for a tile of keys

// Rows first ... first + count - 1 of a unit. Buffers lie tile of keys by tile of keys.
struct LossRows {
  LossRows(const IndexerLoss& loss, const AttentionUnit& of, int64_t first_row, int64_t rows)
      : arguments(loss), unit(of), first(first_row), count(rows) {
    for (int64_t i = first; i < first + count; ++i) keys = std::max(keys, unit.visible[i].end);
    tiles = (keys + kAttentionTile - 1) / kAttentionTile;
    const int64_t heads = loss.indexer.shape.heads, dim = loss.indexer.shape.key_dim;
    const int64_t queries = loss.attention.heads * loss.attention.key_dim;
    memory.emplace(static_cast<size_t>(kLossRows * (2 * heads * dim + queries) +
                                       tiles * kLossTile * (heads + 2) + kLossTile) *
                   sizeof(float));
    float* next = reinterpret_cast<float*>(memory->data());
    const auto take = [&](int64_t numbers) {
      next += numbers;
      return next - numbers;
    };
    q = take(kLossRows * heads * dim);
    grad_q = take(kLossRows * heads * dim);
    attention_q = take(kLossRows * queries);
    products = take(tiles * kLossTile * heads);
    scores = take(tiles * kLossTile);
    shares = take(tiles * kLossTile);
    tile_scores = take(kLossTile);
  }

  // Of one tile, [rows, keys].
  float* tile_products(int64_t tile, int64_t head) const {
    return products + (tile * arguments.indexer.shape.heads + head) * kLossTile;
  }
  float* row_of(float* buffer, int64_t tile, int64_t row) const {
    return buffer + tile * kLossTile + row * kAttentionTile;
  }
  int64_t width(int64_t tile) const {
    return std::min<int64_t>(unit.tile(tile).count, keys - tile * kAttentionTile);
  }
  // What the row does not see becomes minus infinity.
  void mask(int64_t tile, int64_t row, int64_t head, float* values) const {
    const int64_t key = tile * kAttentionTile;
    MaskRow(unit.visible[first + row], key, unit.tile(tile).count, values);
    const KeyLists& lists = arguments.operands.lists;
    if (lists.blocks == nullptr) return;
    const cpu_attention::RowList list =
        cpu_attention::row_list(arguments.attention, lists, unit.first_row + first + row, head);
    MaskUnlisted(list, lists.block, key, values);
  }

  const IndexerLoss& arguments;
  const AttentionUnit& unit;
  int64_t first, count;
  int64_t keys = 0, tiles = 0;
  std::optional<Storage> memory;
  float *q, *grad_q;       // of each head of the indexer: [rows, dim]
  float* attention_q;      // of each head: [rows, dim], scaled
  float* products;         // of tiles and heads of the indexer
  float *scores, *shares;  // of tiles: I and p
  float* tile_scores;
};

HWY_INLINE void PackHeads(const LossRows& rows, const AttentionShape& shape,
                          const ConstMatrix& from, float factor, float* to) {
  for (int64_t h = 0; h < shape.heads; ++h) {
    for (int64_t i = 0; i < rows.count; ++i) {
      ScaleInto(shape.key_dim, factor,
                from.row(rows.unit.first_row + rows.first + i) + h * shape.key_dim,
                to + (h * kLossRows + i) * shape.key_dim);
    }
  }
}

// shares = sum over the heads of exp(s - log_sum_exp) / heads
void AttentionShares(const LossRows& rows) {
  const AttentionShape& shape = rows.arguments.attention;
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto part = hn::Set(d, 1 / static_cast<float>(shape.heads));
  const int64_t group = shape.heads / shape.kv_heads;
  for (int64_t tile = 0; tile < rows.tiles; ++tile) {
    const auto* keys = reinterpret_cast<const float*>(rows.unit.tile(tile).keys);
    std::fill_n(rows.row_of(rows.shares, tile, 0), kLossTile, 0.0f);
    for (int64_t h = 0; h < shape.heads; ++h) {
      ScoreTile(shape.key_dim, rows.count, rows.attention_q + h * kLossRows * shape.key_dim,
                {keys + h / group * shape.key_dim, rows.unit.key_stride}, rows.width(tile),
                rows.tile_scores);
      for (int64_t i = 0; i < rows.count; ++i) {
        float* s = rows.tile_scores + i * kAttentionTile;
        float* to = rows.row_of(rows.shares, tile, i);
        if (shape.soft_cap > 0) CapScores(shape.soft_cap, s, nullptr);
        rows.mask(tile, i, h, s);
        const int64_t row = rows.unit.first_row + rows.first + i;
        const auto shift = hn::Set(d, rows.arguments.operands.log_sum_exp[row * shape.heads + h]);
        for (int64_t j = 0; j < kAttentionTile; j += lanes) {
          const auto p = Exp(d, hn::Sub(hn::LoadU(d, s + j), shift));
          hn::StoreU(hn::MulAdd(part, p, hn::LoadU(d, to + j)), d, to + j);
        }
      }
    }
  }
}

// products = max(0, q . k), 0 where the row does not see the key; scores = I, minus infinity there.
void LossScores(const LossRows& rows) {
  const IndexerOperands& indexer = rows.arguments.indexer;
  const int64_t heads = indexer.shape.heads, dim = indexer.shape.key_dim;
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t tile = 0; tile < rows.tiles; ++tile) {
    const ConstMatrix keys{rows.arguments.k.row(rows.unit.tile(tile).first_row),
                           rows.arguments.k.stride};
    for (int64_t h = 0; h < heads; ++h) {
      ScoreTile(dim, rows.count, rows.q + h * kLossRows * dim, keys, rows.width(tile),
                rows.tile_products(tile, h));
    }
    for (int64_t i = 0; i < rows.count; ++i) {
      float* to = rows.row_of(rows.scores, tile, i);
      const float* weights = indexer.weights.row(rows.unit.first_row + rows.first + i);
      std::fill_n(to, kAttentionTile, 0.0f);
      rows.mask(tile, i, 0, to);
      for (int64_t j = 0; j < kAttentionTile; j += lanes) {
        auto sum = hn::LoadU(d, to + j);
        const auto seen = hn::Ge(sum, hn::Zero(d));
        for (int64_t h = 0; h < heads; ++h) {
          float* product = rows.tile_products(tile, h) + i * kAttentionTile + j;
          const auto positive =
              hn::IfThenElseZero(seen, hn::Max(hn::Zero(d), hn::LoadU(d, product)));
          hn::StoreU(positive, d, product);
          sum = hn::MulAdd(hn::Set(d, weights[h]), positive, sum);
        }
        hn::StoreU(sum, d, to + j);
      }
    }
  }
}

// scores -> softmax(scores) - shares, the gradient; returns the loss of the row.
float LossOfRow(const LossRows& rows, int64_t i) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto largest = hn::Set(d, kMinusInfinity);
  const auto each = [&](const auto& body) {
    for (int64_t tile = 0; tile < rows.tiles; ++tile) {
      float* scores = rows.row_of(rows.scores, tile, i);
      float* shares = rows.row_of(rows.shares, tile, i);
      for (int64_t j = 0; j < kAttentionTile; j += lanes) body(scores + j, shares + j);
    }
  };
  each([&](float* scores, float*) { largest = hn::Max(largest, hn::LoadU(d, scores)); });
  const auto shift = hn::MaxOfLanes(d, largest);
  auto total = hn::Zero(d);
  each([&](float* scores, float*) {
    total = hn::Add(total, Exp(d, hn::Sub(hn::LoadU(d, scores), shift)));
  });
  const float sum = hn::GetLane(hn::SumOfLanes(d, total));
  if (!(sum > 0)) {  // sees nothing
    each([&](float* scores, float*) { hn::StoreU(hn::Zero(d), d, scores); });
    return 0;
  }
  const auto inverse = hn::Set(d, 1 / sum), log_sum = hn::Set(d, LogOne(sum));
  auto loss = hn::Zero(d);
  each([&](float* scores, float* shares) {
    const auto moved = hn::Sub(hn::LoadU(d, scores), shift), p = hn::LoadU(d, shares);
    const auto counts = hn::Gt(p, hn::Zero(d));
    const auto difference =
        hn::Sub(Log(d, hn::IfThenElse(counts, p, hn::Set(d, 1.0f))), hn::Sub(moved, log_sum));
    loss = hn::Add(loss, hn::IfThenElseZero(counts, hn::Mul(p, difference)));
    hn::StoreU(hn::Sub(hn::Mul(Exp(d, moved), inverse), p), d, scores);
  });
  return hn::GetLane(hn::SumOfLanes(d, loss));
}

// The gradients of the weights of one row; products become those of the products.
void LossWeights(const LossRows& rows, int64_t i) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t row = rows.unit.first_row + rows.first + i;
  const float* weights = rows.arguments.indexer.weights.row(row);
  float* grad = rows.arguments.grad_weights.row(row);
  for (int64_t h = 0; h < rows.arguments.indexer.shape.heads; ++h) {
    auto sum = hn::Zero(d);
    const auto weight = hn::Set(d, weights[h]);
    for (int64_t tile = 0; tile < rows.tiles; ++tile) {
      const float* change = rows.row_of(rows.scores, tile, i);
      float* products = rows.tile_products(tile, h) + i * kAttentionTile;
      for (int64_t j = 0; j < kAttentionTile; j += lanes) {
        const auto product = hn::LoadU(d, products + j), g = hn::LoadU(d, change + j);
        sum = hn::MulAdd(product, g, sum);
        hn::StoreU(hn::IfThenElseZero(hn::Gt(product, hn::Zero(d)), hn::Mul(weight, g)), d,
                   products + j);
      }
    }
    grad[h] = hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

void LossGradients(const LossRows& rows) {
  const IndexerLoss& arguments = rows.arguments;
  const int64_t heads = arguments.indexer.shape.heads, dim = arguments.indexer.shape.key_dim;
  for (int64_t i = 0; i < rows.count; ++i) LossWeights(rows, i);
  std::fill_n(rows.grad_q, kLossRows * heads * dim, 0.0f);
  for (int64_t tile = 0; tile < rows.tiles; ++tile) {
    const int64_t key = rows.unit.tile(tile).first_row, width = rows.width(tile);
    for (int64_t h = 0; h < heads; ++h) {
      const float* change = rows.tile_products(tile, h);
      SmallMatmul(rows.count, dim, width, change, kAttentionTile, 1, arguments.k.row(key),
                  arguments.k.stride, rows.grad_q + h * kLossRows * dim, dim, true);
      SmallMatmul(width, dim, rows.count, change, 1, kAttentionTile, rows.q + h * kLossRows * dim,
                  dim, arguments.grad_k.row(key), arguments.grad_k.stride, true);
    }
  }
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t i = 0; i < rows.count; ++i) {
      std::copy_n(rows.grad_q + (h * kLossRows + i) * dim, dim,
                  arguments.grad_q.row(rows.unit.first_row + rows.first + i) + h * dim);
    }
  }
}

void IndexerLossUnit(const IndexerLoss& arguments, const AttentionUnit& unit) {
  for (int64_t first = 0; first < unit.rows; first += kLossRows) {
    const LossRows rows(arguments, unit, first, std::min(kLossRows, unit.rows - first));
    PackHeads(rows, arguments.attention, arguments.operands.q, arguments.attention.scale,
              rows.attention_q);
    PackHeads(rows, arguments.indexer.shape, arguments.indexer.q, 1, rows.q);
    AttentionShares(rows);
    LossScores(rows);
    for (int64_t i = 0; i < rows.count; ++i) {
      arguments.losses[unit.first_row + first + i] = LossOfRow(rows, i);
    }
    LossGradients(rows);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(IndexerLossUnit);

void cpu_attention::indexer_loss_unit(const IndexerLoss& arguments, const AttentionUnit& unit) {
  HWY_DYNAMIC_DISPATCH(IndexerLossUnit)(arguments, unit);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
