// What the forward and backward passes of fast-weight memories share: the tokens of one mini-batch
// of one head, from the weights at its start. Matrices of pairs of tokens are [kTokens, kTokens],
// row t the later one.
#if defined(PRONGHORN_FAST_WEIGHT_MEMORY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_FAST_WEIGHT_MEMORY_INL_H_
#undef PRONGHORN_FAST_WEIGHT_MEMORY_INL_H_
#else
#define PRONGHORN_FAST_WEIGHT_MEMORY_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/fast_weight_memory_tasks.h"
#include "backend/cpu/pointwise-inl.h"
#include "backend/cpu/scratch.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {

constexpr int64_t kTokens = kMemoryMiniBatch;
constexpr int64_t kPairs = kTokens * kTokens;

inline void CopyRow(const float* from, int64_t count, float* to) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

inline void Scale(int64_t count, float factor, const float* HWY_RESTRICT from,
                  float* HWY_RESTRICT to) {
  for (int64_t c = 0; c < count; ++c) to[c] = factor * from[c];
}

// `by` floats further on; null stays null.
inline const float* Further(const float* from, int64_t by) {
  return from != nullptr ? from + by : nullptr;
}

// ---- the activation ----

// gelu(x) = x (1 + t) / 2 with t = tanh(u), u = c (x + a x^3), and its derivatives
//   gelu'  = (1 + t) / 2 + x (1 - t^2) u' / 2
//   gelu'' = (1 - t^2) (u' + x (u'' - 2 t u'^2) / 2)
struct Gelu {
  explicit HWY_INLINE Gelu(FloatVector value) : x(value) {
    const FloatTag d;
    square = hn::Mul(x, x);
    const auto u =
        hn::Mul(hn::Mul(hn::Set(d, kC), x), hn::MulAdd(hn::Set(d, kA), square, hn::Set(d, 1.0f)));
    t = Tanh(d, u);
    half = hn::MulAdd(hn::Set(d, 0.5f), t, hn::Set(d, 0.5f));
  }
  HWY_INLINE FloatVector value() const { return hn::Mul(x, half); }
  HWY_INLINE FloatVector slope() const {
    const FloatTag d;
    return hn::MulAdd(hn::Mul(hn::Mul(hn::Set(d, 0.5f), x), rest()), inner_slope(), half);
  }
  HWY_INLINE FloatVector curve() const {
    const FloatTag d;
    const auto first = inner_slope();
    const auto second = hn::Mul(hn::Set(d, 6 * kC * kA), x);
    const auto bend = hn::NegMulAdd(hn::Mul(hn::Set(d, 2.0f), t), hn::Mul(first, first), second);
    return hn::Mul(rest(), hn::MulAdd(hn::Mul(hn::Set(d, 0.5f), x), bend, first));
  }

 private:
  static constexpr float kC = 0.7978845608f;  // sqrt(2 / pi)
  static constexpr float kA = 0.044715f;
  HWY_INLINE FloatVector rest() const { return hn::NegMulAdd(t, t, hn::Set(FloatTag(), 1.0f)); }
  HWY_INLINE FloatVector inner_slope() const {
    const FloatTag d;
    return hn::MulAdd(hn::Set(d, 3 * kC * kA), square, hn::Set(d, kC));
  }
  FloatVector x, square, t, half;
};

// value = gelu(x); slope and curve: its derivatives, or null.
inline void GeluRows(int64_t count, const float* x, float* value, float* slope, float* curve) {
  ForEachVector(count, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    const Gelu gelu(v.load(x + i));
    v.store(gelu.value(), value + i);
    if (slope != nullptr) v.store(gelu.slope(), slope + i);
    if (curve != nullptr) v.store(gelu.curve(), curve + i);
  });
}

// ---- sums over a row ----

inline float Mean(int64_t n, const float* x) {
  auto sum = hn::Zero(FloatTag());
  ForEachVector(
      n, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA { sum = hn::Add(sum, v.load(x + i)); });
  return Total(sum) / static_cast<float>(n);
}

inline float MeanProduct(int64_t n, const float* x, const float* y) {
  return DotProduct(x, y, n) / static_cast<float>(n);
}

