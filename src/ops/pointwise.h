// Element-wise operators and those that work on one row at a time: norms, activations, embeddings.
// All take matrices [rows, columns] in f32, column slices included, and compute a row from that row
// alone.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include "backend/activation.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace pronghorn {

// a + b, same shape.
Tensor add(const Context& context, const Tensor& a, const Tensor& b);

// a b element by element, same shape.
Tensor multiply(const Context& context, const Tensor& a, const Tensor& b);

// x + bias, bias [columns].
Tensor add_bias(const Context& context, const Tensor& x, const Tensor& bias);

// x / sqrt(mean(x^2) + epsilon) * weight over each row (Zhang and Sennrich, arXiv 1910.07467).
// weight [columns].
Tensor rms_norm(const Context& context, const Tensor& x, const Tensor& weight, float epsilon);

// (x - mean) / sqrt(variance + epsilon) * weight + bias over each row; bias may be undefined.
Tensor layer_norm(const Context& context, const Tensor& x, const Tensor& weight, const Tensor& bias,
                  float epsilon);

// x e^log_scale / sqrt(mean((x - bias)^2) + epsilon) over each row: what the bias takes off the
// length is what a row can say by it (BiasNorm of Zipformer, arXiv 2310.11230, section 3.3).
// log_scale [1], bias [columns].
Tensor bias_norm(const Context& context, const Tensor& x, const Tensor& log_scale,
                 const Tensor& bias, float epsilon);

// A residual connection and the norm after it in one pass: {x + delta, rms_norm(x + delta)}.
std::pair<Tensor, Tensor> add_rms_norm(const Context& context, const Tensor& x, const Tensor& delta,
                                       const Tensor& weight, float epsilon);

// {x + delta, layer_norm(x + delta)}.
std::pair<Tensor, Tensor> add_layer_norm(const Context& context, const Tensor& x,
                                         const Tensor& delta, const Tensor& weight,
                                         const Tensor& bias, float epsilon);

// {x + delta, bias_norm(x + delta)}.
std::pair<Tensor, Tensor> add_bias_norm(const Context& context, const Tensor& x,
                                        const Tensor& delta, const Tensor& log_scale,
                                        const Tensor& bias, float epsilon);

// silu(gate) * up, silu(x) = x sigmoid(x): the middle of SwiGLU (arXiv 2002.05202), and the output
// gate of Mamba.
Tensor swiglu(const Context& context, const Tensor& gate, const Tensor& up);

// x Phi(x); tanh_approximation: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (arXiv 1606.08415).
Tensor gelu(const Context& context, const Tensor& x, bool tanh_approximation);

// Any of the activations, element by element.
Tensor activate(const Context& context, const Tensor& x, Activation activation);

// activation(gate) up (arXiv 2002.05202).
Tensor gated(const Context& context, const Tensor& gate, const Tensor& up, Activation activation);

// (clamp(up, -limit, limit) + 1) g sigmoid(1.702 g) with g = min(gate, limit): the middle of
// gpt-oss' experts (arXiv 2508.10925).
Tensor clamped_swiglu(const Context& context, const Tensor& gate, const Tensor& up, float limit);

// cap tanh(x / cap) (arXiv 2408.00118, section 2). cap > 0.
Tensor soft_cap(const Context& context, const Tensor& x, float cap);

enum class GateOrder {
  gate_then_norm,  // norm(x silu(z)) weight: Mamba-2
  norm_then_gate   // norm(x) weight silu(z): Gated DeltaNet
};

// RMSNorm over groups of `group` adjacent columns with a silu gate z of x's shape. weight:
// [columns], or [group] to be shared by all groups.
Tensor gated_rms_norm(const Context& context, const Tensor& x, const Tensor& z,
                      const Tensor& weight, int64_t group, float epsilon, GateOrder order);

// x / sqrt(sum(x^2) + epsilon) over groups of `group` adjacent columns (heads).
Tensor l2_normalize(const Context& context, const Tensor& x, int64_t group, float epsilon);

// Decay and step size of gated recurrences, a value a head (arXiv 2405.21060, 2412.06464):
// dt = softplus(raw + dt_bias) clamped to [minimum, maximum], log_decay = -exp(A_log) dt.
// raw [rows, heads], dt_bias and A_log [heads]. Returns {dt, log_decay}.
std::pair<Tensor, Tensor> decay_gate(const Context& context, const Tensor& raw,
                                     const Tensor& dt_bias, const Tensor& A_log, float minimum,
                                     float maximum);

// 1 / (1 + e^-x).
Tensor sigmoid(const Context& context, const Tensor& x);

// Rows of table [vocab_size, width] chosen by tokens. Throws Error on a token out of range.
Tensor embedding(const Context& context, const Tensor& table, std::span<const int32_t> tokens);
// The same of a table in whatever encoding it is stored.
Tensor embedding(const Context& context, const Weight& table, std::span<const int32_t> tokens);

// Columns of several tensors with the same rows, one after another.
Tensor concatenate_columns(const Context& context, std::span<const Tensor> parts);

// Rows of several tensors with the same columns, one after another.
Tensor concatenate_rows(const Context& context, std::span<const Tensor> parts);

// x times a factor.
Tensor scale(const Context& context, const Tensor& x, float factor);

}  // namespace pronghorn
