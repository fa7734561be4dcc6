#include "ops/state_rows.h"

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"

namespace pronghorn {
namespace {

void expect(const char* where, const char* name, const Tensor& tensor, int64_t rows,
            int64_t columns) {
  if (tensor.rows() == rows && tensor.columns() == columns) return;
  throw Error(where, fmt::format("{} is {}, not [{}, {}]", name, tensor.shape(), rows, columns));
}

const float* numbers(const Tensor& vector) { return vector.defined() ? vector.data() : nullptr; }

void expect_vector(const char* where, const char* name, const Tensor& vector, int64_t size) {
  require(!vector.defined() || (vector.contiguous() && vector.size() == size), where,
          "{} has {} numbers, not {}", name, vector.size(), size);
}

}  // namespace

Tensor own_read(const Context& context, const OwnReadInputs& in, int64_t heads) {
  constexpr const char* kWhere = "own_read";
  const int64_t rows = in.y.rows();
  require(heads > 0 && in.y.columns() % heads == 0 && in.q.columns() % heads == 0, kWhere,
          "{} and {} columns in {} heads", in.y.columns(), in.q.columns(), heads);
  expect(kWhere, "v", in.v, rows, in.y.columns());
  expect(kWhere, "q", in.q, rows, in.q.columns());
  expect(kWhere, "k", in.k, rows, in.q.columns());
  if (in.strength.defined()) expect(kWhere, "strength", in.strength, rows, heads);
  expect_vector(kWhere, "weight", in.weight, in.q.columns());
  expect_vector(kWhere, "skip", in.skip, heads);
  const auto arguments = [=] {
    return OwnRead{rows,
                   heads,
                   in.q.columns() / heads,
                   in.y.columns() / heads,
                   input_matrix(in.y),
                   input_matrix(in.v),
                   input_matrix(in.q),
                   input_matrix(in.k),
                   input_matrix(in.strength),
                   numbers(in.weight),
                   numbers(in.skip)};
  };
  const Tensor out = Tensor::empty(in.y.shape());
  backend().state_rows().own_read(arguments(), output_matrix(out));
  if (!needs_gradient(context, out, in.y, in.v, in.q, in.k, in.strength, in.weight, in.skip)) {
    return out;
  }
  context.tape->record([=] {
    if (!out.has_grad()) return;
    OwnReadGradients to;
    to.y = input_gradient(in.y);
    to.v = input_gradient(in.v);
    to.q = input_gradient(in.q);
    to.k = input_gradient(in.k);
    to.strength = input_gradient(in.strength);
    to.weight = vector_gradient(in.weight);
    to.skip = vector_gradient(in.skip);
    backend().state_rows().own_read_backward(arguments(), output_gradient(out), to);
  });
  return out;
}

Tensor turned_heads(const Context& context, const Tensor& x, const Tensor& bias,
                    const Tensor& angles, int64_t groups) {
  constexpr const char* kWhere = "turned_heads";
  const int64_t heads = bias.rows(), width = bias.columns();
  require(groups > 0 && heads % groups == 0 && bias.contiguous(), kWhere,
          "{} groups of keys for {} heads", groups, heads);
  expect(kWhere, "x", x, x.rows(), groups * width);
  const int64_t pairs = angles.columns() / heads;
  require(2 * pairs <= width, kWhere, "{} pairs in {} columns", pairs, width);
  expect(kWhere, "angles", angles, x.rows(), heads * pairs);
  const auto arguments = [=] {
    return TurnedHeads{
        x.rows(), heads, groups, width, pairs, input_matrix(x), input_matrix(angles), bias.data()};
  };
  const Tensor y = Tensor::empty({x.rows(), heads * width});
  backend().state_rows().turned_heads(arguments(), output_matrix(y));
  if (needs_gradient(context, y, x, bias, angles)) {
    context.tape->record([=] {
      if (!y.has_grad()) return;
      TurnedHeadsGradients to;
      to.x = input_gradient(x);
      to.angles = input_gradient(angles);
      to.bias = vector_gradient(bias);
      backend().state_rows().turned_heads_backward(arguments(), output_gradient(y), to);
    });
  }
  return y;
}

Tensor angle_steps(const Context& context, const Tensor& dt, const Tensor& angles) {
  expect("angle_steps", "angles", angles, dt.rows(), angles.columns());
  const auto arguments = [=] {
    return AngleSteps{dt.rows(), dt.columns(), angles.columns(), input_matrix(dt),
                      input_matrix(angles)};
  };
  const Tensor y = Tensor::empty({dt.rows(), dt.columns() * angles.columns()});
  backend().state_rows().angle_steps(arguments(), output_matrix(y));
  if (needs_gradient(context, y, dt, angles)) {
    context.tape->record([=] {
      if (!y.has_grad()) return;
      AngleStepsGradients to;
      to.dt = input_gradient(dt);
      to.angles = input_gradient(angles);
      backend().state_rows().angle_steps_backward(arguments(), output_gradient(y), to);
    });
  }
  return y;
}

}  // namespace pronghorn