// to = (x - mean) / sqrt(variance + epsilon); returns 1 / sqrt(variance + epsilon).
inline float Normalize(int64_t n, float epsilon, const float* x, float* to) {
  const float mean = Mean(n, x);
  ForEachVector(n, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    v.store(hn::Sub(v.load(x + i), hn::Set(FloatTag(), mean)), to + i);
  });
  const float inverse = 1 / std::sqrt(MeanProduct(n, to, to) + epsilon);
  ForEachVector(n, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    v.store(hn::Mul(v.load(to + i), hn::Set(FloatTag(), inverse)), to + i);
  });
  return inverse;
}

// ---- products ----

// to[i, j] = x_i . y_j for i < n, j < count, in rows of kTokens; what follows `count` in a row up
// to a multiple of four is undefined. A sum's order does not depend on n and count.
inline void DotProducts(int64_t n, int64_t count, int64_t width, const float* HWY_RESTRICT x,
                        const float* HWY_RESTRICT y, float* HWY_RESTRICT to) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < n; ++i) {
    const float* left = x + i * width;
    for (int64_t j = 0; j < count; j += 4) {
      const float* right[4];
      for (int64_t c = 0; c < 4; ++c) right[c] = y + std::min(j + c, count - 1) * width;
      auto s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
      int64_t p = 0;
      for (; p + lanes <= width; p += lanes) {
        const auto value = hn::LoadU(d, left + p);
        s0 = hn::MulAdd(value, hn::LoadU(d, right[0] + p), s0);
        s1 = hn::MulAdd(value, hn::LoadU(d, right[1] + p), s1);
        s2 = hn::MulAdd(value, hn::LoadU(d, right[2] + p), s2);
        s3 = hn::MulAdd(value, hn::LoadU(d, right[3] + p), s3);
      }
      if (p < width) {
        const auto rest = static_cast<size_t>(width - p);
        const auto value = LoadPartial(d, rest, left + p);
        s0 = hn::MulAdd(value, LoadPartial(d, rest, right[0] + p), s0);
        s1 = hn::MulAdd(value, LoadPartial(d, rest, right[1] + p), s1);
        s2 = hn::MulAdd(value, LoadPartial(d, rest, right[2] + p), s2);
        s3 = hn::MulAdd(value, LoadPartial(d, rest, right[3] + p), s3);
      }
      SumFour(d, s0, s1, s2, s3, to + i * kTokens + j);
    }
  }
}

// y (+)= W x for the n <= kTokens columns x of a transposed matrix: W [rows, columns], x [columns,
// kTokens], y [rows, kTokens]. Columns from n on are zeros.
inline void TimesColumns(int64_t rows, int64_t columns, const float* w, const float* x, float* y,
                         bool accumulate) {
  SmallMatmul(rows, kTokens, columns, w, columns, 1, x, kTokens, y, kTokens, accumulate);
}

// x_t [columns, kTokens] = the transpose of x [n, columns], with zeros behind.
inline void ToColumns(int64_t n, int64_t columns, const float* x, float* x_t) {
  if (n < kTokens) std::fill_n(x_t, columns * kTokens, 0.0f);
  Transpose(n, columns, x, columns, x_t, kTokens);
}

// ---- gates ----

// The gates of the first tokens of a mini-batch, and what they add up to (backend/
// fast_weight_memory.h): at s, or in row s, once s tokens have stepped. `pairs` includes tau; gamma
// does not. All are zeros from column s on.
struct MemoryGates {
  alignas(64) float theta[kTokens], eta[kTokens], alpha[kTokens], tau[kTokens];
  alignas(64) float beta[kTokens + 1], f[kTokens + 1], m[kTokens + 1];
  alignas(64) float gamma[kPairs + kTokens];  // G_tj
  alignas(64) float pairs[kPairs + kTokens];  // tau_t G_tj
  alignas(64) float n[kPairs + kTokens];      // n_tj
};

