// Backward pass of fast-weight memories, from the last mini-batch to the first. The states that
// mini-batches start from are computed again in groups, from those that the forward pass kept. In a
// mini-batch gradients flow from the state behind it through the fold, from the outputs through
// reading, then both through the back-signals e_l (second derivatives of the memory) and the inputs
// a_l of its tokens, and last through the sums of gates. d(x) stands for the gradient of x.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/fast_weight_memory_backward.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target: included once for each instruction set.
#include "backend/cpu/fast_weight_memory-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {

// Everything that one mini-batch needs on its way back.
struct MemoryBackward {
  MemoryBackward(const MemoryProblem& problem, Scratch& scratch)
      : shape(problem.shape), tokens(shape, scratch), reads(shape, scratch) {
    const int64_t widest = std::max(shape.head_dim, shape.hidden_dim);
    for (int64_t l = 0; l < shape.depth; ++l) {
      const int64_t in = kTokens * shape.in(l), out = kTokens * shape.out(l);
      x[l] = scratch.take(in);
      carried[l] = scratch.take(in);
      da[l] = scratch.take(in);
      de[l] = scratch.take(out);
      dz[l] = scratch.take(out);
      left[l] = scratch.take(3 * in);
      right[l] = scratch.take(3 * out);
      read_slope[l] = scratch.take(out);
      dots[l] = scratch.take(kPairs);
      pairs[l] = scratch.take(kPairs);
      if (l + 1 < shape.depth) tokens.curve[l] = scratch.take(out);
      if (l > 0) tokens.signal[l] = scratch.take(in);
    }
    tokens.z_last = scratch.take(kTokens * shape.head_dim);
    if (problem.online_errors) {
      error_carried = scratch.take(kTokens * shape.in(shape.depth - 1));
      error_dots = scratch.take(kPairs);
      error_pairs = scratch.take(kPairs);
    }
    dk = scratch.take(kTokens * shape.head_dim);
    dx = scratch.take(kTokens * widest);
    work = scratch.take(2 * kTokens * widest);
    columns = scratch.take(kTokens * widest);
    products = scratch.take(2 * kTokens * widest);
    normed = scratch.take(widest);
    row = scratch.take(widest);
    dpairs = scratch.take(kPairs + kTokens);
    ddots = scratch.take(kPairs);
  }

  const MemoryShape& shape;
  MemoryTokens tokens;
  MemoryReads reads;
  MemoryGates gates;
  float* x[kMemoryDepth];           // inputs of layers when reading
  float* carried[kMemoryDepth];     // f_t x_t
  float* read_slope[kMemoryDepth];  // gelu'(h_l)
  float* dots[kMemoryDepth];
  float* pairs[kMemoryDepth];
  // The same of the last layer's online errors, whose x are the tokens' inputs of the layer.
  float *error_carried = nullptr, *error_dots = nullptr, *error_pairs = nullptr;
  float* da[kMemoryDepth];
  float* de[kMemoryDepth];
  float* dz[kMemoryDepth];
  // d(W_l) += left^T right: rows of reading, of the inputs and of the back-signals.
  float* left[kMemoryDepth];
  float* right[kMemoryDepth];
  float *dk, *dx, *work, *columns, *products, *normed, *row;
  float *dpairs, *ddots;     // of tau_t G_tj (in the rows of MemoryGates), of x_t . a_j
  float* dtarget = nullptr;  // of what is forgotten towards, in the places of a state
  float dbeta[kTokens + 1], df[kTokens + 1], dn[kTokens], dm;
};

inline void AddScaled(int64_t count, float factor, const float* HWY_RESTRICT from,
                      float* HWY_RESTRICT to) {
  for (int64_t c = 0; c < count; ++c) to[c] += factor * from[c];
}

inline void Write(const Matrix& to, int64_t row, int64_t column, int64_t count, const float* from) {
  if (to.data == nullptr) return;
  float* target = to.row(row) + column;
  if (to.accumulate) {
    AddScaled(count, 1.0f, from, target);
  } else {
    CopyRow(from, count, target);
  }
}

