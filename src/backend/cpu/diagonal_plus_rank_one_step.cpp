// Steps of diagonal-plus-rank-one states: tokens from an anchor and the rows since.
//
// With D(i, j) the product of the decays after row j up to row i and F_i that from the anchor on:
//   z_i = S^T (F_{i-1} a_i) + sum_{j before i} (a_i . D(i-1, j) k_j) v_j + (a_i . D(i-1, j) b_j)
//   z_j o_i = S^T (F_i q_i)     + sum_{j up to i}  (q_i . D(i, j) k_j) v_j   + (q_i . D(i, j) b_j)
//   z_j
// q and a walk back along the path, decaying as they go, so that what decays is never divided out
// again. Every sum runs in an order that the path alone decides.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/diagonal_plus_rank_one_step.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target: included once for each instruction set.
#include "backend/cpu/diagonal_plus_rank_one-inl.h"
#include "backend/cpu/pointwise-inl.h"
#include "tensor/journal.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Where the numbers of one head lie in a row [k | b | w | v | z].
struct StepPlace {
  int64_t k, b, w, v, z;
};

// Products with k and b of a row of what reads it: a, then q.
struct PairFactors {
  float ak, ab, qk, qb;
};

// Tokens that a step computes in one pass over the anchor.
constexpr int64_t kStepTokens = 16;

// state[c, :] = F_n anchor[c, :] + sum_j D(n, j) (k_jc v_j + b_jc z_j). keys [2 kExactStep,
// key_dim], values [2 kExactStep, value_dim] are written on the way, and so is decay [key_dim].
inline void Fold(int64_t key_dim, int64_t value_dim, const float* anchor,
                 std::span<const float* const> rows, const StepPlace& place,
                 float* HWY_RESTRICT state, float* HWY_RESTRICT keys, float* HWY_RESTRICT values,
                 float* HWY_RESTRICT decay) {
  const auto count = static_cast<int64_t>(rows.size());
  std::fill_n(decay, key_dim, 1.0f);
  for (int64_t j = count - 1; j >= 0; --j) {
    const float* HWY_RESTRICT row = rows[static_cast<size_t>(j)];
    for (int64_t c = 0; c < key_dim; ++c) {
      keys[j * key_dim + c] = decay[c] * row[place.k + c];
      keys[(count + j) * key_dim + c] = decay[c] * row[place.b + c];
      decay[c] *= row[place.w + c];
    }
    const auto bytes = static_cast<size_t>(value_dim) * sizeof(float);
    std::memcpy(values + j * value_dim, row + place.v, bytes);
    std::memcpy(values + (count + j) * value_dim, row + place.z, bytes);
  }
  if (anchor != nullptr) ScaleRows(key_dim, value_dim, decay, anchor, state);
  SmallMatmul(key_dim, value_dim, 2 * count, keys, 1, key_dim, values, value_dim, state, value_dim,
              anchor != nullptr);
}

// The products of q with a row, and of a unless it is null; then they decay by the row.
inline PairFactors WalkBack(int64_t key_dim, const float* row, const StepPlace& place, float* q,
                            float* a) {
  const FloatTag d;
  auto ak = hn::Zero(d), ab = hn::Zero(d), qk = hn::Zero(d), qb = hn::Zero(d);
  ForEachVector(key_dim, [&](auto v, int64_t c) PRONGHORN_VECTOR_LAMBDA {
    const auto key = v.load(row + place.k + c), update = v.load(row + place.b + c);
    const auto decay = v.load(row + place.w + c), query = v.load(q + c);
    qk = hn::MulAdd(query, key, qk);
    qb = hn::MulAdd(query, update, qb);
    v.store(hn::Mul(query, decay), q + c);
    if (a == nullptr) return;
    const auto reader = v.load(a + c);
    ak = hn::MulAdd(reader, key, ak);
    ab = hn::MulAdd(reader, update, ab);
    v.store(hn::Mul(reader, decay), a + c);
  });
  HWY_ALIGN float sums[4];
  SumFour(d, ak, ab, qk, qb, sums);
  return {sums[0], sums[1], sums[2], sums[3]};
}

// of_a[c] += sum_j ak_j v_j + ab_j z_j over the rows, and of_q with qk and qb. The path's z must
// have been written.
inline void AddPath(std::span<const float* const> path, const StepPlace& place,
                    const PairFactors* factors, int64_t count, float* of_a, float* of_q) {
  const FloatTag d;
  ForEachVector(count, [&](auto vector, int64_t c) PRONGHORN_VECTOR_LAMBDA {
    auto read = vector.load(of_a + c), out = vector.load(of_q + c);
    for (size_t j = 0; j < path.size(); ++j) {
      const auto v = vector.load(path[j] + place.v + c), z = vector.load(path[j] + place.z + c);
      read = hn::MulAdd(hn::Set(d, factors[j].ak), v, read);
      read = hn::MulAdd(hn::Set(d, factors[j].ab), z, read);
      out = hn::MulAdd(hn::Set(d, factors[j].qk), v, out);
      out = hn::MulAdd(hn::Set(d, factors[j].qb), z, out);
    }
    vector.store(read, of_a + c);
    vector.store(out, of_q + c);
  });
}

