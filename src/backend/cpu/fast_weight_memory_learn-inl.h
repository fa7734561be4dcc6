// Learning of fast-weight memories: the loss of a token, with its first and second derivatives, and
// the inputs and back-signals of all layers that follow from it.
#if defined(PRONGHORN_FAST_WEIGHT_MEMORY_LEARN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_FAST_WEIGHT_MEMORY_LEARN_INL_H_
#undef PRONGHORN_FAST_WEIGHT_MEMORY_LEARN_INL_H_
#else
#define PRONGHORN_FAST_WEIGHT_MEMORY_LEARN_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "backend/cpu/fast_weight_memory-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// ---- the loss of one token ----

// Where its gradient is taken: at what the last layer answers to the key.
struct LossPoint {
  const float *z, *k, *v;
};

constexpr float kTitansLoss = 2;  // the factor c of c / 2 |M(k) - v|^2; TTT's is 1

// What e = c (z - v) is multiplied by to stay within the error limit.
inline float LimitError(const MemoryHead& head, const LossPoint& at) {
  const float limit = head.titans.error_limit;
  if (limit <= 0) return 1;
  double square = 0;
  for (int64_t c = 0; c < head.shape.head_dim; ++c) {
    square += double{at.z[c] - at.v[c]} * double{at.z[c] - at.v[c]};
  }
  const auto size = static_cast<float>(std::sqrt(square));
  return size > limit ? limit / size : 1;
}

// TTT: e = the gradient of 1/2 |k + LN(z) - v|^2 for z. `normed`: [head_dim] of scratch.
inline void NormedLossGradient(const MemoryHead& head, const LossPoint& at, float* normed,
                               float* e) {
  const int64_t width = head.shape.head_dim;
  const float *w = head.norm_weight(), *b = head.norm_bias();
  const float inverse = Normalize(width, head.ttt->norm_epsilon, at.z, normed);
  for (int64_t c = 0; c < width; ++c) e[c] = w[c] * (w[c] * normed[c] + b[c] + at.k[c] - at.v[c]);
  const float mean = Mean(width, e), along = MeanProduct(width, e, normed);
  for (int64_t c = 0; c < width; ++c) e[c] = inverse * (e[c] - mean - normed[c] * along);
}

// e = the gradient of the loss for z.
inline void LossGradient(const MemoryHead& head, const LossPoint& at, float* normed, float* e) {
  if (head.ttt != nullptr) return NormedLossGradient(head, at, normed, e);
  const float limited = kTitansLoss * LimitError(head, at);
  for (int64_t c = 0; c < head.shape.head_dim; ++c) e[c] = limited * (at.z[c] - at.v[c]);
}

// Gradients that come through e. k: the part that does not pass through the memory.
struct LossGradients {
  float *z, *k, *v;
};

// Titans: from de to those of z and v.
inline void LimitedLossSecondGradient(const MemoryHead& head, const LossPoint& at, const float* de,
                                      const LossGradients& to) {
  const int64_t width = head.shape.head_dim;
  // A limited e has a constant length: what would change it is projected away.
  const float limit = LimitError(head, at), limited = kTitansLoss * limit;
  float along = 0;
  if (limit < 1) {
    for (int64_t c = 0; c < width; ++c) along += de[c] * (at.z[c] - at.v[c]);
    along *= limit * limit / (head.titans.error_limit * head.titans.error_limit);
  }
  for (int64_t c = 0; c < width; ++c) {
    to.z[c] = limited * (de[c] - along * (at.z[c] - at.v[c]));
    to.v[c] = -to.z[c];
    to.k[c] = 0;
  }
}

// TTT: from de to all, and to the norm's parameters in `own`. normed, raw: [head_dim] of scratch.
inline void NormedLossSecondGradient(const MemoryHead& head, const LossPoint& at, const float* de,
                                     const MemoryTaskGradients& own, float* normed, float* raw,
                                     const LossGradients& to) {
  const int64_t width = head.shape.head_dim;
  const float *w = head.norm_weight(), *b = head.norm_bias();
  const float inverse = Normalize(width, head.ttt->norm_epsilon, at.z, normed);
  for (int64_t c = 0; c < width; ++c) {
    raw[c] = w[c] * (w[c] * normed[c] + b[c] + at.k[c] - at.v[c]);
  }
  // e = inverse (raw - mean - normed along)
  const float mean = Mean(width, raw), along = MeanProduct(width, raw, normed);
  const float de_mean = Mean(width, de), de_along = MeanProduct(width, de, normed);
  const auto size = static_cast<float>(width);
  const float dinverse = size * (MeanProduct(width, de, raw) - de_mean * mean - de_along * along);
  for (int64_t c = 0; c < width; ++c) {
    const float draw = inverse * (de[c] - de_mean - normed[c] * de_along);
    const float dtarget = draw * w[c];
    own.norm_weight[c] += draw * (2 * w[c] * normed[c] + b[c] + at.k[c] - at.v[c]);
    own.norm_bias[c] += dtarget;
    to.k[c] = dtarget;
    to.v[c] = -dtarget;
    raw[c] = dtarget * w[c] - inverse * (de[c] * along + raw[c] * de_along);  // d(normed)
  }
  const float d_mean = Mean(width, raw), d_along = MeanProduct(width, raw, normed);
  const float of_inverse = dinverse * inverse * inverse / size;
  for (int64_t c = 0; c < width; ++c) {
    to.z[c] = inverse * (raw[c] - d_mean - normed[c] * d_along) - of_inverse * normed[c];
  }
}