// Through a fold: the gradients dw and ds of count weights and their momentum become those of the
// weights and momentum before it; adds the gradients of beta, f and m, and that of what the weights
// are forgotten towards (target; null: zero) to dtarget.
template <bool kMomentum>
inline void UnfoldWeights(int64_t count, float beta, float f, float m, const float* w,
                          const float* target, const float* s, float* dw, float* dtarget, float* ds,
                          float& dbeta, float& df, float& dm) {
  const FloatTag d;
  auto to_beta = hn::Zero(d), to_f = hn::Zero(d), to_m = hn::Zero(d);
  ForEachVector(count, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    const auto weight_gradient = v.load(dw + i);
    auto forgotten = v.load(w + i);
    if (target != nullptr) {
      forgotten = hn::Sub(forgotten, v.load(target + i));
      v.store(hn::MulAdd(hn::Set(d, 1 - beta), weight_gradient, v.load(dtarget + i)), dtarget + i);
    }
    to_beta = hn::MulAdd(weight_gradient, forgotten, to_beta);
    v.store(hn::Mul(hn::Set(d, beta), weight_gradient), dw + i);
    if constexpr (kMomentum) {
      const auto surprise = v.load(s + i), surprise_gradient = v.load(ds + i);
      to_f = hn::MulAdd(weight_gradient, surprise, to_f);
      to_m = hn::MulAdd(surprise_gradient, surprise, to_m);
      v.store(hn::MulAdd(hn::Set(d, f), weight_gradient, hn::Mul(hn::Set(d, m), surprise_gradient)),
              ds + i);
    }
  });
  dbeta += Total(to_beta);
  df += Total(to_f);
  dm += Total(to_m);
}

// d(state behind the mini-batch) -> d(state before it), d(a), d(e) and d(gates).
template <bool kMomentum>
inline void Unfold(const MemoryProblem& problem, int64_t head, const float* state, int64_t n,
                   float* dstate, MemoryBackward& b) {
  const MemoryShape& shape = b.shape;
  const float* weights = b.gates.pairs + n * kTokens;
  const float* surprises = b.gates.n + n * kTokens;
  const float beta = b.gates.beta[n], f = b.gates.f[n], m = b.gates.m[n];
  for (int64_t l = 0; l < shape.depth; ++l) {
    const int64_t in = shape.in(l), out = shape.out(l);
    float* dw = dstate + shape.weight(l);
    float* ds = kMomentum ? dstate + shape.surprise(l) : dw;
    float* dbias = dstate + shape.bias_weight(l);
    float* dbias_surprise = dstate + shape.bias_surprise(l);
    const float* a = b.tokens.a[l];
    const float* e = b.tokens.e[l];
    std::fill_n(b.de[l], n * out, 0.0f);
    const auto through = [&](const float* gradient, const float* bias_gradient,
                             const float* factors, float* factor_gradients, bool add) {
      SmallMatmul(n, out, in, a, in, 1, gradient, out, b.work, out, false);
      if (shape.bias) AddToRows(n, out, bias_gradient, b.work);
      for (int64_t j = 0; j < n; ++j) {
        factor_gradients[j] -= DotProduct(e + j * out, b.work + j * out, out);
        AddScaled(out, -factors[j], b.work + j * out, b.de[l] + j * out);
      }
      for (int64_t j = 0; j < n; ++j) Scale(out, -factors[j], e + j * out, b.work + j * out);
      ToColumns(n, out, b.work, b.columns);
      TimesColumns(in, out, gradient, b.columns, b.products, add);
    };
    through(dw, dbias, weights, b.dpairs + n * kTokens, false);
    if constexpr (kMomentum) through(ds, dbias_surprise, surprises, b.dn, true);
    Transpose(in, n, b.products, kTokens, b.da[l], in);

    const MemoryTarget target(problem, head, l);
    UnfoldWeights<kMomentum>(shape.weight_size(l), beta, f, m, state + shape.weight(l),
                             target.weight, state + shape.surprise(l), dw,
                             b.dtarget + shape.weight(l), ds, b.dbeta[n], b.df[n], b.dm);
    if (shape.bias) {
      UnfoldWeights<kMomentum>(out, beta, f, m, state + shape.bias_weight(l), target.bias,
                               state + shape.bias_surprise(l), dbias,
                               b.dtarget + shape.bias_weight(l), dbias_surprise, b.dbeta[n],
                               b.df[n], b.dm);
    }
  }
}

