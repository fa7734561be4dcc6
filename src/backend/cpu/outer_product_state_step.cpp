// Steps of outer-product states: tokens from an anchor and the rows since.
//
// With G_i the sum of log-decays from the anchor to token i and D(i, j) = exp(G_i - G_j):
//   u_i = beta_i (v_i - exp(G_i) S^T k_i - sum_{j before i} D(i, j) (k_j . k_i) u_j)   (delta rule)
//   o_i = exp(G_i) S^T q_i + sum_{j up to i} D(i, j) (k_j . q_i) u_j
// Every sum runs over the path in order, so that a token's bits depend on its path alone.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/outer_product_state_step.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target: included once for each instruction set.
#include "backend/cpu/outer_product_state-inl.h"
#include "tensor/journal.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Rows of a path with its end.
constexpr int64_t kLongest = kExactStep * kMostOuterProductUpdates + 1;
constexpr int64_t kWidestVector = 16;

// decays[j] = exp(sum of the log-decays after path row j), decays[count] = exp(the whole sum).
// Rows: those of `path` and then, unless it is null, `own`. decays has kLongest + kWidestVector
// numbers.
template <bool kGated>
inline void PathDecays(std::span<const float* const> path, const float* own, int64_t place,
                       float* HWY_RESTRICT decays) {
  const auto count = static_cast<int64_t>(path.size()) + (own != nullptr ? 1 : 0);
  if constexpr (!kGated) {
    std::fill_n(decays, count + 1, 1.0f);
    return;
  }
  double sums[kLongest];
  double sum = 0;
  for (int64_t j = 0; j < count; ++j) {
    const float* row = j < static_cast<int64_t>(path.size()) ? path[static_cast<size_t>(j)] : own;
    sum += std::max(row[place], kLowestLogDecay);
    sums[j] = sum;
  }
  for (int64_t j = 0; j < count; ++j) decays[j] = static_cast<float>(sum - sums[j]);
  decays[count] = static_cast<float>(sum);
  std::fill_n(decays + count + 1, kWidestVector - 1, 0.0f);  // that whole vectors are numbers
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t j = 0; j <= count; j += lanes) {
    hn::StoreU(Exp(d, hn::LoadU(d, decays + j)), d, decays + j);
  }
}

// state[c, :] = exp(G_n) anchor[c, :] + sum_j exp(G_n - G_j) k_jc u_j
template <bool kGated>
inline void Fold(int64_t key_dim, int64_t value_dim, const float* anchor,
                 std::span<const float* const> rows, const RowPlace& place,
                 float* HWY_RESTRICT state, float* HWY_RESTRICT k, float* HWY_RESTRICT u) {
  const auto count = static_cast<int64_t>(rows.size());
  alignas(64) float decays[kLongest + kWidestVector];
  PathDecays<kGated>(rows, nullptr, place.decay, decays);
  for (int64_t j = 0; j < count; ++j) {
    const float* row = rows[static_cast<size_t>(j)];
    std::memcpy(k + j * key_dim, row + place.k, static_cast<size_t>(key_dim) * sizeof(float));
    for (int64_t c = 0; c < value_dim; ++c) {
      u[j * value_dim + c] = decays[j] * row[place.u + c];
    }
  }
  if (anchor == nullptr) {
    SmallMatmul(key_dim, value_dim, count, k, 1, key_dim, u, value_dim, state, value_dim, false);
    return;
  }
  for (int64_t e = 0; e < key_dim * value_dim; ++e) state[e] = decays[count] * anchor[e];
  SmallMatmul(key_dim, value_dim, count, k, 1, key_dim, u, value_dim, state, value_dim, true);
}