// ---- the layers ----

// Room that learning needs, and what it leaves for the backward pass.
struct LearnWork {
  // keep: all that the backward pass needs gets a place of its own.
  LearnWork(const MemoryShape& shape, bool keep, Scratch& scratch) {
    const int64_t wide = kTokens * shape.widest();
    z = scratch.take(wide);
    columns = scratch.take(wide);
    products = scratch.take(wide);
    answers = keep ? scratch.take(kTokens * shape.head_dim) : z;
    for (int64_t l = 0; l + 1 < shape.depth; ++l) {
      const int64_t between = kTokens * shape.out(l);
      slope[l] = scratch.take(between);
      curve[l] = keep ? scratch.take(between) : nullptr;
      signal[l] = keep ? scratch.take(between) : z;
    }
  }

  float *z, *columns, *products;
  float* answers;  // Z of the last layer
  // Of the new tokens, for each layer but the last:
  float* slope[kMemoryDepth];   // gelu'(Z_l)
  float* curve[kMemoryDepth];   // gelu''(Z_l), with `keep`
  float* signal[kMemoryDepth];  // e_{l+1} W_{l+1}^T
};

// What the last layer's error is multiplied by for its input a, so that a step never takes more
// than its share of what the memory answers to a.
inline float StepFactor(const MemoryHead& head, const float* a) {
  if (!head.titans.online_errors) return 1;
  return 1 / std::max(1.0f, DotProduct(a, a, head.shape.in(head.shape.depth - 1)));
}

// e of the last layer, whose inputs are there. reading: of what the online errors ask.
inline void LastErrors(const MemoryHead& head, const float* state, const TokenRange& range,
                       MiniBatch& tokens, LearnWork& work, ReadWork& read, LayerReading& reading) {
  const MemoryShape& shape = head.shape;
  const int64_t width = shape.head_dim, last = shape.depth - 1, first = range.first;
  const bool online = head.titans.online_errors;
  const float* a = tokens.a[last] + first * shape.in(last);
  float* z = work.answers;
  if (online) {
    const LayerQuery query{last, first, range.n, a};
    ReadCarried(head, state, tokens.gates, query, read.kept, reading.carried, z);
    ReadPairs(shape, tokens, query, first + range.n, reading);
  } else {
    ReadWeights(shape, state, last, range.n, a, z);
  }
  for (int64_t t = 0; t < range.n; ++t) {
    float* answer = z + t * width;
    if (online && first + t > 0) {
      SmallMatmul(1, width, first + t, reading.pairs + t * kTokens, kTokens, 1, tokens.e[last],
                  width, answer, width, true);
    }
    float* e = tokens.e[last] + (first + t) * width;
    const LossPoint point{answer, tokens.a[0] + (first + t) * width, head.value(range.row + t)};
    LossGradient(head, point, work.products, e);
    const float factor = StepFactor(head, a + t * shape.in(last));
    for (int64_t c = 0; factor < 1 && c < width; ++c) e[c] *= factor;
  }
}

// Inputs and back-signals of a range of the mini-batch that starts from `state`.
inline void LearnTokens(const MemoryHead& head, const float* state, const TokenRange& range,
                        MiniBatch& tokens, LearnWork& work, ReadWork& read, LayerReading& reading) {
  const MemoryShape& shape = head.shape;
  const int64_t width = shape.head_dim, last = shape.depth - 1, first = range.first, n = range.n;
  for (int64_t t = 0; t < n; ++t) {
    CopyRow(head.key(range.row + t), width, tokens.a[0] + (first + t) * width);
  }
  for (int64_t l = 0; l < last; ++l) {
    const int64_t in = shape.in(l), out = shape.out(l);
    ReadWeights(shape, state, l, n, tokens.a[l] + first * in, work.z);
    GeluRows(n * out, work.z, tokens.a[l + 1] + first * out, work.slope[l] + first * out,
             work.curve[l]);
  }
  LastErrors(head, state, range, tokens, work, read, reading);
  for (int64_t l = last; l > 0; --l) {
    const int64_t in = shape.in(l), out = shape.out(l);
    ToColumns(n, out, tokens.e[l] + first * out, work.columns);
    TimesColumns(in, out, state + shape.weight_at(l), work.columns, work.products, false);
    float* HWY_RESTRICT signal = work.signal[l - 1];
    Transpose(in, n, work.products, kTokens, signal, in);
    float* HWY_RESTRICT e = tokens.e[l - 1] + first * in;
    const float* HWY_RESTRICT slope = work.slope[l - 1] + first * in;
    const float rate = l == last ? head.titans.hidden_rate : 1;
    for (int64_t c = 0; c < n * in; ++c) e[c] = rate * signal[c] * slope[c];
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_FAST_WEIGHT_MEMORY_LEARN_INL_H_