// d(o) of the mini-batch's rows -> d(h) of the last layer, in b.right.
inline void OutputGradient(const MemoryProblem& problem, int64_t head, int64_t row, int64_t n,
                           const ConstMatrix& out_grad, const MemoryTaskGradients& own,
                           MemoryBackward& b) {
  const int64_t width = b.shape.head_dim, column = head * width, last = b.shape.depth - 1;
  for (int64_t t = 0; t < n; ++t) {
    const float* dy = out_grad.row(row + t) + column;
    float* HWY_RESTRICT dh = b.right[last] + t * width;
    if (!problem.residual_norm) {
      CopyRow(dy, width, dh);
      continue;
    }
    const float* w = problem.norm_weight + column;
    const float inverse = Normalize(width, problem.norm_epsilon, b.reads.h + t * width, b.normed);
    for (int64_t c = 0; c < width; ++c) {
      own.norm_weight[c] += dy[c] * b.normed[c];
      own.norm_bias[c] += dy[c];
      b.row[c] = dy[c] * w[c];
    }
    const float mean = Mean(width, b.row), along = MeanProduct(width, b.row, b.normed);
    for (int64_t c = 0; c < width; ++c) {
      dh[c] = inverse * (b.row[c] - mean - b.normed[c] * along);
    }
  }
}

// Rows that were read from a layer: x [n, in], row t once seen + t tokens had stepped, with what
// ReadCarried and ReadPairs left of them, and their gradient dh [n, out].
struct LayerRead {
  int64_t seen;
  const float *x, *carried, *dots, *dh;
  float* kept;  // [n, in]: beta_t x_t, which is d(W) once multiplied by dh
};

// What reading adds for the weights that are forgotten towards: to d(x), d(beta) and b.dtarget.
// b.columns holds d(h).
inline void TargetReadGradient(const MemoryTarget& target, int64_t l, int64_t n,
                               const LayerRead& read, MemoryBackward& b) {
  if (target.weight == nullptr) return;
  const MemoryShape& shape = b.shape;
  const int64_t in = shape.in(l), out = shape.out(l);
  TimesColumns(in, out, target.weight, b.columns, b.products, false);
  Transpose(in, n, b.products, kTokens, b.work, in);
  for (int64_t t = 0; t < n; ++t) {
    const int64_t seen = read.seen + t;
    const float back = 1 - b.gates.beta[seen];
    float* HWY_RESTRICT u = b.work + t * in;
    b.dbeta[seen] -= DotProduct(read.x + t * in, u, in);
    AddScaled(in, back, u, b.dx + t * in);
    Scale(in, back, read.x + t * in, u);
    if (target.bias == nullptr) continue;
    b.dbeta[seen] -= DotProduct(read.dh + t * out, target.bias, out);
    AddScaled(out, back, read.dh + t * out, b.dtarget + shape.bias_weight(l));
  }
  SmallMatmul(in, out, n, b.work, 1, in, read.dh, out, b.dtarget + shape.weight(l), out, true);
}

