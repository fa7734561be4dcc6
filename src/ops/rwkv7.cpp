#include "ops/rwkv7.h"

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"

namespace pronghorn {
namespace {

void check_shape(const char* where, const Tensor& tensor, const Tensor& like) {
  require(tensor.shape() == like.shape(), where, "shapes {} and {} differ", tensor.shape(),
          like.shape());
}

void check_vector(const char* where, const Tensor& vector, const Tensor& rows) {
  require(vector.contiguous() && vector.size() == rows.columns(), where,
          "{} numbers for {} columns", vector.size(), rows.columns());
}

void check_heads(const char* where, const Tensor& rows, int64_t head_dim) {
  require(head_dim > 0 && rows.columns() % head_dim == 0, where, "{} columns in heads of {}",
          rows.columns(), head_dim);
}

}  // namespace

Rwkv7KeyRows rwkv7_keys(const Context& context, const Tensor& decay, const Tensor& rate,
                        const Tensor& k, const Tensor& k_k, const Tensor& k_a, int64_t head_dim) {
  constexpr const char* kWhere = "rwkv7_keys";
  check_shape(kWhere, decay, k);
  check_shape(kWhere, rate, k);
  check_vector(kWhere, k_k, k);
  check_vector(kWhere, k_a, k);
  check_heads(kWhere, k, head_dim);
  const auto arguments = [=] {
    return Rwkv7Keys{extent_of(k),    head_dim,   input_matrix(decay), input_matrix(rate),
                     input_matrix(k), k_k.data(), k_a.data()};
  };
  const Rwkv7KeyRows to = {Tensor::empty(k.shape()), Tensor::empty(k.shape()),
                           Tensor::empty(k.shape()), Tensor::empty(k.shape())};
  backend().rwkv().rwkv7_keys(arguments(), {output_matrix(to.log_decay), output_matrix(to.key),
                                            output_matrix(to.remove), output_matrix(to.replace)});
  if (!needs_gradient(context, to.key, decay, rate, k, k_k, k_a)) return to;
  for (const Tensor& each : {to.log_decay, to.remove, to.replace}) each.set_requires_grad(true);
  context.tape->record([=] {
    const Rwkv7KeysResultGradients from = {output_gradient(to.log_decay), output_gradient(to.key),
                                           output_gradient(to.remove), output_gradient(to.replace)};
    if (from.log_decay.data == nullptr && from.key.data == nullptr && from.remove.data == nullptr &&
        from.replace.data == nullptr) {
      return;
    }
    Rwkv7KeysGradients gradients;
    gradients.decay = input_gradient(decay);
    gradients.rate = input_gradient(rate);
    gradients.k = input_gradient(k);
    gradients.k_k = vector_gradient(k_k);
    gradients.k_a = vector_gradient(k_a);
    backend().rwkv().rwkv7_keys_backward(arguments(), from, gradients);
  });
  return to;
}

Tensor rwkv7_output(const Context& context, const Rwkv7OutputInputs& in, int64_t head_dim,
                    float epsilon) {
  constexpr const char* kWhere = "rwkv7_output";
  check_shape(kWhere, in.gate, in.x);
  for (const Tensor& each : {in.weight, in.bias}) check_vector(kWhere, each, in.x);
  if (in.r_k.defined()) {
    for (const Tensor& each : {in.r, in.k, in.v}) check_shape(kWhere, each, in.x);
    check_vector(kWhere, in.r_k, in.x);
  }
  check_heads(kWhere, in.x, head_dim);
  const auto arguments = [=] {
    return Rwkv7Output{extent_of(in.x),
                       head_dim,
                       epsilon,
                       input_matrix(in.x),
                       input_matrix(in.r),
                       input_matrix(in.k),
                       input_matrix(in.v),
                       input_matrix(in.gate),
                       in.weight.data(),
                       in.bias.data(),
                       in.r_k.defined() ? in.r_k.data() : nullptr};
  };
  const Tensor y = Tensor::empty(in.x.shape());
  backend().rwkv().rwkv7_output(arguments(), output_matrix(y));
  if (!needs_gradient(context, y, in.x, in.r, in.k, in.v, in.gate, in.weight, in.bias, in.r_k)) {
    return y;
  }
  context.tape->record([=] {
    if (!y.has_grad()) return;
    Rwkv7OutputGradients to;
    to.x = input_gradient(in.x);
    to.r = input_gradient(in.r);
    to.k = input_gradient(in.k);
    to.v = input_gradient(in.v);
    to.gate = input_gradient(in.gate);
    to.weight = vector_gradient(in.weight);
    to.bias = vector_gradient(in.bias);
    to.r_k = vector_gradient(in.r_k);
    backend().rwkv().rwkv7_output_backward(arguments(), output_gradient(y), to);
  });
  return y;
}

Tensor interpolate(const Context& context, const Tensor& from, const Tensor& to,
                   const Tensor& share) {
  check_shape("interpolate", to, from);
  check_shape("interpolate", share, from);
  const Tensor y = Tensor::empty(from.shape());
  backend().rwkv().interpolate(extent_of(from), input_matrix(from), input_matrix(to),
                               input_matrix(share), output_matrix(y));
  if (!needs_gradient(context, y, from, to, share)) return y;
  context.tape->record([=] {
    if (!y.has_grad()) return;
    const Matrix dfrom = input_gradient(from), dto = input_gradient(to);
    backend().rwkv().interpolate_backward(extent_of(from), input_matrix(from), input_matrix(to),
                                          input_matrix(share), output_gradient(y), dfrom, dto,
                                          input_gradient(share));
  });
  return y;
}

}  // namespace pronghorn
