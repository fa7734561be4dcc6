// Gradients through the steps of a mini-batch of a fast-weight memory: its fold and its reading.
// d(x) stands for the gradient of x.
#if defined(PRONGHORN_FAST_WEIGHT_MEMORY_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_FAST_WEIGHT_MEMORY_BACKWARD_INL_H_
#undef PRONGHORN_FAST_WEIGHT_MEMORY_BACKWARD_INL_H_
#else
#define PRONGHORN_FAST_WEIGHT_MEMORY_BACKWARD_INL_H_
#endif

#include <algorithm>

#include "backend/cpu/fast_weight_memory-inl.h"
#include "backend/cpu/fast_weight_memory_fold-inl.h"
#include "backend/cpu/fast_weight_memory_learn-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// ---- what lives how long ----

// All runs of a task: gradients of a state, in the places of its numbers.
struct StateGradients {
  float* state;   // of the state after the mini-batch, and once that is done of the one before it
  float* anchor;  // of the weights that are read where these lag; null elsewhere
  float* target;  // of what is forgotten towards; null where that is zero
};

// One mini-batch: what the forward pass computed of it, computed again.
struct Activations {
  Activations(const MemoryHead& head, Scratch& scratch)
      : tokens(head.shape, scratch),
        learn(head.shape, true, scratch),
        read(head.shape, scratch),
        online(head.shape.widest(), scratch) {
    const MemoryShape& shape = head.shape;
    for (int64_t l = 0; l < shape.depth; ++l) {
      layers[l] = {scratch.take(kTokens * shape.in(l)), scratch.take(kTokens * shape.out(l)),
                   LayerReading(shape.in(l), scratch)};
    }
  }

  struct Layer {
    float* x = nullptr;      // its input when it is read
    float* slope = nullptr;  // gelu'(h)
    LayerReading reading;
  };

  MiniBatch tokens;
  LearnWork learn;
  ReadWork read;
  LayerReading online;  // of the last layer's online errors, whose x are its inputs
  Layer layers[kMemoryDepth];
};

// One mini-batch: gradients of what its tokens have.
struct TokenGradients {
  TokenGradients(const MemoryShape& shape, Scratch& scratch) {
    for (int64_t l = 0; l < shape.depth; ++l) {
      const int64_t in = kTokens * shape.in(l), out = kTokens * shape.out(l);
      a[l] = scratch.take(in);
      e[l] = scratch.take(out);
      z[l] = scratch.take(out);
      left[l] = scratch.take(3 * in);
      right[l] = scratch.take(3 * out);
    }
    x = scratch.take(kTokens * shape.widest());
    k = scratch.take(kTokens * shape.head_dim);
    pairs = scratch.take(kPairs + kTokens);
  }

  void clear_gates() {
    std::fill_n(pairs, kPairs + kTokens, 0.0f);
    std::fill_n(beta, kTokens + 1, 0.0f);
    std::fill_n(f, kTokens + 1, 0.0f);
    std::fill_n(n, kTokens, 0.0f);
    m = 0;
  }

  float* a[kMemoryDepth];
  float* e[kMemoryDepth];
  float* z[kMemoryDepth];
  // d(W_l) += left^T right, in three parts of as many rows as there are tokens: of reading, of the
  // inputs, and of the back-signals of layers after the first.
  float* left[kMemoryDepth];
  float* right[kMemoryDepth];
  float *x, *k;  // of the input of the layer that was read last, of keys
  float* pairs;  // of tau_t G_tj, in the rows of MemoryGates
  // In the places of MemoryGates; n and m only of those after the last token.
  float beta[kTokens + 1], f[kTokens + 1], n[kTokens], m;
};

// One function: results on their way to where they belong.
struct BackwardWork {
  BackwardWork(const MemoryShape& shape, Scratch& scratch) {
    const int64_t wide = kTokens * shape.widest();
    rows = scratch.take(2 * wide);
    columns = scratch.take(wide);
    products = scratch.take(2 * wide);
    normed = scratch.take(shape.widest());
    row = scratch.take(shape.widest());
    dots = scratch.take(kPairs);
  }