// Through reading a layer, to d(x), which is left in b.dx; adds to d(a), d(S) and d(gates), not to
// d(e).
inline void LayerReadGradient(const MemoryProblem& problem, int64_t head, const float* state,
                              int64_t l, int64_t n, const LayerRead& read, float* dstate,
                              MemoryBackward& b) {
  const MemoryShape& shape = b.shape;
  const int64_t in = shape.in(l), out = shape.out(l);
  const float* dh = read.dh;
  DotProducts(n, n, out, dh, b.tokens.e[l], b.ddots);
  for (int64_t t = 0; t < n; ++t) {
    float* HWY_RESTRICT ddots = b.ddots + t * kTokens;
    const int64_t place = (read.seen + t) * kTokens;
    for (int64_t j = 0; j < n; ++j) {
      // The zeros of `pairs` keep tokens that had not stepped out of it all.
      b.dpairs[place + j] -= ddots[j] * read.dots[t * kTokens + j];
      ddots[j] *= -b.gates.pairs[place + j];
    }
  }
  ToColumns(n, out, dh, b.columns);
  const int64_t matrices = shape.momentum ? 2 : 1;
  TimesColumns(matrices * in, out, state + shape.weight(l), b.columns, b.products, false);
  Transpose(matrices * in, n, b.products, kTokens, b.work, matrices * in);
  for (int64_t t = 0; t < n; ++t) {
    const int64_t seen = read.seen + t;
    const float beta = b.gates.beta[seen], f = b.gates.f[seen];
    const float* x = read.x + t * in;
    const float* u = b.work + t * matrices * in;
    float* HWY_RESTRICT dx = b.dx + t * in;
    b.dbeta[seen] += DotProduct(x, u, in);
    Scale(in, beta, u, dx);
    Scale(in, beta, x, read.kept + t * in);
    if (shape.momentum) {
      b.df[seen] += DotProduct(x, u + in, in);
      AddScaled(in, f, u + in, dx);
    }
    if (!shape.bias) continue;
    b.dbeta[seen] += DotProduct(dh + t * out, state + shape.bias_weight(l), out);
    AddScaled(out, beta, dh + t * out, dstate + shape.bias_weight(l));
    if (shape.momentum) {
      b.df[seen] += DotProduct(dh + t * out, state + shape.bias_surprise(l), out);
      AddScaled(out, f, dh + t * out, dstate + shape.bias_surprise(l));
    }
  }
  TargetReadGradient(MemoryTarget(problem, head, l), l, n, read, b);
  SmallMatmul(n, in, n, b.ddots, kTokens, 1, b.tokens.a[l], in, b.dx, in, true);
  SmallMatmul(n, in, n, b.ddots, 1, kTokens, read.x, in, b.da[l], in, true);
  if (shape.momentum) {
    SmallMatmul(in, out, n, read.carried, 1, in, dh, out, dstate + shape.surprise(l), out, true);
  }
}

// Through reading: from d(h) of the last layer to d(q), which is left in b.dx; adds to d(a), d(e),
// d(S) and d(gates). What belongs to d(W) is left in b.left and b.right.
inline void ReadGradient(const MemoryProblem& problem, int64_t head, const float* state, int64_t n,
                         float* dstate, MemoryBackward& b) {
  const MemoryShape& shape = b.shape;
  for (int64_t l = shape.depth - 1; l >= 0; --l) {
    const int64_t in = shape.in(l), out = shape.out(l);
    const float* dh = b.right[l];
    SmallMatmul(n, out, n, b.pairs[l], 1, kTokens, dh, out, b.de[l], out, true);
    LayerReadGradient(problem, head, state, l, n,
                      {1, b.x[l], b.carried[l], b.dots[l], dh, b.left[l]}, dstate, b);
    if (l > 0) {
      float* HWY_RESTRICT below = b.right[l - 1];
      const float* slope = b.read_slope[l - 1];
      for (int64_t c = 0; c < n * in; ++c) below[c] = b.dx[c] * slope[c];
    }
  }
}

// Through reading the weights of an anchor: from d(h) of the last layer to d(q), which is left in
// b.dx; adds to the gradient of those weights.
inline void LaggedReadGradient(const float* anchor, int64_t n, float* danchor, MemoryBackward& b) {
  const MemoryShape& shape = b.shape;
  for (int64_t l = shape.depth - 1; l >= 0; --l) {
    const int64_t in = shape.in(l), out = shape.out(l);
    const float* dh = b.right[l];
    SmallMatmul(in, out, n, b.x[l], 1, in, dh, out, danchor + shape.weight(l), out, true);
    for (int64_t t = 0; shape.bias && t < n; ++t) {
      AddScaled(out, 1.0f, dh + t * out, danchor + shape.bias_weight(l));
    }
    ToColumns(n, out, dh, b.columns);
    TimesColumns(in, out, anchor + shape.weight(l), b.columns, b.products, false);
    Transpose(in, n, b.products, kTokens, b.dx, in);
    if (l > 0) {
      float* HWY_RESTRICT below = b.right[l - 1];
      const float* slope = b.read_slope[l - 1];
      for (int64_t c = 0; c < n * in; ++c) below[c] = b.dx[c] * slope[c];
    }
    std::fill_n(b.left[l], n * in, 0.0f);
  }
}