inline void SumGates(const MemoryShape& shape, const float* tau, int64_t count,
                     MemoryGates& gates) {
  gates.beta[0] = gates.m[0] = 1;
  gates.f[0] = 0;
  for (float* sums : {gates.gamma, gates.pairs, gates.n}) {
    std::fill_n(sums, (count + 1) * kTokens, 0.0f);
  }
  for (int64_t t = 0; t < count; ++t) {
    const float keep = shape.forgetting ? 1 - gates.alpha[t] : 1.0f;
    gates.tau[t] = tau != nullptr ? tau[t] : 1.0f;
    gates.m[t + 1] = shape.momentum ? gates.m[t] * gates.eta[t] : 0.0f;
    gates.beta[t + 1] = keep * gates.beta[t];
    gates.f[t + 1] = keep * gates.f[t] + gates.m[t + 1];
    float* n = gates.n + (t + 1) * kTokens;
    float* gamma = gates.gamma + (t + 1) * kTokens;
    float* pairs = gates.pairs + (t + 1) * kTokens;
    for (int64_t j = 0; j < t; ++j) {
      if (shape.momentum) n[j] = gates.eta[t] * n[j - kTokens];
      gamma[j] = keep * gamma[j - kTokens] + n[j];
    }
    n[t] = gamma[t] = gates.theta[t];
    for (int64_t j = 0; j <= t; ++j) pairs[j] = gates.tau[t] * gamma[j];
  }
}

// ---- the tokens of a mini-batch ----

// Rows of the open mini-batch of one head: inputs a_l and back-signals e_l of each layer.
struct MemoryTokens {
  MemoryTokens(const MemoryShape& shape, Scratch& scratch) {
    for (int64_t l = 0; l < shape.depth; ++l) {
      a[l] = scratch.take(kTokens * shape.in(l));
      e[l] = scratch.take(kTokens * shape.out(l));
      slope[l] = l + 1 < shape.depth ? scratch.take(kTokens * shape.out(l)) : nullptr;
    }
    const int64_t widest = std::max(shape.head_dim, shape.hidden_dim);
    z = scratch.take(kTokens * widest);
    columns = scratch.take(kTokens * widest);
    products = scratch.take(kTokens * widest);
  }

  float* a[kMemoryDepth];
  float* e[kMemoryDepth];
  float* slope[kMemoryDepth];  // gelu'(Z_l) of the new tokens
  float *z, *columns, *products;
  // Kept for the backward pass unless null.
  float* curve[kMemoryDepth] = {};   // gelu''(Z_l)
  float* signal[kMemoryDepth] = {};  // e_l W_l^T, of layers behind the first
  float* z_last = nullptr;
};

inline void LoadToken(const MemoryShape& shape, const float* row, int64_t token,
                      MemoryTokens& tokens, MemoryGates& gates) {
  for (int64_t l = 0; l < shape.depth; ++l) {
    CopyRow(row + shape.row_in(l), shape.in(l), tokens.a[l] + token * shape.in(l));
    CopyRow(row + shape.row_error(l), shape.out(l), tokens.e[l] + token * shape.out(l));
  }
  const float* from = row + shape.row_gates();
  gates.theta[token] = *from++;
  if (shape.momentum) gates.eta[token] = *from++;
  if (shape.forgetting) gates.alpha[token] = *from;
}

inline void StoreToken(const MemoryShape& shape, const MemoryTokens& tokens,
                       const MemoryGates& gates, int64_t token, float* row) {
  for (int64_t l = 0; l < shape.depth; ++l) {
    CopyRow(tokens.a[l] + token * shape.in(l), shape.in(l), row + shape.row_in(l));
    CopyRow(tokens.e[l] + token * shape.out(l), shape.out(l), row + shape.row_error(l));
  }
  float* to = row + shape.row_gates();
  *to++ = gates.theta[token];
  if (shape.momentum) *to++ = gates.eta[token];
  if (shape.forgetting) *to = gates.alpha[token];
}

inline void ReadGates(const MemoryProblem& problem, int64_t head, int64_t row, int64_t n,
                      int64_t first, MemoryGates& gates) {
  for (int64_t t = 0; t < n; ++t) {
    gates.theta[first + t] = problem.theta.row(row + t)[head];
    if (problem.shape.momentum) gates.eta[first + t] = problem.eta.row(row + t)[head];
    if (problem.shape.forgetting) gates.alpha[first + t] = problem.alpha.row(row + t)[head];
  }
}

inline void AddToRows(int64_t n, int64_t width, const float* addend, float* to) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < width; ++c) to[i * width + c] += addend[c];
  }
}