  float *rows, *columns, *products;
  float *normed, *row;
  float* dots;
};

// ---- folding ----

// Some weights of a layer and their momentum, and the gradients of what they became, which turn
// into those of what they were. target: what the weights were forgotten towards (null: zero), to
// whose gradient is added.
struct FoldedWeights {
  const float *w, *s, *target;
  float *dw, *ds, *dtarget;
};

// Returns the gradients of the factors. `of` is a copy, so that its pointers stay in registers:
// vectors may alias anything.
template <bool kMomentum>
inline FoldFactors UnfoldWeights(int64_t count, const FoldFactors& factors,
                                 const FoldedWeights of) {
  const FloatTag d;
  const auto [beta, f, m] = factors;
  const auto keep = hn::Set(d, beta), back = hn::Set(d, 1 - beta);
  const auto carry = hn::Set(d, f), decay = hn::Set(d, m);
  auto to_beta = hn::Zero(d), to_f = hn::Zero(d), to_m = hn::Zero(d);
  ForEachVector(count, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    const auto dw = v.load(of.dw + i);
    auto forgotten = v.load(of.w + i);
    if (of.target != nullptr) {
      forgotten = hn::Sub(forgotten, v.load(of.target + i));
      v.store(hn::MulAdd(back, dw, v.load(of.dtarget + i)), of.dtarget + i);
    }
    to_beta = hn::MulAdd(dw, forgotten, to_beta);
    v.store(hn::Mul(keep, dw), of.dw + i);
    if constexpr (kMomentum) {
      const auto s = v.load(of.s + i), ds = v.load(of.ds + i);
      to_f = hn::MulAdd(dw, s, to_f);
      to_m = hn::MulAdd(ds, s, to_m);
      v.store(hn::MulAdd(carry, dw, hn::Mul(decay, ds)), of.ds + i);
    }
  });
  return {Total(to_beta), Total(to_f), Total(to_m)};
}

// What tokens have added to W or S of a layer (and to its bias), each with a factor of its own.
struct AddedSteps {
  const float* gradient;  // of the sum
  const float* factors;
  float* dfactors;  // is added to
};

// To d(a), which is left in work.products as columns, and d(e) of n tokens. add: d(a) to what is
// there.
inline void UnfoldSteps(const MemoryShape& shape, int64_t layer, int64_t n, const MiniBatch& tokens,
                        const AddedSteps& steps, bool add, float* de, BackwardWork& work) {
  const int64_t in = shape.in(layer), out = shape.out(layer);
  const float *e = tokens.e[layer], *gradient = steps.gradient;
  SmallMatmul(n, out, in, tokens.a[layer], in, 1, gradient, out, work.rows, out, false);
  if (shape.bias) AddToRows(n, out, gradient + shape.weight_size(layer), work.rows);
  for (int64_t j = 0; j < n; ++j) {
    steps.dfactors[j] -= DotProduct(e + j * out, work.rows + j * out, out);
    AddScaled(out, -steps.factors[j], work.rows + j * out, de + j * out);
  }
  for (int64_t j = 0; j < n; ++j) Scale(out, -steps.factors[j], e + j * out, work.rows + j * out);
  ToColumns(n, out, work.rows, work.columns);
  TimesColumns(in, out, gradient, work.columns, work.products, add);
}