// Through LossGradient of one token: from de to dz, dv and the part of dk that does not pass
// through the memory. k: the token's key.
inline void LossSecondGradient(const MemoryProblem& problem, int64_t head, const float* z,
                               const float* k, const float* v, const float* de,
                               const MemoryTaskGradients& own, float* normed, float* raw, float* dz,
                               float* dk, float* dv) {
  const int64_t width = problem.shape.head_dim;
  const float factor = problem.loss_factor;
  if (!problem.residual_norm) {
    // A limited e has a constant length: what would change it is projected away.
    const float limit = LimitError(problem, z, v), limited = factor * limit;
    float along = 0;
    if (limit < 1) {
      for (int64_t c = 0; c < width; ++c) along += de[c] * (z[c] - v[c]);
      along *= limit * limit / (problem.error_limit * problem.error_limit);
    }
    for (int64_t c = 0; c < width; ++c) {
      dz[c] = limited * (de[c] - along * (z[c] - v[c]));
      dv[c] = -dz[c];
      dk[c] = 0;
    }
    return;
  }
  const float* w = problem.norm_weight + head * width;
  const float* b = problem.norm_bias + head * width;
  const float inverse = Normalize(width, problem.norm_epsilon, z, normed);
  for (int64_t c = 0; c < width; ++c) {
    raw[c] = factor * w[c] * (w[c] * normed[c] + b[c] + k[c] - v[c]);
  }
  // e = inverse (raw - mean - normed along)
  const float mean = Mean(width, raw), along = MeanProduct(width, raw, normed);
  const float de_mean = Mean(width, de), de_along = MeanProduct(width, de, normed);
  const auto size = static_cast<float>(width);
  const float dinverse = size * (MeanProduct(width, de, raw) - de_mean * mean - de_along * along);
  for (int64_t c = 0; c < width; ++c) {
    const float draw = inverse * (de[c] - de_mean - normed[c] * de_along);
    const float dtarget = draw * factor * w[c];
    own.norm_weight[c] += draw * factor * (2 * w[c] * normed[c] + b[c] + k[c] - v[c]);
    own.norm_bias[c] += dtarget;
    dk[c] = dtarget;
    dv[c] = -dtarget;
    raw[c] = dtarget * w[c] - inverse * (de[c] * along + raw[c] * de_along);  // d(normed)
  }
  const float d_mean = Mean(width, raw), d_along = MeanProduct(width, raw, normed);
  const float of_inverse = dinverse * inverse * inverse / size;
  for (int64_t c = 0; c < width; ++c) {
    dz[c] = inverse * (raw[c] - d_mean - normed[c] * d_along) - of_inverse * normed[c];
  }
}