// What e = factor (z - v) is multiplied by to stay within the error limit.
inline float LimitError(const MemoryProblem& problem, const float* z, const float* v) {
  if (problem.error_limit <= 0) return 1;
  double square = 0;
  for (int64_t c = 0; c < problem.shape.head_dim; ++c) {
    square += double{z[c] - v[c]} * double{z[c] - v[c]};
  }
  const auto size = static_cast<float>(std::sqrt(square));
  return size > problem.error_limit ? problem.error_limit / size : 1;
}

// e = gradient of loss_factor / 2 |M(k) - v|^2 for z. `normed`: [head_dim] of scratch.
inline void LossGradient(const MemoryProblem& problem, int64_t head, const float* z, const float* k,
                         const float* v, float* normed, float* e) {
  const int64_t width = problem.shape.head_dim;
  const float factor = problem.loss_factor;
  if (!problem.residual_norm) {
    const float limited = factor * LimitError(problem, z, v);
    for (int64_t c = 0; c < width; ++c) e[c] = limited * (z[c] - v[c]);
    return;
  }
  const float* w = problem.norm_weight + head * width;
  const float* b = problem.norm_bias + head * width;
  const float inverse = Normalize(width, problem.norm_epsilon, z, normed);
  for (int64_t c = 0; c < width; ++c) {
    e[c] = factor * w[c] * (w[c] * normed[c] + b[c] + k[c] - v[c]);
  }
  const float mean = Mean(width, e), along = MeanProduct(width, e, normed);
  for (int64_t c = 0; c < width; ++c) e[c] = inverse * (e[c] - mean - normed[c] * along);
}

// ---- reading ----

// What reading computes for one layer.
struct MemoryReads {
  MemoryReads(const MemoryShape& shape, Scratch& scratch) {
    const int64_t widest = std::max(shape.head_dim, shape.hidden_dim);
    kept = scratch.take(kTokens * widest);
    carried = scratch.take(kTokens * widest);
    h = scratch.take(kTokens * widest);
    dots = scratch.take(kPairs);
    pairs = scratch.take(kPairs);
  }

  float* kept;     // beta_t x_t, then (1 - beta_t) x_t
  float* carried;  // f_t x_t
  float* h;
  float* dots;   // x_t . a_j (+ 1 with a bias)
  float* pairs;  // - tau_t G_tj times that
};

// What a layer of one head is forgotten towards; null: zero.
struct MemoryTarget {
  MemoryTarget(const MemoryProblem& problem, int64_t head, int64_t layer) {
    if (problem.target[layer] == nullptr) return;
    weight = problem.target[layer] + head * problem.shape.weight_size(layer);
    if (problem.shape.bias) bias = problem.target_bias[layer] + head * problem.shape.out(layer);
  }
  const float *weight = nullptr, *bias = nullptr;
};

// h [n, out] of a layer for inputs x [n, in]: row t with the weights once seen + t tokens of the
// mini-batch have stepped, but without these steps.
inline void ReadCarried(const MemoryProblem& problem, int64_t head, const float* state,
                        int64_t layer, int64_t seen, int64_t n, const MemoryGates& gates,
                        const float* x, MemoryReads& reads, float* h) {
  const MemoryShape& shape = problem.shape;
  const int64_t in = shape.in(layer), out = shape.out(layer);
  const MemoryTarget target(problem, head, layer);
  const float* kept = x;
  if (shape.forgetting) {
    for (int64_t t = 0; t < n; ++t) {
      Scale(in, gates.beta[seen + t], x + t * in, reads.kept + t * in);
    }
    kept = reads.kept;
  }
  SmallMatmul(n, out, in, kept, in, 1, state + shape.weight(layer), out, h, out, false);
  if (target.weight != nullptr) {
    for (int64_t t = 0; t < n; ++t) {
      Scale(in, 1 - gates.beta[seen + t], x + t * in, reads.kept + t * in);
    }
    SmallMatmul(n, out, in, reads.kept, in, 1, target.weight, out, h, out, true);
  }
  if (shape.momentum) {
    for (int64_t t = 0; t < n; ++t) {
      Scale(in, gates.f[seen + t], x + t * in, reads.carried + t * in);
    }
    SmallMatmul(n, out, in, reads.carried, in, 1, state + shape.surprise(layer), out, h, out, true);
  }
  if (!shape.bias) return;
  const float* b = state + shape.bias_weight(layer);
  const float* s = state + shape.bias_surprise(layer);
  for (int64_t t = 0; t < n; ++t) {
    float* HWY_RESTRICT row = h + t * out;
    const float beta = gates.beta[seen + t], f = gates.f[seen + t];
    for (int64_t c = 0; c < out; ++c) row[c] += beta * b[c];
    if (target.bias != nullptr) {
      for (int64_t c = 0; c < out; ++c) row[c] += (1 - beta) * target.bias[c];
    }
    if (shape.momentum) {
      for (int64_t c = 0; c < out; ++c) row[c] += f * s[c];
    }
  }
}