// d(state after the n tokens of a mini-batch) -> d(state before them), d(a), d(e) and d(gates).
template <bool kMomentum>
inline void Unfold(const MemoryHead& head, const float* state, int64_t n, const MiniBatch& tokens,
                   const StateGradients& states, TokenGradients& d, BackwardWork& work) {
  const MemoryShape& shape = head.shape;
  const MemoryGates& gates = tokens.gates;
  for (int64_t l = 0; l < shape.depth; ++l) {
    const int64_t in = shape.in(l), out = shape.out(l);
    FoldedWeights weights{};
    weights.w = state + shape.weight_at(l);
    weights.dw = states.state + shape.weight_at(l);
    weights.target = head.target(l);
    if (weights.target != nullptr) weights.dtarget = states.target + shape.weight_at(l);
    std::fill_n(d.e[l], n * out, 0.0f);
    UnfoldSteps(shape, l, n, tokens, {weights.dw, gates.pairs + n * kTokens, d.pairs + n * kTokens},
                false, d.e[l], work);
    if constexpr (kMomentum) {
      weights.s = state + shape.momentum_at(l);
      weights.ds = states.state + shape.momentum_at(l);
      UnfoldSteps(shape, l, n, tokens, {weights.ds, gates.n + n * kTokens, d.n}, true, d.e[l],
                  work);
    }
    Transpose(in, n, work.products, kTokens, d.a[l], in);
    const FoldFactors own = UnfoldWeights<kMomentum>(
        shape.weight_size(l), {gates.beta[n], gates.f[n], gates.m[n]}, weights);
    d.beta[n] += own.beta;
    d.f[n] += own.f;
    d.m += own.m;
  }
}

// ---- reading ----

// Rows that were read from a layer, what was left of that, and their gradient dh [n, out].
struct LayerRead {
  LayerQuery query;
  const LayerReading& reading;
  const float* dh;
  float* kept;  // [n, in]: gets beta_t x_t, which is d(W) once multiplied by dh
};

// What reading adds for the weights that are forgotten towards: to d(x), d(beta) and d(target).
// work.columns holds d(h).
inline void TargetReadGradient(const MemoryHead& head, const MemoryGates& gates,
                               const LayerRead& read, const StateGradients& states,
                               TokenGradients& d, BackwardWork& work) {
  const auto [layer, seen, n, x] = read.query;
  const float* target = head.target(layer);
  if (target == nullptr) return;
  const int64_t in = head.shape.in(layer), out = head.shape.out(layer);
  TimesColumns(in, out, target, work.columns, work.products, false);
  Transpose(in, n, work.products, kTokens, work.rows, in);
  for (int64_t t = 0; t < n; ++t) {
    const float back = 1 - gates.beta[seen + t];
    float* HWY_RESTRICT u = work.rows + t * in;
    d.beta[seen + t] -= DotProduct(x + t * in, u, in);
    AddScaled(in, back, u, d.x + t * in);
    Scale(in, back, x + t * in, u);
  }
  SmallMatmul(in, out, n, work.rows, 1, in, read.dh, out,
              states.target + head.shape.weight_at(layer), out, true);
}

// Through the pairs of a reading: work.dots = d(x_t . a_j); adds to d(tau G).
inline void PairGradient(const MemoryShape& shape, const MiniBatch& tokens, const LayerRead& read,
                         TokenGradients& d, BackwardWork& work) {
  const int64_t n = read.query.n, out = shape.out(read.query.layer);
  DotProducts(n, n, out, read.dh, tokens.e[read.query.layer], work.dots);
  for (int64_t t = 0; t < n; ++t) {
    float* HWY_RESTRICT dots = work.dots + t * kTokens;
    const int64_t place = (read.query.seen + t) * kTokens;
    for (int64_t j = 0; j < n; ++j) {
      // The zeros of `pairs` keep tokens that had not stepped out of it all.
      d.pairs[place + j] -= dots[j] * read.reading.dots[t * kTokens + j];
      dots[j] *= -tokens.gates.pairs[place + j];
    }
  }
}