// Through the tokens' back-signals and inputs: from d(a) and d(e) to d(k), d(v) and d(W).
inline void LearnGradient(const MemoryProblem& problem, int64_t head, const float* state,
                          int64_t row, int64_t n, float* dstate, const MemoryGradients& gradients,
                          const MemoryTaskGradients& own, MemoryBackward& b) {
  const MemoryShape& shape = b.shape;
  const int64_t width = shape.head_dim, column = head * width, last = shape.depth - 1;
  for (int64_t l = 1; l <= last; ++l) {
    const int64_t in = shape.in(l), out = shape.out(l);
    const float* HWY_RESTRICT de = b.de[l - 1];
    float* HWY_RESTRICT dsignal = b.left[l] + 2 * n * in;
    float* HWY_RESTRICT dz = b.dz[l - 1];
    const float rate = l == last ? problem.hidden_rate : 1;
    for (int64_t c = 0; c < n * in; ++c) {
      dsignal[c] = rate * de[c] * b.tokens.slope[l - 1][c];
      dz[c] = rate * de[c] * b.tokens.signal[l][c] * b.tokens.curve[l - 1][c];
    }
    CopyRow(b.tokens.e[l], n * out, b.right[l] + 2 * n * out);
    SmallMatmul(n, out, in, dsignal, in, 1, state + shape.weight(l), out, b.de[l], out, true);
  }
  // Last token first: with online errors, those before it had a part in its error.
  for (int64_t t = n - 1; t >= 0; --t) {
    float* dz = b.dz[last] + t * width;
    float* de = b.de[last] + t * width;
    const float* a = b.tokens.a[last] + t * shape.in(last);
    const float factor = StepFactor(problem, a);
    if (factor < 1) {
      // e = factor g with factor = 1 / |a|^2, whose gradient is -2 factor^2 a.
      const float along = factor * DotProduct(de, b.tokens.e[last] + t * width, width);
      AddScaled(shape.in(last), -2 * along, a, b.da[last] + t * shape.in(last));
      for (int64_t c = 0; c < width; ++c) de[c] *= factor;
    }
    LossSecondGradient(problem, head, b.tokens.z_last + t * width, b.tokens.a[0] + t * width,
                       problem.v.row(row + t) + column, de, own, b.normed, b.row, dz,
                       b.dk + t * width, b.work);
    Write(gradients.v, row + t, column, width, b.work);
    for (int64_t j = 0; problem.online_errors && j < t; ++j) {
      AddScaled(width, b.error_pairs[t * kTokens + j], dz, b.de[last] + j * width);
    }
  }
  for (int64_t l = last; l >= 0; --l) {
    const int64_t in = shape.in(l), out = shape.out(l);
    CopyRow(b.dz[l], n * out, b.right[l] + n * out);
    float* kept = b.left[l] + n * in;
    if (problem.online_errors && l == last) {
      LayerReadGradient(problem, head, state, l, n,
                        {0, b.tokens.a[l], b.error_carried, b.error_dots, b.dz[l], kept}, dstate,
                        b);
      AddScaled(n * in, 1.0f, b.dx, b.da[l]);
    } else {
      CopyRow(b.tokens.a[l], n * in, kept);
      for (int64_t t = 0; shape.bias && t < n; ++t) {
        AddScaled(out, 1.0f, b.dz[l] + t * out, dstate + shape.bias_weight(l));
      }
      ToColumns(n, out, b.dz[l], b.columns);
      TimesColumns(in, out, state + shape.weight(l), b.columns, b.products, false);
      Transpose(in, n, b.products, kTokens, b.work, in);
      AddScaled(n * in, 1.0f, b.work, b.da[l]);
    }
    const int64_t rows = (l > 0 ? 3 : 2) * n;
    SmallMatmul(in, out, rows, b.left[l], 1, in, b.right[l], out, dstate + shape.weight(l), out,
                true);
    if (l > 0) {
      for (int64_t c = 0; c < n * in; ++c) {
        b.dz[l - 1][c] += b.da[l][c] * b.tokens.slope[l - 1][c];
      }
    }
  }
  for (int64_t t = 0; t < n; ++t) {
    AddScaled(width, 1.0f, b.da[0] + t * width, b.dk + t * width);
    Write(gradients.k, row + t, column, width, b.dk + t * width);
  }
}