// What the steps add: reads.dots and reads.pairs of x with the mini-batch's first `count` tokens.
inline void ReadPairs(const MemoryShape& shape, int64_t layer, int64_t seen, int64_t n,
                      int64_t count, const MemoryTokens& tokens, const MemoryGates& gates,
                      const float* x, MemoryReads& reads) {
  DotProducts(n, count, shape.in(layer), x, tokens.a[layer], reads.dots);
  const float own = shape.bias ? 1.0f : 0.0f;
  for (int64_t t = 0; t < n; ++t) {
    float* HWY_RESTRICT dots = reads.dots + t * kTokens;
    float* HWY_RESTRICT pairs = reads.pairs + t * kTokens;
    const float* weights = gates.pairs + (seen + t) * kTokens;
    for (int64_t j = 0; j < count; ++j) {
      dots[j] += own;
      pairs[j] = -weights[j] * dots[j];
    }
  }
}

// h_l of tokens first ... first + n - 1 from their inputs x [n, in], into reads.h.
inline void ReadLayer(const MemoryProblem& problem, int64_t head, const float* state, int64_t layer,
                      int64_t first, int64_t n, const MemoryTokens& tokens,
                      const MemoryGates& gates, const float* x, MemoryReads& reads) {
  const int64_t out = problem.shape.out(layer), seen = first + 1, count = first + n;
  ReadCarried(problem, head, state, layer, seen, n, gates, x, reads, reads.h);
  ReadPairs(problem.shape, layer, seen, n, count, tokens, gates, x, reads);
  SmallMatmul(n, out, count, reads.pairs, kTokens, 1, tokens.e[layer], out, reads.h, out, true);
}

// h = x W + b, the plain layer.
inline void ReadWeights(const MemoryShape& shape, const float* state, int64_t layer, int64_t n,
                        const float* x, float* h) {
  const int64_t in = shape.in(layer), out = shape.out(layer);
  SmallMatmul(n, out, in, x, in, 1, state + shape.weight(layer), out, h, out, false);
  if (shape.bias) AddToRows(n, out, state + shape.bias_weight(layer), h);
}

// ---- learning ----

// What the last layer's error is multiplied by for its input a, so that a step never takes more
// than its share of what the memory answers to a.
inline float StepFactor(const MemoryProblem& problem, const float* a) {
  if (!problem.online_errors) return 1;
  const int64_t in = problem.shape.in(problem.shape.depth - 1);
  return 1 / std::max(1.0f, DotProduct(a, a, in));
}

