// What the forward and backward passes of fast-weight memories share: the tokens of one mini-batch
// of one head, from the weights at its start.
#if defined(PRONGHORN_FAST_WEIGHT_MEMORY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_FAST_WEIGHT_MEMORY_INL_H_
#undef PRONGHORN_FAST_WEIGHT_MEMORY_INL_H_
#else
#define PRONGHORN_FAST_WEIGHT_MEMORY_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <variant>

#include "backend/cpu/fast_weight_memory_math-inl.h"
#include "backend/cpu/fast_weight_memory_tasks.h"
#include "backend/cpu/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// One head of a problem.
struct MemoryHead {
  MemoryHead(const MemoryProblem& of, int64_t head)
      : problem(of), shape(of.shape), index(head), ttt(std::get_if<TttRule>(&of.rule)) {
    if (ttt == nullptr) titans = std::get<TitansRule>(of.rule);
  }

  int64_t column() const { return index * shape.head_dim; }  // of rows of all heads
  const float* query(int64_t row) const { return problem.q.row(row) + column(); }
  const float* key(int64_t row) const { return problem.k.row(row) + column(); }
  const float* value(int64_t row) const { return problem.v.row(row) + column(); }
  const float* norm_weight() const { return problem.norm_weight + column(); }
  const float* norm_bias() const { return problem.norm_bias + column(); }
  // Its part of the states of all heads, of which null stands for those of a fresh sequence.
  const float* state(const float* states) const {
    return (states != nullptr ? states : problem.initial) + index * shape.state_size();
  }
  // What the weights of a layer are forgotten towards; null: zero.
  const float* target(int64_t layer) const {
    const float* all = problem.target[layer];
    return all != nullptr ? all + index * shape.weight_size(layer) : nullptr;
  }
  bool lagged() const { return titans.read_interval > 0; }

  const MemoryProblem& problem;
  const MemoryShape& shape;
  int64_t index;
  const TttRule* ttt;  // null with Titans' rule
  TitansRule titans;   // with TTT's, one that does nothing
};

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