// Writes a token's row, but for z, and leaves its q and a in keys [2, key_dim] as the anchor sees
// them. factors: of its path, and then of its own row.
inline void Enter(const RankOneProblem& problem, const ReplayToken& token, int64_t head,
                  const StepPlace& place, float* keys, PairFactors* factors) {
  const int64_t key_dim = problem.key_dim, column = head * key_dim, row = token.input_row;
  const auto bytes = static_cast<size_t>(key_dim) * sizeof(float);
  std::memcpy(token.row + place.k, problem.k.row(row) + column, bytes);
  std::memcpy(token.row + place.b, problem.b.row(row) + column, bytes);
  const float* log_decay = problem.log_decay.row(row) + column;
  float *a = keys, *q = keys + key_dim;
  std::memcpy(a, problem.a.row(row) + column, bytes);
  ForEachVector(key_dim, [&](auto v, int64_t c) PRONGHORN_VECTOR_LAMBDA {
    v.store(Exp(FloatTag(), v.load(log_decay + c)), token.row + place.w + c);
    const auto scale = hn::Set(FloatTag(), problem.query_scale);
    v.store(hn::Mul(scale, v.load(problem.q.row(row) + column + c)), q + c);
  });
  std::memcpy(token.row + place.v, problem.v.row(row) + head * problem.value_dim,
              static_cast<size_t>(problem.value_dim) * sizeof(float));
  const size_t before = token.path.size();
  factors[before] = WalkBack(key_dim, token.row, place, q, nullptr);
  for (size_t j = before; j > 0; --j) {
    factors[j - 1] = WalkBack(key_dim, token.path[j - 1], place, q, a);
  }
}

void StepTask(const RankOneProblem& problem, std::span<const ReplayStep> steps, int64_t head,
              const Matrix& out) {
  const int64_t key_dim = problem.key_dim, value_dim = problem.value_dim;
  const int64_t keys_of_all = problem.heads * key_dim, values_of_all = problem.heads * value_dim;
  const int64_t key_column = head * key_dim, column = head * value_dim;
  const StepPlace place = {key_column, keys_of_all + key_column, 2 * keys_of_all + key_column,
                           3 * keys_of_all + column, 3 * keys_of_all + values_of_all + column};
  Scratch scratch;
  float* keys = scratch.take(2 * kStepTokens * key_dim);
  float* reads = scratch.take(2 * kStepTokens * value_dim);
  float* decay = scratch.take(key_dim);
  PairFactors factors[kStepTokens][kExactStep + 1];

  for (const ReplayStep& step : steps) {
    const float* anchor =
        step.fold.anchor != nullptr ? step.fold.anchor + key_column * value_dim : nullptr;
    if (step.fold.to != nullptr) {
      float* to = step.fold.to + key_column * value_dim;
      Fold(key_dim, value_dim, anchor, step.fold.rows, place, to, keys, reads, decay);
      anchor = to;
    }
    for (size_t start = 0; start < step.tokens.size(); start += kStepTokens) {
      const auto tokens =
          step.tokens.subspan(start, std::min<size_t>(kStepTokens, step.tokens.size() - start));
      const auto count = static_cast<int64_t>(tokens.size());
      for (int64_t t = 0; t < count; ++t) {
        Enter(problem, tokens[static_cast<size_t>(t)], head, place, keys + 2 * t * key_dim,
              factors[t]);
      }
      if (anchor != nullptr) {
        SmallMatmul(2 * count, value_dim, key_dim, keys, key_dim, 1, anchor, value_dim, reads,
                    value_dim, false);
      } else {
        std::fill_n(reads, 2 * count * value_dim, 0.0f);
      }
      for (int64_t t = 0; t < count; ++t) {
        const ReplayToken& token = tokens[static_cast<size_t>(t)];
        float *z = reads + 2 * t * value_dim, *o = z + value_dim;
        AddPath(token.path, place, factors[t], value_dim, z, o);
        const PairFactors& own = factors[t][token.path.size()];
        const float* v = token.row + place.v;
        float* to = out.row(token.input_row) + column;
        for (int64_t c = 0; c < value_dim; ++c) {
          token.row[place.z + c] = z[c];
          to[c] = o[c] + own.qk * v[c] + own.qb * z[c];
        }
      }
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(StepTask);

void rank_one_step_task(const RankOneProblem& problem, std::span<const ReplayStep> steps,
                        int64_t head, const Matrix& out) {
  HWY_DYNAMIC_DISPATCH(StepTask)(problem, steps, head, out);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
