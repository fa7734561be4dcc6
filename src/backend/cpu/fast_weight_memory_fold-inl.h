// Folding of fast-weight memories: the state after the tokens of a mini-batch.
#if defined(PRONGHORN_FAST_WEIGHT_MEMORY_FOLD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_FAST_WEIGHT_MEMORY_FOLD_INL_H_
#undef PRONGHORN_FAST_WEIGHT_MEMORY_FOLD_INL_H_
#else
#define PRONGHORN_FAST_WEIGHT_MEMORY_FOLD_INL_H_
#endif

#include <algorithm>

#include "backend/cpu/fast_weight_memory-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Rows of a tile of W and S; a token's factor is shared by both.
constexpr int kFoldRows = kTileRows / 2;

// Factors of the weights and the momentum that a mini-batch started from.
struct FoldFactors {
  float beta, f, m;
};

// One layer:
//   W' = beta W + (1 - beta) W_* + f S + sum_j a_j^T w_j,  S' = m S + sum_j a_j^T s_j
// with w_j = - tau G_j e_j and s_j = - n_j e_j. S, S' and s only with momentum.
struct LayerFold {
  int64_t in, out, count;
  FoldFactors factors;
  const float* a;                // [count, in]
  const float *w_rows, *s_rows;  // [count, out]
  const float *w, *s, *target;   // [in, out]; target: W_*, or null
  float *w_to, *s_to;
};

// Room that folding needs.
struct FoldWork {
  FoldWork(const MemoryShape& shape, Scratch& scratch)
      : w_rows(scratch.take(kTokens * shape.widest())),
        s_rows(scratch.take(shape.momentum ? kTokens * shape.widest() : 0)) {}

  float *w_rows, *s_rows;
};

// One register tile: R rows from `row` of V vectors from `column`, the last of `last_lanes`.
template <int R, int V, bool kMomentum>
inline void FoldTile(const LayerFold& fold, int64_t row, int64_t column, size_t last_lanes) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const auto stride = static_cast<int64_t>(lanes);
  const bool partial = last_lanes != lanes;
  const auto load = [&](const float* from, int v) PRONGHORN_VECTOR_LAMBDA {
    return v == V - 1 && partial ? LoadPartial(d, last_lanes, from) : hn::LoadU(d, from);
  };
  const auto store = [&](FloatVector value, float* to, int v) PRONGHORN_VECTOR_LAMBDA {
    if (v == V - 1 && partial) {
      StorePartial(d, last_lanes, value, to);
    } else {
      hn::StoreU(value, d, to);
    }
  };
  const int64_t in = fold.in, out = fold.out, count = fold.count, corner = row * out + column;
  const auto [beta, f, m] = fold.factors;
  FloatVector weights[R][V], momentum[R][V];
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < V; ++v) {
      const int64_t at = corner + i * out + v * stride;
      weights[i][v] = hn::Mul(hn::Set(d, beta), load(fold.w + at, v));
      if (fold.target != nullptr) {
        weights[i][v] = hn::MulAdd(hn::Set(d, 1 - beta), load(fold.target + at, v), weights[i][v]);
      }
      if constexpr (kMomentum) {
        const FloatVector old = load(fold.s + at, v);
        weights[i][v] = hn::MulAdd(hn::Set(d, f), old, weights[i][v]);
        momentum[i][v] = hn::Mul(hn::Set(d, m), old);
      }
    }
  }
  const float* HWY_RESTRICT a = fold.a + row;
  const float* HWY_RESTRICT w_rows = fold.w_rows + column;
  const float* HWY_RESTRICT s_rows = fold.s_rows + column;
  for (int64_t j = 0; j < count; ++j) {
    FloatVector to_weights[V], to_momentum[V];
    for (int v = 0; v < V; ++v) {
      to_weights[v] = load(w_rows + j * out + v * stride, v);
      if constexpr (kMomentum) to_momentum[v] = load(s_rows + j * out + v * stride, v);
    }
    for (int i = 0; i < R; ++i) {
      const auto left = hn::Set(d, a[j * in + i]);
      for (int v = 0; v < V; ++v) {
        weights[i][v] = hn::MulAdd(left, to_weights[v], weights[i][v]);
        if constexpr (kMomentum) momentum[i][v] = hn::MulAdd(left, to_momentum[v], momentum[i][v]);
      }
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < V; ++v) {
      const int64_t at = corner + i * out + v * stride;
      store(weights[i][v], fold.w_to + at, v);
      if constexpr (kMomentum) store(momentum[i][v], fold.s_to + at, v);
    }
  }
}

template <int V, bool kMomentum>
inline void FoldColumns(const LayerFold& fold, int64_t column, size_t last_lanes) {
  int64_t i = 0;
  for (; i + kFoldRows <= fold.in; i += kFoldRows) {
    FoldTile<kFoldRows, V, kMomentum>(fold, i, column, last_lanes);
  }
  for (; i < fold.in; ++i) FoldTile<1, V, kMomentum>(fold, i, column, last_lanes);
}

template <bool kMomentum>
inline void FoldLayer(const LayerFold& fold) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  int64_t c = 0;
  for (; c + 2 * lanes <= fold.out; c += 2 * lanes) {
    FoldColumns<2, kMomentum>(fold, c, static_cast<size_t>(lanes));
  }
  for (; c < fold.out; c += lanes) {
    FoldColumns<1, kMomentum>(fold, c, static_cast<size_t>(std::min(lanes, fold.out - c)));
  }
}

// The state after the first `count` tokens of the mini-batch that `from` starts, written to `to`,
// which may be `from`.
inline void Fold(const MemoryHead& head, const float* from, const MiniBatch& tokens, int64_t count,
                 FoldWork& work, float* to) {
  const MemoryShape& shape = head.shape;
  const MemoryGates& gates = tokens.gates;
  const float* weights = gates.pairs + count * kTokens;
  const float* momentum = gates.n + count * kTokens;
  for (int64_t l = 0; l < shape.depth; ++l) {
    const int64_t out = shape.out(l);
    for (int64_t j = 0; j < count; ++j) {
      const float* e = tokens.e[l] + j * out;
      Scale(out, -weights[j], e, work.w_rows + j * out);
      if (shape.momentum) Scale(out, -momentum[j], e, work.s_rows + j * out);
    }
    LayerFold fold{};
    fold.in = shape.in(l);
    fold.out = out;
    fold.count = count;
    fold.factors = {gates.beta[count], gates.f[count], gates.m[count]};
    fold.a = tokens.a[l];
    fold.w_rows = work.w_rows;
    fold.s_rows = work.s_rows;
    fold.w = from + shape.weight_at(l);
    fold.w_to = to + shape.weight_at(l);
    fold.target = head.target(l);
    if (shape.momentum) {
      fold.s = from + shape.momentum_at(l);
      fold.s_to = to + shape.momentum_at(l);
      FoldLayer<true>(fold);
    } else {
      FoldLayer<false>(fold);
    }
    for (int64_t c = 0; shape.bias && c < out; ++c) {
      float bias = from[shape.bias_at(l) + c];
      for (int64_t j = 0; j < count; ++j) bias += work.w_rows[j * out + c];
      to[shape.bias_at(l) + c] = bias;
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_FAST_WEIGHT_MEMORY_FOLD_INL_H_
