#include <algorithm>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/attention_operands.h"
#include "ops/operands.h"

namespace pronghorn {
namespace {

constexpr char kWhere[] = "merge_attention";

}  // namespace

Tensor merge_attention(const Context& context, const Tensor& q,
                       std::span<const AttentionResult> parts, const Tensor& keys,
                       const Tensor& values, const AttentionOptions& options) {
  const AttentionShape shape = attention_shape(options);
  const int64_t rows = q.rows(), key_width = shape.heads * shape.key_dim;
  const int64_t width = shape.heads * shape.value_dim;
  require(options.heads > 0 && options.kv_heads == options.heads && !options.value_in_key &&
              q.columns() == key_width,
          kWhere, "q is {} for {} heads of {} ({} key-value heads)", q.shape(), options.heads,
          options.head_dim, options.kv_heads);
  require(!parts.empty() && keys.defined() == values.defined(), kWhere,
          "{} parts, and keys without values or values without keys", parts.size());
  bool record = false;
  const Tensor out = Tensor::empty({rows, width});
  AttentionMerge arguments;
  arguments.shape = shape;
  arguments.rows = rows;
  arguments.q = input_matrix(q);
  if (keys.defined()) {
    require(keys.columns() == key_width && values.columns() == width &&
                keys.rows() == values.rows() && keys.contiguous() && values.contiguous(),
            kWhere, "keys {} and values {} for heads of {} and {}", keys.shape(), values.shape(),
            shape.key_dim, shape.value_dim);
    arguments.k = keys.data();
    arguments.v = values.data();
    arguments.fixed = keys.rows();
    record |= needs_gradient(context, out, keys, values);
  }
  std::vector<AttentionPart> views;
  for (const AttentionResult& part : parts) {
    require(part.output.rows() == rows && part.output.columns() == width &&
                part.log_sum_exp.size() == rows * options.heads && part.log_sum_exp.contiguous(),
            kWhere, "a part of {} and {} for {} rows", part.output.shape(),
            part.log_sum_exp.shape(), rows);
    views.push_back({input_matrix(part.output), part.log_sum_exp.data()});
    record |= needs_gradient(context, out, q, part.output, part.log_sum_exp);
  }
  arguments.parts = views;
  backend().attention().merge(arguments, output_matrix(out));
  if (!record) return out;

  context.tape->record([arguments, views, q, keys, values, out,
                        kept = std::vector<AttentionResult>(parts.begin(), parts.end())]() mutable {
    if (!out.has_grad()) return;
    arguments.parts = views;
    const Tensor grad_out = out.grad();
    AttentionMergeGradients gradients;
    gradients.out = input_matrix(grad_out);
    gradients.q = input_gradient(q);
    gradients.k = input_gradient(keys);
    gradients.v = input_gradient(values);
    std::vector<AttentionPartGradient> grad_parts;
    for (const AttentionResult& part : kept) {
      grad_parts.push_back({input_gradient(part.output), input_gradient(part.log_sum_exp)});
    }
    gradients.parts = grad_parts;
    backend().attention().merge_backward(arguments, input_matrix(out), gradients);
  });
  return out;
}

}  // namespace pronghorn