// Through the sums of gates, last token first.
inline void GateGradient(int64_t head, int64_t row, int64_t n, const MemoryGradients& gradients,
                         const MemoryTaskGradients& own, MemoryBackward& b) {
  const MemoryShape& shape = b.shape;
  const MemoryGates& gates = b.gates;
  float of_gamma[kTokens] = {}, of_n[kTokens], of_f = 0, of_beta = 0, of_m = b.dm;
  std::copy_n(b.dn, kTokens, of_n);
  for (int64_t t = n - 1; t >= 0; --t) {
    const float keep = shape.forgetting ? 1 - gates.alpha[t] : 1.0f;
    const float* dpairs = b.dpairs + (t + 1) * kTokens;
    const float* gamma = gates.gamma + (t + 1) * kTokens;
    of_f += b.df[t + 1];
    of_m += of_f;
    of_beta += b.dbeta[t + 1];
    float dtau = 0;
    for (int64_t j = 0; j <= t; ++j) {
      dtau += dpairs[j] * gamma[j];
      of_gamma[j] += gates.tau[t] * dpairs[j];
      of_n[j] += of_gamma[j];
    }
    own.tau[t] += dtau;
    float dkeep = of_f * gates.f[t] + of_beta * gates.beta[t];
    float deta = of_m * gates.m[t];
    for (int64_t j = 0; j < t; ++j) {
      dkeep += of_gamma[j] * gamma[j - kTokens];
      deta += of_n[j] * gates.n[t * kTokens + j];
    }
    const float dtheta = of_n[t], dalpha = -dkeep;
    Write(gradients.theta, row + t, head, 1, &dtheta);
    if (shape.momentum) Write(gradients.eta, row + t, head, 1, &deta);
    if (shape.forgetting) Write(gradients.alpha, row + t, head, 1, &dalpha);
    const float decay = shape.momentum ? gates.eta[t] : 0.0f;
    for (int64_t j = 0; j < t; ++j) {
      of_gamma[j] *= keep;
      of_n[j] *= decay;
    }
    of_f *= keep;
    of_beta *= keep;
    of_m *= decay;
  }
}

// Rows row ... row + n - 1, a mini-batch that starts from `state`. dstate: the gradient of the
// state behind it (zeros if nothing is folded), and then of `state`. anchor, danchor: the weights
// that are read where that is not done from `state`, and their gradient, which is added to.
inline void BackwardMiniBatch(const MemoryProblem& problem, int64_t head, const float* state,
                              const float* anchor, int64_t row, int64_t n, bool folded,
                              const ConstMatrix& out_grad, const MemoryGradients& gradients,
                              const MemoryTaskGradients& own, float* dstate, float* danchor,
                              MemoryBackward& b) {
  const MemoryShape& shape = b.shape;
  const int64_t width = shape.head_dim, column = head * width;
  ReadGates(problem, head, row, n, 0, b.gates);
  SumGates(shape, problem.tau, n, b.gates);
  b.reads.carried = b.error_carried;
  b.reads.dots = b.error_dots;
  b.reads.pairs = b.error_pairs;
  LearnTokens(problem, head, state, row, 0, n, b.gates, b.tokens, b.reads);
  for (int64_t t = 0; t < n; ++t) {
    CopyRow(problem.q.row(row + t) + column, width, b.x[0] + t * width);
  }
  for (int64_t l = 0; l < shape.depth; ++l) {
    b.reads.carried = b.carried[l];
    b.reads.dots = b.dots[l];
    b.reads.pairs = b.pairs[l];
    if (problem.lagged) {
      ReadWeights(shape, anchor, l, n, b.x[l], b.reads.h);
    } else {
      ReadLayer(problem, head, state, l, 0, n, b.tokens, b.gates, b.x[l], b.reads);
    }
    if (l + 1 < shape.depth) {
      GeluRows(n * shape.out(l), b.reads.h, b.x[l + 1], b.read_slope[l], nullptr);
    }
  }

  std::fill_n(b.dpairs, kPairs + kTokens, 0.0f);
  std::fill_n(b.dbeta, kTokens + 1, 0.0f);
  std::fill_n(b.df, kTokens + 1, 0.0f);
  std::fill_n(b.dn, kTokens, 0.0f);
  b.dm = 0;
  if (!folded) {
    for (int64_t l = 0; l < shape.depth; ++l) {
      std::fill_n(b.da[l], n * shape.in(l), 0.0f);
      std::fill_n(b.de[l], n * shape.out(l), 0.0f);
    }
  } else if (shape.momentum) {
    Unfold<true>(problem, head, state, n, dstate, b);
  } else {
    Unfold<false>(problem, head, state, n, dstate, b);
  }
  OutputGradient(problem, head, row, n, out_grad, own, b);
  if (problem.lagged) {
    LaggedReadGradient(anchor, n, danchor, b);
  } else {
    ReadGradient(problem, head, state, n, dstate, b);
  }
  for (int64_t t = 0; t < n; ++t) {
    if (problem.residual_norm) {
      AddScaled(width, 1.0f, out_grad.row(row + t) + column, b.dx + t * width);
    }
    Write(gradients.q, row + t, column, width, b.dx + t * width);
  }
  LearnGradient(problem, head, state, row, n, dstate, gradients, own, b);
  GateGradient(head, row, n, gradients, own, b);
}