// Inputs and back-signals of tokens first ... first + n - 1, which are rows row ... of the batch,
// in the mini-batch that starts from `state`.
inline void LearnTokens(const MemoryProblem& problem, int64_t head, const float* state, int64_t row,
                        int64_t first, int64_t n, const MemoryGates& gates, MemoryTokens& tokens,
                        MemoryReads& reads) {
  const MemoryShape& shape = problem.shape;
  const int64_t width = shape.head_dim, last = shape.depth - 1;
  for (int64_t t = 0; t < n; ++t) {
    CopyRow(problem.k.row(row + t) + head * width, width, tokens.a[0] + (first + t) * width);
  }
  for (int64_t l = 0; l < last; ++l) {
    const int64_t in = shape.in(l), out = shape.out(l);
    ReadWeights(shape, state, l, n, tokens.a[l] + first * in, tokens.z);
    GeluRows(n * out, tokens.z, tokens.a[l + 1] + first * out, tokens.slope[l] + first * out,
             tokens.curve[l]);
  }
  const float* a = tokens.a[last] + first * shape.in(last);
  float* z = tokens.z_last != nullptr ? tokens.z_last : tokens.z;
  if (problem.online_errors) {
    ReadCarried(problem, head, state, last, first, n, gates, a, reads, z);
    ReadPairs(shape, last, first, n, first + n, tokens, gates, a, reads);
  } else {
    ReadWeights(shape, state, last, n, a, z);
  }
  for (int64_t t = 0; t < n; ++t) {
    if (problem.online_errors && first + t > 0) {
      SmallMatmul(1, width, first + t, reads.pairs + t * kTokens, kTokens, 1, tokens.e[last], width,
                  z + t * width, width, true);
    }
    float* e = tokens.e[last] + (first + t) * width;
    LossGradient(problem, head, z + t * width, tokens.a[0] + (first + t) * width,
                 problem.v.row(row + t) + head * width, tokens.products, e);
    const float factor = StepFactor(problem, a + t * shape.in(last));
    for (int64_t c = 0; factor < 1 && c < width; ++c) e[c] *= factor;
  }
  for (int64_t l = last; l > 0; --l) {
    const int64_t in = shape.in(l), out = shape.out(l);
    ToColumns(n, out, tokens.e[l] + first * out, tokens.columns);
    TimesColumns(in, out, state + shape.weight(l), tokens.columns, tokens.products, false);
    float* HWY_RESTRICT signal = tokens.signal[l] != nullptr ? tokens.signal[l] : tokens.z;
    Transpose(in, n, tokens.products, kTokens, signal, in);
    float* HWY_RESTRICT e = tokens.e[l - 1] + first * in;
    const float* HWY_RESTRICT slope = tokens.slope[l - 1] + first * in;
    const float rate = l == last ? problem.hidden_rate : 1;
    for (int64_t c = 0; c < n * in; ++c) e[c] = rate * signal[c] * slope[c];
  }
}

// ---- folding ----

// Rows of a tile of W and S; a token's factor is shared by both.
constexpr int kFoldRows = kTileRows / 2;

// One register tile, R rows of V vectors (the last of `last_lanes`) of
//   W' = beta W + (1 - beta) W_* + f S + sum_j a_j^T w_j,  S' = m S + sum_j a_j^T s_j
// with w_j = - tau G_j e_j and s_j = - n_j e_j. target: W_*, or null.
template <int R, int V, bool kMomentum>
inline void FoldTile(int64_t in, int64_t out, int64_t count, const float* HWY_RESTRICT a,
                     const float* HWY_RESTRICT w_rows, const float* HWY_RESTRICT s_rows, float beta,
                     float f, float m, const float* w, const float* target, const float* s,
                     float* w_to, float* s_to, size_t last_lanes) {
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
  FloatVector weights[R][V], surprises[R][V];
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < V; ++v) {
      const int64_t at = i * out + v * stride;
      weights[i][v] = hn::Mul(hn::Set(d, beta), load(w + at, v));
      if (target != nullptr) {
        weights[i][v] = hn::MulAdd(hn::Set(d, 1 - beta), load(target + at, v), weights[i][v]);
      }
      if constexpr (kMomentum) {
        const FloatVector old = load(s + at, v);
        weights[i][v] = hn::MulAdd(hn::Set(d, f), old, weights[i][v]);
        surprises[i][v] = hn::Mul(hn::Set(d, m), old);
      }
    }
  }
  for (int64_t j = 0; j < count; ++j) {
    FloatVector to_weights[V], to_surprises[V];
    for (int v = 0; v < V; ++v) {
      to_weights[v] = load(w_rows + j * out + v * stride, v);
      if constexpr (kMomentum) to_surprises[v] = load(s_rows + j * out + v * stride, v);
    }
    for (int i = 0; i < R; ++i) {
      const auto left = hn::Set(d, a[j * in + i]);
      for (int v = 0; v < V; ++v) {
        weights[i][v] = hn::MulAdd(left, to_weights[v], weights[i][v]);
        if constexpr (kMomentum)
          surprises[i][v] = hn::MulAdd(left, to_surprises[v], surprises[i][v]);
      }
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < V; ++v) {
      const int64_t at = i * out + v * stride;
      store(weights[i][v], w_to + at, v);
      if constexpr (kMomentum) store(surprises[i][v], s_to + at, v);
    }
  }
}

