// Steps of outer-product states with a decay per key channel: tokens from an anchor and the rows
// since.
//
// With W_j the product of the decays of the rows after row j up to token i, channel by channel, and
// W of all rows since the anchor:
//   u_i = beta_i (v_i - S^T (W k_i) - sum_{j before i} (k_j . W_j k_i) u_j)   (delta rule)
//   o_i = S^T (W q_i) + sum_{j up to i} (k_j . W_j q_i) u_j
// Products run from the token back, sums over the path in its order, so that a token's bits depend
// on its path alone.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/outer_product_state_channels_step.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target: included once for each instruction set.
#include "backend/cpu/outer_product_state-inl.h"
#include "tensor/journal.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// state[c, :] = W_c anchor[c, :] + sum_j W_jc k_jc u_j
inline void Fold(int64_t key_dim, int64_t value_dim, const float* anchor,
                 std::span<const float* const> rows, const RowPlace& place,
                 float* HWY_RESTRICT state, float* HWY_RESTRICT k, float* HWY_RESTRICT u,
                 float* HWY_RESTRICT weights) {
  const auto count = static_cast<int64_t>(rows.size());
  std::fill_n(weights, key_dim, 1.0f);
  for (int64_t j = count - 1; j >= 0; --j) {
    const float* HWY_RESTRICT row = rows[static_cast<size_t>(j)];
    for (int64_t c = 0; c < key_dim; ++c) {
      k[j * key_dim + c] = weights[c] * row[place.k + c];
      weights[c] *= row[place.decay + c];
    }
    std::memcpy(u + j * value_dim, row + place.u, static_cast<size_t>(value_dim) * sizeof(float));
  }
  if (anchor != nullptr) {
    ScaleRows(key_dim, value_dim, weights, anchor, state);
  }
  SmallMatmul(key_dim, value_dim, count, k, 1, key_dim, u, value_dim, state, value_dim,
              anchor != nullptr);
}

// q_sum = sum_c row_k_c weights_c q_c, k_sum likewise of k; then weights *= row_decay.
template <bool kDeltaRule>
inline void LookBack(int64_t key_dim, const float* row_k, const float* row_decay, const float* q,
                     const float* k, float* weights, float& q_sum, float& k_sum) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto q_sums = hn::Zero(d), k_sums = hn::Zero(d);
  for (int64_t c = 0; c < key_dim; c += lanes) {
    const int64_t left = key_dim - c;
    const auto weight = LoadPart(d, weights + c, left);
    const auto weighted = hn::Mul(LoadPart(d, row_k + c, left), weight);
    q_sums = hn::MulAdd(weighted, LoadPart(d, q + c, left), q_sums);
    if (kDeltaRule) k_sums = hn::MulAdd(weighted, LoadPart(d, k + c, left), k_sums);
    StorePart(d, hn::Mul(weight, LoadPart(d, row_decay + c, left)), weights + c, left);
  }
  q_sum = hn::GetLane(hn::SumOfLanes(d, q_sums));
  if (kDeltaRule) k_sum = hn::GetLane(hn::SumOfLanes(d, k_sums));
}

