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

// Probabilities of the fixed keys and then of the parts, for one row and head.
HWY_INLINE void MergeProbabilities(const AttentionMerge& arguments, int64_t row, int64_t head,
                                   std::vector<float>& p) {
  const int64_t dim = arguments.shape.head_dim, width = arguments.shape.heads * dim;
  const float* q = arguments.q + row * arguments.q_stride + head * dim;
  size_t next = 0;
  for (int64_t j = 0; j < arguments.fixed; ++j) {
    p[next++] = arguments.shape.scale * DotProduct(q, arguments.k + j * width + head * dim, dim);
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

void MergeRows(const AttentionMerge& arguments, int64_t begin, int64_t end, float* out,
               int64_t out_stride) {
  const int64_t dim = arguments.shape.head_dim, width = arguments.shape.heads * dim;
  std::vector<float> p(static_cast<size_t>(arguments.fixed) + arguments.parts.size());
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t head = 0; head < arguments.shape.heads; ++head) {
      MergeProbabilities(arguments, row, head, p);
      float* HWY_RESTRICT to = out + row * out_stride + head * dim;
      std::fill_n(to, dim, 0.0f);
      size_t next = 0;
      for (int64_t j = 0; j < arguments.fixed; ++j, ++next) {
        const float* v = arguments.v + j * width + head * dim;
        for (int64_t c = 0; c < dim; ++c) to[c] += p[next] * v[c];
      }
      for (const AttentionPart& part : arguments.parts) {
        const float* o = part.o + row * part.o_stride + head * dim;
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
  float* HWY_RESTRICT target = to.data + row * to.stride + column;
  if (to.accumulate) {
    for (int64_t c = 0; c < count; ++c) target[c] += factor * from[c];
  } else {
    for (int64_t c = 0; c < count; ++c) target[c] = factor * from[c];
  }
}

// d(value_a) = p_a d(out), d(score_a) = p_a (d(out) . value_a - d(out) . out)
void MergeRowsBackward(const AttentionMerge& arguments, int64_t begin, int64_t end,
                       const cpu_attention::MergeBackwardOperands& operands) {
  const int64_t dim = arguments.shape.head_dim, width = arguments.shape.heads * dim;
  std::vector<float> p(static_cast<size_t>(arguments.fixed) + arguments.parts.size());
  std::vector<float> grad_q(static_cast<size_t>(dim));
  const float one = 1;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t head = 0; head < arguments.shape.heads; ++head) {
      const int64_t column = head * dim;
      MergeProbabilities(arguments, row, head, p);
      const float* grad = operands.grad_out + row * operands.grad_out_stride + column;
      const float* q = arguments.q + row * arguments.q_stride + column;
      const float along = DotProduct(grad, operands.out + row * operands.out_stride + column, dim);
      std::fill(grad_q.begin(), grad_q.end(), 0.0f);
      size_t next = 0;
      for (int64_t j = 0; j < arguments.fixed; ++j, ++next) {
        const float* k = arguments.k + j * width + column;
        const float* v = arguments.v + j * width + column;
        const float score = arguments.shape.scale * p[next] * (DotProduct(grad, v, dim) - along);
        float* HWY_RESTRICT grad_k = operands.grad_k + j * width + column;
        float* HWY_RESTRICT grad_v = operands.grad_v + j * width + column;
        for (int64_t c = 0; c < dim; ++c) {
          grad_q[static_cast<size_t>(c)] += score * k[c];
          grad_k[c] += score * q[c];
          grad_v[c] += p[next] * grad[c];
        }
      }
      GiveGradient(operands.grad_q, row, column, dim, one, grad_q.data());
      for (size_t i = 0; i < arguments.parts.size(); ++i, ++next) {
        const AttentionPart& part = arguments.parts[i];
        const float* o = part.o + row * part.o_stride + column;
        const float score = p[next] * (DotProduct(grad, o, dim) - along);
        GiveGradient(operands.grad_parts[i].o, row, column, dim, p[next], grad);
        GiveGradient(operands.grad_parts[i].log_sum_exp, row, head, 1, score, &one);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(MergeRows);
HWY_EXPORT(MergeRowsBackward);

void cpu_attention::merge_rows(const AttentionMerge& arguments, int64_t begin, int64_t end,
                               float* out, int64_t out_stride) {
  HWY_DYNAMIC_DISPATCH(MergeRows)(arguments, begin, end, out, out_stride);
}

void cpu_attention::merge_rows_backward(const AttentionMerge& arguments, int64_t begin, int64_t end,
                                        const MergeBackwardOperands& operands) {
  HWY_DYNAMIC_DISPATCH(MergeRowsBackward)(arguments, begin, end, operands);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
