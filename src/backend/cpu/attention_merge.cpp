// Results of attention to different keys, merged to attention to all of them: each is one more
// "key" whose score is its log-sum-exp and whose value is its output.
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention_merge.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// The score of a query and a fixed key; slope: becomes the derivative of the cap.
HWY_INLINE float FixedScore(const AttentionShape& shape, const float* q, const float* k,
                            float& slope) {
  const float score = shape.scale * DotProduct(q, k, shape.key_dim);
  slope = 1;
  if (shape.soft_cap <= 0) return score;
  const FloatTag d;
  const float t = hn::GetLane(ExactTanh(d, hn::Set(d, score / shape.soft_cap)));
  slope = 1 - t * t;
  return shape.soft_cap * t;
}

// Probabilities of the fixed keys and then of the parts, for one row and head; slopes: of the fixed
// keys.
HWY_INLINE void MergeProbabilities(const AttentionMerge& arguments, int64_t row, int64_t head,
                                   std::vector<float>& p, std::vector<float>& slopes) {
  const int64_t dim = arguments.shape.key_dim, width = arguments.shape.heads * dim;
  const float* q = arguments.q.row(row) + head * dim;
  size_t next = 0;
  for (int64_t j = 0; j < arguments.fixed; ++j, ++next) {
    p[next] = FixedScore(arguments.shape, q, arguments.k + j * width + head * dim, slopes[next]);
  }
  for (const AttentionPart& part : arguments.parts) {
    p[next++] = part.log_sum_exp[row * arguments.shape.heads + head];
  }
  const float maximum = *std::max_element(p.begin(), p.end());
  float sum = 0;
  for (float& value : p) {
    value = ExpOne(value - maximum);
    sum += value;
  }
  for (float& value : p) value /= sum;
}

void MergeRows(const AttentionMerge& arguments, int64_t begin, int64_t end, const Matrix& out) {
  const int64_t dim = arguments.shape.value_dim, width = arguments.shape.heads * dim;
  std::vector<float> p(static_cast<size_t>(arguments.fixed) + arguments.parts.size());
  std::vector<float> slopes(static_cast<size_t>(arguments.fixed));
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t head = 0; head < arguments.shape.heads; ++head) {
      MergeProbabilities(arguments, row, head, p, slopes);
      float* HWY_RESTRICT to = out.row(row) + head * dim;
      std::fill_n(to, dim, 0.0f);
      size_t next = 0;
      for (int64_t j = 0; j < arguments.fixed; ++j, ++next) {
        const float* v = arguments.v + j * width + head * dim;
        for (int64_t c = 0; c < dim; ++c) to[c] += p[next] * v[c];
      }
      for (const AttentionPart& part : arguments.parts) {
        const float* o = part.o.row(row) + head * dim;
        for (int64_t c = 0; c < dim; ++c) to[c] += p[next] * o[c];
        ++next;
      }
    }
  }
}

// to (+)= factor from
HWY_INLINE void GiveGradient(const Matrix& to, int64_t row, int64_t column, int64_t count,
                             float factor, const float* from) {
  if (to.data == nullptr) return;
  float* HWY_RESTRICT target = to.row(row) + column;
  if (to.accumulate) {
    for (int64_t c = 0; c < count; ++c) target[c] += factor * from[c];
  } else {
    for (int64_t c = 0; c < count; ++c) target[c] = factor * from[c];
  }
}

// d(value_a) = p_a d(out), d(score_a) = p_a (d(out) . value_a - d(out) . out)
void MergeRowsBackward(const AttentionMerge& arguments, int64_t begin, int64_t end,
                       const ConstMatrix& out, const AttentionMergeGradients& gradients) {
  const AttentionShape& shape = arguments.shape;
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim;
  std::vector<float> p(static_cast<size_t>(arguments.fixed) + arguments.parts.size());
  std::vector<float> slopes(static_cast<size_t>(arguments.fixed));
  std::vector<float> grad_q(static_cast<size_t>(key_dim));
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t head = 0; head < shape.heads; ++head) {
      const int64_t key_column = head * key_dim, column = head * value_dim;
      MergeProbabilities(arguments, row, head, p, slopes);
      const float* grad = gradients.out.row(row) + column;
      const float* q = arguments.q.row(row) + key_column;
      const float along = DotProduct(grad, out.row(row) + column, value_dim);
      std::fill(grad_q.begin(), grad_q.end(), 0.0f);
      size_t next = 0;
      for (int64_t j = 0; j < arguments.fixed; ++j, ++next) {
        const float* k = arguments.k + j * shape.heads * key_dim + key_column;
        const float* v = arguments.v + j * shape.heads * value_dim + column;
        const float score =
            shape.scale * p[next] * (DotProduct(grad, v, value_dim) - along) * slopes[next];
        float* HWY_RESTRICT grad_k = gradients.k.row(j) + key_column;
        float* HWY_RESTRICT grad_v = gradients.v.row(j) + column;
        for (int64_t c = 0; c < key_dim; ++c) {
          grad_q[static_cast<size_t>(c)] += score * k[c];
          grad_k[c] += score * q[c];
        }
        for (int64_t c = 0; c < value_dim; ++c) grad_v[c] += p[next] * grad[c];
      }
      constexpr float kOne = 1;
      GiveGradient(gradients.q, row, key_column, key_dim, kOne, grad_q.data());
      for (size_t i = 0; i < arguments.parts.size(); ++i, ++next) {
        const float* o = arguments.parts[i].o.row(row) + column;
        const float score = p[next] * (DotProduct(grad, o, value_dim) - along);
        GiveGradient(gradients.parts[i].o, row, column, value_dim, p[next], grad);
        GiveGradient(gradients.parts[i].log_sum_exp, row, head, 1, score, &kOne);
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

HWY_EXPORT(MergeRows);
HWY_EXPORT(MergeRowsBackward);

void cpu_attention::merge_rows(const AttentionMerge& arguments, int64_t begin, int64_t end,
                               const Matrix& out) {
  HWY_DYNAMIC_DISPATCH(MergeRows)(arguments, begin, end, out);
}

void cpu_attention::merge_rows_backward(const AttentionMerge& arguments, int64_t begin, int64_t end,
                                        const ConstMatrix& out,
                                        const AttentionMergeGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(MergeRowsBackward)(arguments, begin, end, out, gradients);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