// Through reading a layer, to d(x), which is left in d.x; adds to d(a), d(S) and d(gates), not to
// d(e).
inline void LayerReadGradient(const MemoryHead& head, const float* state, const MiniBatch& tokens,
                              const LayerRead& read, const StateGradients& states,
                              TokenGradients& d, BackwardWork& work) {
  const MemoryShape& shape = head.shape;
  const MemoryGates& gates = tokens.gates;
  const auto [layer, seen, n, x] = read.query;
  const int64_t in = shape.in(layer), out = shape.out(layer);
  PairGradient(shape, tokens, read, d, work);
  ToColumns(n, out, read.dh, work.columns);
  const int64_t both = shape.momentum ? 2 * in : in;  // rows of W, and of S after them
  TimesColumns(both, out, state + shape.weight_at(layer), work.columns, work.products, false);
  Transpose(both, n, work.products, kTokens, work.rows, both);
  for (int64_t t = 0; t < n; ++t) {
    const float beta = gates.beta[seen + t];
    const float* u = work.rows + t * both;
    float* HWY_RESTRICT dx = d.x + t * in;
    d.beta[seen + t] += DotProduct(x + t * in, u, in);
    Scale(in, beta, u, dx);
    Scale(in, beta, x + t * in, read.kept + t * in);
    if (shape.momentum) {
      d.f[seen + t] += DotProduct(x + t * in, u + in, in);
      AddScaled(in, gates.f[seen + t], u + in, dx);
    }
    if (shape.bias) AddScaled(out, 1, read.dh + t * out, states.state + shape.bias_at(layer));
  }
  TargetReadGradient(head, gates, read, states, d, work);
  SmallMatmul(n, in, n, work.dots, kTokens, 1, tokens.a[layer], in, d.x, in, true);
  SmallMatmul(n, in, n, work.dots, 1, kTokens, x, in, d.a[layer], in, true);
  if (shape.momentum) {
    SmallMatmul(in, out, n, read.reading.carried, 1, in, read.dh, out,
                states.state + shape.momentum_at(layer), out, true);
  }
}

// From d(x) of a layer, in d.x, to d(h) of the one before it.
inline void GeluGradient(int64_t count, const float* slope, const float* HWY_RESTRICT dx,
                         float* HWY_RESTRICT dh) {
  for (int64_t c = 0; c < count; ++c) dh[c] = dx[c] * slope[c];
}

// Through reading: from d(h) of the last layer, in d.right, to d(q), which is left in d.x; adds to
// d(a), d(e), d(S) and d(gates). What belongs to d(W) is left in d.left and d.right.
inline void ReadGradient(const MemoryHead& head, const float* state, int64_t n,
                         const Activations& of, const StateGradients& states, TokenGradients& d,
                         BackwardWork& work) {
  const MemoryShape& shape = head.shape;
  for (int64_t l = shape.depth - 1; l >= 0; --l) {
    const int64_t out = shape.out(l);
    const Activations::Layer& layer = of.layers[l];
    SmallMatmul(n, out, n, layer.reading.pairs, 1, kTokens, d.right[l], out, d.e[l], out, true);
    LayerReadGradient(head, state, of.tokens,
                      {{l, 1, n, layer.x}, layer.reading, d.right[l], d.left[l]}, states, d, work);
    if (l > 0) GeluGradient(n * shape.in(l), of.layers[l - 1].slope, d.x, d.right[l - 1]);
  }
}

// Through reading the weights of an anchor: from d(h) of the last layer to d(q), which is left in
// d.x; adds to the gradient of those weights.
inline void LaggedReadGradient(const MemoryShape& shape, const float* anchor, int64_t n,
                               const Activations& of, const StateGradients& states,
                               TokenGradients& d, BackwardWork& work) {
  for (int64_t l = shape.depth - 1; l >= 0; --l) {
    const int64_t in = shape.in(l), out = shape.out(l);
    SmallMatmul(in, out, n, of.layers[l].x, 1, in, d.right[l], out,
                states.anchor + shape.weight_at(l), out, true);
    ToColumns(n, out, d.right[l], work.columns);
    TimesColumns(in, out, anchor + shape.weight_at(l), work.columns, work.products, false);
    Transpose(in, n, work.products, kTokens, d.x, in);
    if (l > 0) GeluGradient(n * in, of.layers[l - 1].slope, d.x, d.right[l - 1]);
    std::fill_n(d.left[l], n * in, 0.0f);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_FAST_WEIGHT_MEMORY_BACKWARD_INL_H_