template <int V, bool kMomentum>
inline void FoldColumns(int64_t in, int64_t out, int64_t count, const float* a, const float* w_rows,
                        const float* s_rows, float beta, float f, float m, const float* w,
                        const float* target, const float* s, float* w_to, float* s_to,
                        size_t last_lanes) {
  int64_t i = 0;
  for (; i + kFoldRows <= in; i += kFoldRows) {
    FoldTile<kFoldRows, V, kMomentum>(in, out, count, a + i, w_rows, s_rows, beta, f, m,
                                      w + i * out, Further(target, i * out), s + i * out,
                                      w_to + i * out, s_to + i * out, last_lanes);
  }
  for (; i < in; ++i) {
    FoldTile<1, V, kMomentum>(in, out, count, a + i, w_rows, s_rows, beta, f, m, w + i * out,
                              Further(target, i * out), s + i * out, w_to + i * out, s_to + i * out,
                              last_lanes);
  }
}

// The state after the first `count` tokens of the mini-batch that `from` starts, written to `to`,
// which may be `from`. w_rows, s_rows: [count, widest] of scratch.
template <bool kMomentum>
inline void FoldState(const MemoryProblem& problem, int64_t head, const float* from,
                      const MemoryTokens& tokens, const MemoryGates& gates, int64_t count,
                      float* w_rows, float* s_rows, float* to) {
  const MemoryShape& shape = problem.shape;
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  const float beta = gates.beta[count], f = gates.f[count], m = gates.m[count];
  for (int64_t l = 0; l < shape.depth; ++l) {
    const int64_t in = shape.in(l), out = shape.out(l);
    for (int64_t j = 0; j < count; ++j) {
      const float* HWY_RESTRICT e = tokens.e[l] + j * out;
      const float weight = -gates.pairs[count * kTokens + j];
      const float surprise = -gates.n[count * kTokens + j];
      for (int64_t c = 0; c < out; ++c) w_rows[j * out + c] = weight * e[c];
      if constexpr (kMomentum) {
        for (int64_t c = 0; c < out; ++c) s_rows[j * out + c] = surprise * e[c];
      }
    }
    const MemoryTarget target(problem, head, l);
    const float* w = from + shape.weight(l);
    const float* s = kMomentum ? from + shape.surprise(l) : w;
    float* w_to = to + shape.weight(l);
    float* s_to = kMomentum ? to + shape.surprise(l) : w_to;
    int64_t c = 0;
    for (; c + 2 * lanes <= out; c += 2 * lanes) {
      FoldColumns<2, kMomentum>(in, out, count, tokens.a[l], w_rows + c, s_rows + c, beta, f, m,
                                w + c, Further(target.weight, c), s + c, w_to + c, s_to + c,
                                static_cast<size_t>(lanes));
    }
    for (; c < out; c += lanes) {
      FoldColumns<1, kMomentum>(in, out, count, tokens.a[l], w_rows + c, s_rows + c, beta, f, m,
                                w + c, Further(target.weight, c), s + c, w_to + c, s_to + c,
                                static_cast<size_t>(std::min(lanes, out - c)));
    }
    if (!shape.bias) continue;
    for (c = 0; c < out; ++c) {
      float weight = beta * from[shape.bias_weight(l) + c];
      if (target.bias != nullptr) weight += (1 - beta) * target.bias[c];
      if constexpr (kMomentum) {
        const float old = from[shape.bias_surprise(l) + c];
        weight += f * old;
        float surprise = m * old;
        for (int64_t j = 0; j < count; ++j) surprise += s_rows[j * out + c];
        to[shape.bias_surprise(l) + c] = surprise;
      }
      for (int64_t j = 0; j < count; ++j) weight += w_rows[j * out + c];
      to[shape.bias_weight(l) + c] = weight;
    }
  }
}

inline void Fold(const MemoryProblem& problem, int64_t head, const float* from,
                 const MemoryTokens& tokens, const MemoryGates& gates, int64_t count, float* w_rows,
                 float* s_rows, float* to) {
  if (problem.shape.momentum) {
    FoldState<true>(problem, head, from, tokens, gates, count, w_rows, s_rows, to);
  } else {
    FoldState<false>(problem, head, from, tokens, gates, count, w_rows, s_rows, to);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_FAST_WEIGHT_MEMORY_INL_H_