template <bool kDeltaRule>
void StepTask(const OuterProductProblem& problem, std::span<const ReplayStep> steps, int64_t head,
              const Matrix& out) {
  const int64_t key_dim = problem.key_dim, value_dim = problem.value_dim;
  const int64_t column = head * value_dim, state_offset = head * key_dim * value_dim;
  const RowPlace place(problem, head);
  constexpr int64_t kReads = kDeltaRule ? 2 : 1;  // S^T q, and with the delta rule S^T k
  Scratch scratch;
  float* keys = scratch.take(kReads * kStepTokens * key_dim);
  float* reads = scratch.take(std::max(kReads * kStepTokens, kExactStep) * value_dim);
  float* weights = scratch.take(key_dim);
  float* q_factors = scratch.take(kStepTokens * kExactStep);
  float* k_factors = scratch.take(kStepTokens * kExactStep);
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));

  for (const ReplayStep& step : steps) {
    const float* anchor = step.fold.anchor != nullptr ? step.fold.anchor + state_offset : nullptr;
    if (step.fold.to != nullptr) {
      float* to = step.fold.to + state_offset;
      Fold(key_dim, value_dim, anchor, step.fold.rows, place, to, keys, reads, weights);
      anchor = to;
    }
    for (size_t start = 0; start < step.tokens.size(); start += kStepTokens) {
      const auto tokens =
          step.tokens.subspan(start, std::min<size_t>(kStepTokens, step.tokens.size() - start));
      for (size_t t = 0; t < tokens.size(); ++t) {
        const ReplayToken& token = tokens[t];
        const float* q = problem.q.row(token.input_row) + place.k;
        const float* k = token.row + place.k;
        float* decay = token.row + place.decay;
        const float* log_decay = problem.log_decay.row(token.input_row) + head * key_dim;
        for (int64_t c = 0; c < key_dim; c += lanes) {
          // Exp() is 0 for the lowest.
          StorePart(d, Exp(d, LoadPart(d, log_decay + c, key_dim - c)), decay + c, key_dim - c);
        }
        std::memcpy(weights, decay, static_cast<size_t>(key_dim) * sizeof(float));
        const auto first_factor = static_cast<int64_t>(t) * kExactStep;
        for (auto j = static_cast<int64_t>(token.path.size()) - 1; j >= 0; --j) {
          const float* row = token.path[static_cast<size_t>(j)];
          LookBack<kDeltaRule>(key_dim, row + place.k, row + place.decay, q, k, weights,
                               q_factors[first_factor + j], k_factors[first_factor + j]);
        }
        float* HWY_RESTRICT to = keys + static_cast<int64_t>(t) * kReads * key_dim;
        for (int64_t c = 0; c < key_dim; ++c) {
          to[c] = weights[c] * q[c];
          if (kDeltaRule) to[key_dim + c] = weights[c] * k[c];
        }
      }
      const int64_t read_rows = static_cast<int64_t>(tokens.size()) * kReads;
      if (anchor != nullptr) {
        SmallMatmul(read_rows, value_dim, key_dim, keys, key_dim, 1, anchor, value_dim, reads,
                    value_dim, false);
      } else {
        std::fill_n(reads, read_rows * value_dim, 0.0f);
      }
      for (size_t t = 0; t < tokens.size(); ++t) {
        const ReplayToken& token = tokens[t];
        const float* q = problem.q.row(token.input_row) + place.k;
        const float* v = problem.v.row(token.input_row) + column;
        const float beta =
            problem.beta.data != nullptr ? problem.beta.row(token.input_row)[head] : 1.0f;
        const auto first_factor = static_cast<int64_t>(t) * kExactStep;
        float* read = reads + static_cast<int64_t>(t) * kReads * value_dim;
        float* HWY_RESTRICT u = token.row + place.u;
        if constexpr (kDeltaRule) {
          float* held = read + value_dim;
          WeightedRows(token.path, place.u, value_dim, k_factors + first_factor, held);
          for (int64_t c = 0; c < value_dim; ++c) u[c] = beta * (v[c] - held[c]);
        } else {
          for (int64_t c = 0; c < value_dim; ++c) u[c] = beta * v[c];
        }
        WeightedRows(token.path, place.u, value_dim, q_factors + first_factor, read);
        const float own = DotProduct(token.row + place.k, q, key_dim);
        const float skip = problem.skip != nullptr ? problem.skip[head] : 0.0f;
        const float scale = problem.query_scale;
        float* HWY_RESTRICT o = out.row(token.input_row) + column;
        for (int64_t c = 0; c < value_dim; ++c) {
          o[c] = scale * (read[c] + own * u[c]) + skip * v[c];
        }
      }
    }
  }
}

void StepKinds(const OuterProductProblem& problem, std::span<const ReplayStep> steps, int64_t head,
               const Matrix& out) {
  (problem.delta_rule ? StepTask<true> : StepTask<false>)(problem, steps, head, out);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(StepKinds);

void channel_step_task(const OuterProductProblem& problem, std::span<const ReplayStep> steps,
                       int64_t head, const Matrix& out) {
  HWY_DYNAMIC_DISPATCH(StepKinds)(problem, steps, head, out);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