// Of the first `count` tokens, from their theta, eta and alpha.
inline void SumGates(const MemoryHead& head, int64_t count, MemoryGates& gates) {
  const MemoryShape& shape = head.shape;
  const float* tau = head.problem.tau;
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

// What a state steps by: inputs a_l and back-signals e_l of each layer for its tokens' keys and
// values, and their gates.
struct MiniBatch {
  MiniBatch(const MemoryShape& shape, Scratch& scratch) {
    for (int64_t l = 0; l < shape.depth; ++l) {
      a[l] = scratch.take(kTokens * shape.in(l));
      e[l] = scratch.take(kTokens * shape.out(l));
    }
  }

  float* a[kMemoryDepth];
  float* e[kMemoryDepth];
  MemoryGates gates;
};

// Tokens first ... first + n - 1 of a mini-batch, which are rows row ... of the batch.
struct TokenRange {
  int64_t row, first, n;
};

inline void LoadToken(const MemoryShape& shape, const float* row, int64_t token,
                      MiniBatch& tokens) {
  for (int64_t l = 0; l < shape.depth; ++l) {
    CopyRow(row + shape.input_at(l), shape.in(l), tokens.a[l] + token * shape.in(l));
    CopyRow(row + shape.error_at(l), shape.out(l), tokens.e[l] + token * shape.out(l));
  }
  const float* from = row + shape.gates_at();
  tokens.gates.theta[token] = *from++;
  if (shape.momentum) tokens.gates.eta[token] = *from++;
  if (shape.forgetting) tokens.gates.alpha[token] = *from;
}

inline void StoreToken(const MemoryShape& shape, const MiniBatch& tokens, int64_t token,
                       float* row) {
  for (int64_t l = 0; l < shape.depth; ++l) {
    CopyRow(tokens.a[l] + token * shape.in(l), shape.in(l), row + shape.input_at(l));
    CopyRow(tokens.e[l] + token * shape.out(l), shape.out(l), row + shape.error_at(l));
  }
  float* to = row + shape.gates_at();
  *to++ = tokens.gates.theta[token];
  if (shape.momentum) *to++ = tokens.gates.eta[token];
  if (shape.forgetting) *to = tokens.gates.alpha[token];
}

// The gates of a range, and the sums of all tokens up to its end.
inline void ReadGates(const MemoryHead& head, const TokenRange& range, MemoryGates& gates) {
  const MemoryProblem& problem = head.problem;
  for (int64_t t = 0; t < range.n; ++t) {
    const int64_t row = range.row + t, token = range.first + t;
    gates.theta[token] = problem.theta.row(row)[head.index];
    if (head.shape.momentum) gates.eta[token] = problem.eta.row(row)[head.index];
    if (head.shape.forgetting) gates.alpha[token] = problem.alpha.row(row)[head.index];
  }
  SumGates(head, range.first + range.n, gates);
}

// ---- reading ----

// What is asked of a layer: x [n, in], row t once seen + t tokens of the mini-batch have stepped.
struct LayerQuery {
  int64_t layer, seen, n;
  const float* x;
};

// What answering leaves, which the gradient needs.
struct LayerReading {
  LayerReading() = default;
  LayerReading(int64_t in, Scratch& scratch)
      : carried(scratch.take(kTokens * in)),
        dots(scratch.take(kPairs)),
        pairs(scratch.take(kPairs)) {}

  float* carried = nullptr;  // f_t x_t
  float* dots = nullptr;     // x_t . a_j (+ 1 with a bias)
  float* pairs = nullptr;    // - tau_t G_tj times that
};

// Room that answering needs.
struct ReadWork {
  ReadWork(const MemoryShape& shape, Scratch& scratch)
      : kept(scratch.take(kTokens * shape.widest())), h(scratch.take(kTokens * shape.widest())) {}

  float* kept;  // beta_t x_t, then (1 - beta_t) x_t
  float* h;     // the answers of ReadLayer
};

// h = x W + b, the plain layer.
inline void ReadWeights(const MemoryShape& shape, const float* state, int64_t layer, int64_t n,
                        const float* x, float* h) {
  const int64_t in = shape.in(layer), out = shape.out(layer);
  SmallMatmul(n, out, in, x, in, 1, state + shape.weight_at(layer), out, h, out, false);
  if (shape.bias) AddToRows(n, out, state + shape.bias_at(layer), h);
}

// h [n, out]: the answers without the steps of the mini-batch itself.
inline void ReadCarried(const MemoryHead& head, const float* state, const MemoryGates& gates,
                        const LayerQuery& query, float* kept, float* carried, float* h) {
  const MemoryShape& shape = head.shape;
  const auto [layer, seen, n, x] = query;
  const int64_t in = shape.in(layer), out = shape.out(layer);
  if (!shape.forgetting) {
    ReadWeights(shape, state, layer, n, x, h);
  } else {
    for (int64_t t = 0; t < n; ++t) Scale(in, gates.beta[seen + t], x + t * in, kept + t * in);
    ReadWeights(shape, state, layer, n, kept, h);
  }
  if (const float* target = head.target(layer); target != nullptr) {
    for (int64_t t = 0; t < n; ++t) Scale(in, 1 - gates.beta[seen + t], x + t * in, kept + t * in);
    SmallMatmul(n, out, in, kept, in, 1, target, out, h, out, true);
  }
  if (shape.momentum) {
    for (int64_t t = 0; t < n; ++t) Scale(in, gates.f[seen + t], x + t * in, carried + t * in);
    SmallMatmul(n, out, in, carried, in, 1, state + shape.momentum_at(layer), out, h, out, true);
  }
}

// What the steps add: dots and pairs of the query with the mini-batch's first `count` tokens.
inline void ReadPairs(const MemoryShape& shape, const MiniBatch& tokens, const LayerQuery& query,
                      int64_t count, LayerReading& reading) {
  DotProducts(query.n, count, shape.in(query.layer), query.x, tokens.a[query.layer], reading.dots);
  const float own = shape.bias ? 1.0f : 0.0f;
  for (int64_t t = 0; t < query.n; ++t) {
    float* HWY_RESTRICT dots = reading.dots + t * kTokens;
    float* HWY_RESTRICT pairs = reading.pairs + t * kTokens;
    const float* weights = tokens.gates.pairs + (query.seen + t) * kTokens;
    for (int64_t j = 0; j < count; ++j) {
      dots[j] += own;
      pairs[j] = -weights[j] * dots[j];
    }
  }
}

// h_l of tokens that have just stepped, seen - 1 ... seen + n - 2, into work.h.
inline void ReadLayer(const MemoryHead& head, const float* state, const MiniBatch& tokens,
                      const LayerQuery& query, ReadWork& work, LayerReading& reading) {
  const int64_t out = head.shape.out(query.layer), count = query.seen + query.n - 1;
  ReadCarried(head, state, tokens.gates, query, work.kept, reading.carried, work.h);
  ReadPairs(head.shape, tokens, query, count, reading);
  SmallMatmul(query.n, out, count, reading.pairs, kTokens, 1, tokens.e[query.layer], out, work.h,
              out, true);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_FAST_WEIGHT_MEMORY_INL_H_