void BackwardTask(const MemoryProblem& problem, const MemoryRun& run, int64_t head,
                  const ConstMatrix& out_grad, const float* saved, const MemoryGradients& gradients,
                  const MemoryTaskGradients& own) {
  const MemoryShape& shape = problem.shape;
  const int64_t size = shape.state_size(), widest = std::max(shape.head_dim, shape.hidden_dim);
  const int64_t batch = problem.mini_batch, count = (run.length + batch - 1) / batch;
  Scratch scratch;
  float* again = scratch.take((kMemoryGroup - 1) * size);
  float* danchor = scratch.take(problem.lagged ? size : 0);
  float* dtarget = scratch.take(problem.target[0] != nullptr ? size : 0);
  float* w_rows = scratch.take(kTokens * widest);
  float* s_rows = scratch.take(kTokens * widest);
  MemoryBackward b(problem, scratch);
  const int64_t apart = problem.interval / batch;  // mini-batches from anchor to anchor
  if (problem.lagged) std::fill_n(danchor, size, 0.0f);
  if (problem.target[0] != nullptr) std::fill_n(dtarget, size, 0.0f);
  b.dtarget = dtarget;
  std::fill_n(own.initial, size, 0.0f);
  std::fill_n(own.tau, kTokens, 0.0f);
  std::fill_n(own.norm_weight, shape.head_dim, 0.0f);
  std::fill_n(own.norm_bias, shape.head_dim, 0.0f);

  for (int64_t group = (count - 1) / kMemoryGroup; group >= 0; --group) {
    const int64_t begin = group * kMemoryGroup, end = std::min(count, begin + kMemoryGroup);
    const float* states[kMemoryGroup];
    states[0] = group == 0 ? problem.initial + head * size
                           : saved + ((run.first_saved + group - 1) * problem.heads + head) * size;
    for (int64_t i = begin; i + 1 < end; ++i) {
      const int64_t row = run.first_row + i * batch;
      const float* from = states[i - begin];
      float* to = again + (i - begin) * size;
      ReadGates(problem, head, row, batch, 0, b.gates);
      SumGates(shape, problem.tau, batch, b.gates);
      LearnTokens(problem, head, from, row, 0, batch, b.gates, b.tokens, b.reads);
      Fold(problem, head, from, b.tokens, b.gates, batch, w_rows, s_rows, to);
      states[i - begin + 1] = to;
    }
    for (int64_t i = end - 1; i >= begin; --i) {
      const int64_t n = std::min(batch, run.length - i * batch);
      const float* anchor = problem.lagged ? states[i / apart * apart - begin] : nullptr;
      BackwardMiniBatch(problem, head, states[i - begin], anchor, run.first_row + i * batch, n,
                        i + 1 < count, out_grad, gradients, own, own.initial, danchor, b);
      if (problem.lagged && i % apart == 0) {
        AddScaled(size, 1.0f, danchor, own.initial);
        std::fill_n(danchor, size, 0.0f);
      }
    }
  }
  if (problem.target[0] != nullptr) AddScaled(size, 1.0f, dtarget, own.initial);
}

}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(BackwardTask);

void memory_backward_task(const MemoryProblem& problem, const MemoryRun& run, int64_t head,
                          const ConstMatrix& out_grad, const float* saved,
                          const MemoryGradients& gradients, const MemoryTaskGradients& own) {
  HWY_DYNAMIC_DISPATCH(BackwardTask)
  (problem, run, head, out_grad, saved, gradients, own);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
