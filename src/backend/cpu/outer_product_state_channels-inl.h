// What the chunked passes of outer-product states with a decay per key channel share. They walk
// blocks of kBlock rows: the state is decayed once per block, and decays between two rows of a
// block are needed channel by channel.
//
// exp(L_i) exp(-L_j) overflows where gates are strong, so there are two forms of the sums over
// pairs of rows. For the first rows of a block, as long as no sum of log-decays is further than
// kNear below that of the first one, both factors are taken relative to the first row and sums are
// matrix products; for those after them exp(L_i - L_j) is computed for each pair. Which form a row
// has depends on no later row.
#if defined(PRONGHORN_OUTER_PRODUCT_STATE_CHANNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_OUTER_PRODUCT_STATE_CHANNELS_INL_H_
#undef PRONGHORN_OUTER_PRODUCT_STATE_CHANNELS_INL_H_
#else
#define PRONGHORN_OUTER_PRODUCT_STATE_CHANNELS_INL_H_
#endif

#include "backend/cpu/outer_product_state-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Products of two factors are at most e^60 where j > i, which are computed and thrown away.
constexpr float kNear = 60.0f;

// Below it a decay is 0 in f32; sums of a block keep their precision.
constexpr float kLowestChannelDecay = -104.0f;

// Decays of one head within a block of n rows, [n, key_dim] each. L_i is the sum of log-decays from
// the block's first row to row i.
struct BlockDecay {
  BlockDecay(Scratch& scratch, int64_t channels)
      : key_dim(channels),
        sums(scratch.take(kBlock * channels)),
        from_start(scratch.take(kBlock * channels)),
        to_end(scratch.take(kBlock * channels)),
        up(scratch.take(kBlock * channels)),
        down(scratch.take(kBlock * channels)) {}

  int64_t key_dim;
  float* sums;        // L_i
  float* from_start;  // exp(L_i)
  float* to_end;      // exp(L_n - L_i)
  int64_t near = 0;   // that many rows are within kNear of the first
  float *up, *down;   // exp(L_i - L_0) and exp(L_0 - L_i) of these

  // exp(L_n)
  const float* total(int64_t n) const { return from_start + (n - 1) * key_dim; }
};

inline void ComputeBlockDecay(int64_t n, const float* log_decay, int64_t stride,
                              BlockDecay& decay) {
  const int64_t key_dim = decay.key_dim;
  for (int64_t c = 0; c < key_dim; ++c) {
    decay.sums[c] = std::max(log_decay[c], kLowestChannelDecay);
  }
  decay.near = 1;
  for (int64_t i = 1; i < n; ++i) {
    const float* HWY_RESTRICT log = log_decay + i * stride;
    const float* HWY_RESTRICT before = decay.sums + (i - 1) * key_dim;
    float* HWY_RESTRICT sum = decay.sums + i * key_dim;
    float furthest = 0;
    for (int64_t c = 0; c < key_dim; ++c) {
      sum[c] = before[c] + std::max(log[c], kLowestChannelDecay);
      furthest = std::max(furthest, decay.sums[c] - sum[c]);
    }
    if (decay.near == i && furthest <= kNear) ++decay.near;
  }
  const float* first = decay.sums;
  const float* last = decay.sums + (n - 1) * key_dim;
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < n; ++i) {
    const float* sums = decay.sums + i * key_dim;
    for (int64_t c = 0; c < key_dim; c += lanes) {
      const int64_t left = key_dim - c, at = i * key_dim + c;
      const auto sum = LoadPart(d, sums + c, left);
      StorePart(d, Exp(d, sum), decay.from_start + at, left);
      StorePart(d, Exp(d, hn::Sub(LoadPart(d, last + c, left), sum)), decay.to_end + at, left);
      if (i < decay.near) {
        const auto up = Exp(d, hn::Sub(sum, LoadPart(d, first + c, left)));
        StorePart(d, up, decay.up + at, left);
        StorePart(d, hn::Div(hn::Set(d, 1.0f), up), decay.down + at, left);
      }
    }
  }
}

// to = x * y, element by element.
inline void Multiply(int64_t count, const float* HWY_RESTRICT x, const float* HWY_RESTRICT y,
                     float* HWY_RESTRICT to) {
  for (int64_t e = 0; e < count; ++e) to[e] = x[e] * y[e];
}

// Rows of one block as the sums over pairs take them: k is what later rows look back at.
struct BlockKeys {
  BlockKeys(Scratch& scratch, int64_t key_dim)
      : down(scratch.take(kBlock * key_dim)),
        down_t(scratch.take(kBlock * key_dim)),
        up(scratch.take(kBlock * key_dim)) {}

  const float* k = nullptr;
  float* down;    // k * decay.down
  float* down_t;  // transposed, [key_dim, kBlock]
  float* up;      // scratch for the rows that look back
};

inline void SetKeys(const BlockDecay& decay, const float* k, BlockKeys& keys) {
  keys.k = k;
  Multiply(decay.near * decay.key_dim, k, decay.down, keys.down);
  Transpose(decay.near, decay.key_dim, keys.down, decay.key_dim, keys.down_t, kBlock);
}

// sum_c x_c y_c exp(a_c - b_c)
inline float DecayedDot(int64_t n, const float* x, const float* y, const float* a, const float* b) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  for (int64_t c = 0; c < n; c += lanes) {
    const int64_t left = n - c;
    const auto factor = Exp(d, hn::Sub(LoadPart(d, a + c, left), LoadPart(d, b + c, left)));
    const auto x_y = hn::Mul(LoadPart(d, x + c, left), LoadPart(d, y + c, left));
    sum = hn::MulAdd(x_y, factor, sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// scores[i, j] = sum_c x_ic k_jc exp(L_ic - L_jc) below the diagonal, x_i . k_i on it if
// `diagonal`, else zeros there, zeros above; rows of kBlock.
inline void BlockScores(int64_t n, const BlockDecay& decay, const BlockKeys& keys, const float* x,
                        bool diagonal, float* scores) {
  const int64_t key_dim = decay.key_dim;
  const int64_t near = decay.near;
  Multiply(near * key_dim, x, decay.up, keys.up);
  SmallMatmul(near, near, key_dim, keys.up, key_dim, 1, keys.down_t, kBlock, scores, kBlock, false);
  for (int64_t i = near; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      scores[i * kBlock + j] = DecayedDot(key_dim, x + i * key_dim, keys.k + j * key_dim,
                                          decay.sums + i * key_dim, decay.sums + j * key_dim);
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    float* row = scores + i * kBlock;
    row[i] = diagonal ? DotProduct(x + i * key_dim, keys.k + i * key_dim, key_dim) : 0.0f;
    std::fill(row + i + 1, row + kBlock, 0.0f);
  }
}

// Moves a state [key_dim, columns] over a block: state = exp(L_n) state + sum_j exp(L_n - L_j) k_j
// u_j^T. blank: the state is zero. `work` [kBlock, key_dim].
inline void AdvanceState(int64_t n, const BlockDecay& decay, const float* k, const float* u,
                         int64_t columns, bool blank, float* state, float* work) {
  const int64_t key_dim = decay.key_dim;
  if (!blank) ScaleRows(key_dim, columns, decay.total(n), state, state);
  Multiply(n * key_dim, k, decay.to_end, work);
  SmallMatmul(key_dim, columns, n, work, 1, key_dim, u, columns, state, columns, !blank);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_OUTER_PRODUCT_STATE_CHANNELS_INL_H_