template <bool kGated, bool kDeltaRule>
void StepTask(const OuterProductProblem& problem, std::span<const ReplayStep> steps, int64_t head,
              const Matrix& out) {
  const int64_t key_dim = problem.key_dim, value_dim = problem.value_dim;
  const int64_t key_column = head / (problem.value_heads / problem.key_heads) * key_dim;
  const int64_t column = head * value_dim, state_offset = head * key_dim * value_dim;
  const RowPlace place(problem, head);
  Scratch scratch;
  size_t longest = 2 * kStepTokens;
  for (const ReplayStep& step : steps) longest = std::max(longest, step.fold.rows.size());
  float* keys = scratch.take(static_cast<int64_t>(longest) * key_dim);
  float* reads = scratch.take(static_cast<int64_t>(longest) * value_dim);
  constexpr int64_t kReads = kDeltaRule ? 2 : 1;  // S^T q, and with the delta rule S^T k

  for (const ReplayStep& step : steps) {
    const float* anchor = step.fold.anchor != nullptr ? step.fold.anchor + state_offset : nullptr;
    if (step.fold.to != nullptr) {
      float* to = step.fold.to + state_offset;
      Fold<kGated>(key_dim, value_dim, anchor, step.fold.rows, place, to, keys, reads);
      anchor = to;
    }
    for (size_t start = 0; start < step.tokens.size(); start += kStepTokens) {
      const auto tokens =
          step.tokens.subspan(start, std::min<size_t>(kStepTokens, step.tokens.size() - start));
      if (anchor != nullptr) {
        for (size_t t = 0; t < tokens.size(); ++t) {
          float* to = keys + static_cast<int64_t>(t) * kReads * key_dim;
          const auto bytes = static_cast<size_t>(key_dim) * sizeof(float);
          std::memcpy(to, problem.q.row(tokens[t].input_row) + key_column, bytes);
          if (kDeltaRule) std::memcpy(to + key_dim, tokens[t].row + place.k, bytes);
        }
        SmallMatmul(static_cast<int64_t>(tokens.size()) * kReads, value_dim, key_dim, keys, key_dim,
                    1, anchor, value_dim, reads, value_dim, false);
      } else {
        std::fill_n(reads, static_cast<int64_t>(tokens.size()) * kReads * value_dim, 0.0f);
      }
      for (size_t t = 0; t < tokens.size(); ++t) {
        const ReplayToken& token = tokens[t];
        alignas(64) float decays[kLongest + kWidestVector];
        PathDecays<kGated>(token.path, token.row, place.decay, decays);
        const size_t before = token.path.size();
        const float from_anchor = decays[before + 1];
        const float* q = problem.q.row(token.input_row) + key_column;
        const float* k = token.row + place.k;
        const float* v = problem.v.row(token.input_row) + column;
        const float beta =
            problem.beta.data != nullptr ? problem.beta.row(token.input_row)[head] : 1.0f;
        float* read = reads + static_cast<int64_t>(t) * kReads * value_dim;
        float* HWY_RESTRICT u = token.row + place.u;
        float factors[kLongest];
        if constexpr (kDeltaRule) {
          float* erased = read + value_dim;
          for (int64_t c = 0; c < value_dim; ++c) erased[c] *= from_anchor;
          for (size_t j = 0; j < before; ++j) {
            factors[j] = decays[j] * DotProduct(token.path[j] + place.k, k, key_dim);
          }
          WeightedRows(token.path, place.u, value_dim, factors, erased);
          for (int64_t c = 0; c < value_dim; ++c) u[c] = beta * (v[c] - erased[c]);
        } else {
          for (int64_t c = 0; c < value_dim; ++c) u[c] = beta * v[c];
        }
        for (size_t j = 0; j < before; ++j) {
          factors[j] = decays[j] * DotProduct(token.path[j] + place.k, q, key_dim);
        }
        const float own = DotProduct(k, q, key_dim);
        for (int64_t c = 0; c < value_dim; ++c) read[c] *= from_anchor;
        WeightedRows(token.path, place.u, value_dim, factors, read);
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
  const bool gated = problem.log_decay.data != nullptr;
  const auto kind = gated ? (problem.delta_rule ? StepTask<true, true> : StepTask<true, false>)
                          : (problem.delta_rule ? StepTask<false, true> : StepTask<false, false>);
  kind(problem, steps, head, out);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(StepKinds);

void step_task(const OuterProductProblem& problem, std::span<const ReplayStep> steps, int64_t head,
               const Matrix& out) {
  HWY_DYNAMIC_DISPATCH(StepKinds)(problem, steps, head, out);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
