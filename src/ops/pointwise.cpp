#include "ops/pointwise.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"

namespace pronghorn {
namespace {

void require_same_shape(const Tensor& a, const Tensor& b, const char* where) {
  require(a.shape() == b.shape(), where, "shapes {} and {} differ", a.shape(), b.shape());
}

void require_tokens(std::span<const int32_t> tokens, int64_t vocabulary) {
  for (const int32_t token : tokens) {
    require(token >= 0 && token < vocabulary, "embedding", "token {} in a vocabulary of {}", token,
            vocabulary);
  }
}

}  // namespace

Tensor add(const Context& context, const Tensor& a, const Tensor& b) {
  require_same_shape(a, b, "add");
  Tensor y = Tensor::empty(a.shape());
  backend().pointwise().add(extent_of(a), input_matrix(a), input_matrix(b), output_matrix(y));
  if (needs_gradient(context, y, a, b)) {
    context.tape->record([a, b, y] {
      if (!y.has_grad()) return;
      const Tensor dy = y.grad();
      if (a.requires_grad()) a.give_grad(dy);
      if (b.requires_grad()) b.give_grad(dy);
    });
  }
  return y;
}

Tensor multiply(const Context& context, const Tensor& a, const Tensor& b) {
  require_same_shape(a, b, "multiply");
  Tensor y = Tensor::empty(a.shape());
  backend().pointwise().multiply(extent_of(a), input_matrix(a), input_matrix(b), output_matrix(y));
  if (needs_gradient(context, y, a, b)) {
    context.tape->record([a, b, y] {
      if (!y.has_grad()) return;
      const Matrix da = input_gradient(a), db = input_gradient(b);
      PointwiseKernels& kernels = backend().pointwise();
      if (da.data != nullptr)
        kernels.multiply(extent_of(a), output_gradient(y), input_matrix(b), da);
      if (db.data != nullptr)
        kernels.multiply(extent_of(a), output_gradient(y), input_matrix(a), db);
    });
  }
  return y;
}

Tensor add_bias(const Context& context, const Tensor& x, const Tensor& bias) {
  require(bias.size() == x.columns(), "add_bias", "bias of {} for {} columns", bias.size(),
          x.columns());
  Tensor y = Tensor::empty(x.shape());
  backend().pointwise().add_bias(extent_of(x), input_matrix(x), bias.data(), output_matrix(y));
  if (needs_gradient(context, y, x, bias)) {
    context.tape->record([x, bias, y] {
      if (!y.has_grad()) return;
      const Tensor dy = y.grad();
      if (bias.requires_grad()) {
        backend().pointwise().column_sums(extent_of(dy), input_matrix(dy), vector_gradient(bias));
      }
      if (x.requires_grad()) x.give_grad(dy);
    });
  }
  return y;
}

Tensor scale(const Context& context, const Tensor& x, float factor) {
  Tensor y = Tensor::empty(x.shape());
  backend().pointwise().scale(extent_of(x), input_matrix(x), factor, output_matrix(y));
  if (needs_gradient(context, y, x)) {
    context.tape->record([x, y, factor] {
      if (!y.has_grad()) return;
      backend().pointwise().scale(extent_of(x), output_gradient(y), factor, input_gradient(x));
    });
  }
  return y;
}

Tensor sigmoid(const Context& context, const Tensor& x) {
  Tensor y = Tensor::empty(x.shape());
  backend().pointwise().sigmoid(extent_of(x), input_matrix(x), output_matrix(y));
  if (needs_gradient(context, y, x)) {
    context.tape->record([x, y] {
      if (!y.has_grad()) return;
      backend().pointwise().sigmoid_backward(extent_of(x), input_matrix(y), output_gradient(y),
                                             input_gradient(x));
    });
  }
  return y;
}

Tensor gelu(const Context& context, const Tensor& x, bool tanh_approximation) {
  return activate(context, x, tanh_approximation ? Activation::gelu_tanh : Activation::gelu);
}

Tensor activate(const Context& context, const Tensor& x, Activation activation) {
  Tensor y = Tensor::empty(x.shape());
  backend().pointwise().activate(extent_of(x), input_matrix(x), activation, output_matrix(y));
  if (needs_gradient(context, y, x)) {
    context.tape->record([x, y, activation] {
      if (!y.has_grad()) return;
      backend().pointwise().activate_backward(extent_of(x), input_matrix(x), output_gradient(y),
                                              activation, input_gradient(x));
    });
  }
  return y;
}

Tensor gated(const Context& context, const Tensor& gate, const Tensor& up, Activation activation) {
  if (activation == Activation::silu) return swiglu(context, gate, up);
  return multiply(context, activate(context, gate, activation), up);
}

Tensor soft_cap(const Context& context, const Tensor& x, float cap) {
  require(cap > 0, "soft_cap", "a cap of {}", cap);
  Tensor y = Tensor::empty(x.shape());
  backend().pointwise().soft_cap(extent_of(x), input_matrix(x), cap, output_matrix(y));
  if (needs_gradient(context, y, x)) {
    context.tape->record([x, y, cap] {
      if (!y.has_grad()) return;
      backend().pointwise().soft_cap_backward(extent_of(x), input_matrix(y), output_gradient(y),
                                              cap, input_gradient(x));
    });
  }
  return y;
}

Tensor swiglu(const Context& context, const Tensor& gate, const Tensor& up) {
  require_same_shape(gate, up, "swiglu");
  Tensor y = Tensor::empty(gate.shape());
  backend().pointwise().swiglu(extent_of(gate), input_matrix(gate), input_matrix(up),
                               output_matrix(y));
  if (needs_gradient(context, y, gate, up)) {
    context.tape->record([gate, up, y] {
      if (!y.has_grad()) return;
      const Matrix dgate = input_gradient(gate), dup = input_gradient(up);
      backend().pointwise().swiglu_backward(extent_of(gate), input_matrix(gate), input_matrix(up),
                                            output_gradient(y), dgate, dup);
    });
  }
  return y;
}

Tensor clamped_swiglu(const Context& context, const Tensor& gate, const Tensor& up, float limit) {
  require_same_shape(gate, up, "clamped_swiglu");
  Tensor y = Tensor::empty(gate.shape());
  backend().pointwise().clamped_swiglu(extent_of(gate), input_matrix(gate), input_matrix(up), limit,
                                       output_matrix(y));
  if (needs_gradient(context, y, gate, up)) {
    context.tape->record([gate, up, y, limit] {
      if (!y.has_grad()) return;
      const Matrix dgate = input_gradient(gate), dup = input_gradient(up);
      backend().pointwise().clamped_swiglu_backward(extent_of(gate), input_matrix(gate),
                                                    input_matrix(up), limit, output_gradient(y),
                                                    dgate, dup);
    });
  }
  return y;
}

std::pair<Tensor, Tensor> decay_gate(const Context& context, const Tensor& raw,
                                     const Tensor& dt_bias, const Tensor& A_log, float minimum,
                                     float maximum) {
  require(dt_bias.size() == raw.columns() && A_log.size() == raw.columns(), "decay_gate",
          "dt_bias of {} and A_log of {} for {} heads", dt_bias.size(), A_log.size(),
          raw.columns());
  require(minimum <= maximum, "decay_gate", "dt is clamped to the empty range [{}, {}]", minimum,
          maximum);
  const auto arguments = [=] {
    return DecayGate{extent_of(raw), input_matrix(raw), dt_bias.data(),
                     A_log.data(),   minimum,           maximum};
  };
  Tensor dt = Tensor::empty(raw.shape()), log_decay = Tensor::empty(raw.shape());
  backend().pointwise().decay_gate(arguments(), output_matrix(dt), output_matrix(log_decay));
  if (needs_gradient(context, dt, raw, dt_bias, A_log)) {
    log_decay.set_requires_grad(true);
    context.tape->record([=] {
      if (!dt.has_grad() && !log_decay.has_grad()) return;
      const Matrix d_raw = input_gradient(raw);
      const GradVector d_dt_bias = vector_gradient(dt_bias), d_A_log = vector_gradient(A_log);
      backend().pointwise().decay_gate_backward(
          arguments(), output_gradient(dt), output_gradient(log_decay), d_raw, d_dt_bias, d_A_log);
    });
  }
  return {dt, log_decay};
}

Tensor embedding(const Context& context, const Tensor& table, std::span<const int32_t> tokens) {
  require_tokens(tokens, table.rows());
  Tensor y = Tensor::empty({static_cast<int64_t>(tokens.size()), table.columns()});
  backend().pointwise().gather_rows(extent_of(y), input_matrix(table), tokens.data(),
                                    output_matrix(y));
  if (needs_gradient(context, y, table)) {
    context.tape->record([table, y, kept = std::vector<int32_t>(tokens.begin(), tokens.end())] {
      if (!y.has_grad()) return;
      backend().pointwise().scatter_add_rows(extent_of(y), output_gradient(y), kept.data(),
                                             table.rows(), input_gradient(table));
    });
  }
  return y;
}

Tensor embedding(const Context& context, const Weight& table, std::span<const int32_t> tokens) {
  if (table.trainable().defined()) return embedding(context, table.trainable(), tokens);
  require_tokens(tokens, table.out());
  const Tensor y = Tensor::empty({static_cast<int64_t>(tokens.size()), table.in()});
  backend().matmul().read_rows(table, tokens, output_matrix(y));
  return y;
}

Tensor concatenate_columns(const Context& context, std::span<const Tensor> parts) {
  require(!parts.empty(), "concatenate_columns", "no parts");
  int64_t columns = 0;
  bool record = false;
  for (const Tensor& part : parts) {
    require(part.rows() == parts[0].rows(), "concatenate_columns", "{} rows beside {}", part.rows(),
            parts[0].rows());
    columns += part.columns();
    record |= context.tape != nullptr && part.requires_grad();
  }
  Tensor y = Tensor::empty({parts[0].rows(), columns});
  int64_t first = 0;
  for (const Tensor& part : parts) {
    const Tensor slice = y.column_slice(first, part.columns());
    backend().pointwise().scale(extent_of(part), input_matrix(part), 1.0f, output_matrix(slice));
    first += part.columns();
  }
  if (record) {
    y.set_requires_grad(true);
    context.tape->record([y, kept = std::vector<Tensor>(parts.begin(), parts.end())] {
      if (!y.has_grad()) return;
      const Tensor dy = y.grad();
      int64_t column = 0;
      for (const Tensor& part : kept) {
        if (part.requires_grad()) {
          const Tensor slice = dy.column_slice(column, part.columns());
          backend().pointwise().scale(extent_of(part), input_matrix(slice), 1.0f,
                                      input_gradient(part));
        }
        column += part.columns();
      }
    });
  }
  return y;
}

Tensor concatenate_rows(const Context& context, std::span<const Tensor> parts) {
  require(!parts.empty(), "concatenate_rows", "no parts");
  int64_t rows = 0;
  bool record = false;
  for (const Tensor& part : parts) {
    require(part.columns() == parts[0].columns(), "concatenate_rows", "{} columns after {}",
            part.columns(), parts[0].columns());
    rows += part.rows();
    record |= context.tape != nullptr && part.requires_grad();
  }
  Tensor y = Tensor::empty({rows, parts[0].columns()});
  int64_t first = 0;
  for (const Tensor& part : parts) {
    y.row_slice(first, part.rows()).copy_from(part);
    first += part.rows();
  }
  if (!record) return y;
  y.set_requires_grad(true);
  context.tape->record([y, kept = std::vector<Tensor>(parts.begin(), parts.end())] {
    if (!y.has_grad()) return;
    const Tensor dy = y.grad();
    int64_t row = 0;
    for (const Tensor& part : kept) {
      if (part.requires_grad()) part.give_grad(dy.row_slice(row, part.rows()));
      row += part.rows();
    }
  });
  return y;
}

}  // namespace pronghorn
