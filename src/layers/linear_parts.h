// What the layers of the linear-attention family share around their operator: projections through
// short convolutions before it, a norm of heads with a gate after it.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "layers/fields.h"
#include "layers/layer.h"
#include "layers/parameters.h"
#include "layers/states.h"
#include "ops/linear_maps.h"
#include "ops/pointwise.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace pronghorn {

// A projection and, if it has taps, a causal depthwise convolution of its columns with SiLU after
// it: parameters NAME_proj.weight and NAME_conv1d.weight (and .bias).
class ConvolvedProjection {
 public:
  struct Options {
    int64_t conv_kernel = 0;  // taps; 0: no convolution
    bool conv_bias = false;
    bool silu = true;  // after the convolution, or after the projection if there is none
  };

  ConvolvedProjection() = default;
  // name: "q". The convolution's journal is added to `states`.
  ConvolvedProjection(std::string_view name, int64_t width, const Options& options,
                      const LayerContext& context, const ParameterScope& scope,
                      const StateScope& states);

  // Of the projection, for linear_maps() with those of other matrices.
  LinearMap map() const { return {&projection_}; }
  // What is after it: projected [rows, width], as map() gives it; returns the same shape.
  Tensor finish(const LayerInput& input, const Tensor& projected) const;

 private:
  Options options_;
  Weight projection_;
  Tensor taps_, bias_;
  JournalSlot rows_;
};

// The row before each row of a sequence, zeros before the first; tree nodes have their parents.
class PreviousRow {
 public:
  PreviousRow() = default;
  PreviousRow(int64_t width, const StateScope& states);

  // x [rows, width]; returns the same shape.
  Tensor forward(const LayerInput& input, const Tensor& x) const;

 private:
  Tensor taps_;
  JournalSlot rows_;
};

// Lower bounds of decays that rise with depth (HGRN, arXiv 2311.04823, section 3.2), learned for
// all layers together: the parameter `lower_bounds` [depth, width] of the model.
class RisingBound {
 public:
  // learned: false: the bound is 0.
  RisingBound(bool learned, int64_t width, const LayerContext& context,
              const ParameterScope& scope);

  // [width], in [0, 1).
  Tensor value(const Context& context) const;

 private:
  int64_t layer_;
  Tensor all_;  // of all layers, before their softmax
  mutable std::once_flag made_;
  mutable Tensor bound_;
};

// ln(1 - 2^(-5 - head)) of each head: the decays of RetNet (arXiv 2307.08621, equation 8).
std::vector<float> retention_log_decays(int64_t heads);

// -2^(-8 (head + 1) / heads) (1 - layer / (depth - 1 + 1e-5) + 1e-5) of each head: the decays of
// MiniMax-01 (arXiv 2501.08313, section 2.2), which fall with depth to nearly nothing. Layers
// after the last block have those of the last.
std::vector<float> lightning_log_decays(int64_t heads, int64_t layer, int64_t depth);

// heads with keys half as wide as values: of hidden_size columns in all, and half of that.
struct HalfKeyHeads {
  int64_t heads = 0, head_dim = 0, value_head_dim = 0;

  void fields(ConfigFields& f, const LayerContext& context);
};

// value_heads, a multiple of `heads`, which is the default.
void read_value_heads(ConfigFields& f, int64_t heads, int64_t& value_heads);

// `norm_epsilon`, for epsilon_or_default(); of: "of the norm of heads".
void read_norm_epsilon(ConfigFields& f, double& norm_epsilon, std::string_view of);

// A layer's own `norm_epsilon`, or that of the model's norms where it is 0.
float epsilon_or_default(double configured, const LayerContext& context);

enum class HeadGate { none, silu, sigmoid };

// "none", "silu" or "sigmoid".
HeadGate head_gate_named(std::string_view name);

// norm(y) gate(z), the norm an RMSNorm over groups of adjacent columns with a weight of a group.
class GatedHeadNorm {
 public:
  GatedHeadNorm() = default;
  // weight_name: "o_norm.weight".
  GatedHeadNorm(std::string_view weight_name, int64_t group, HeadGate gate, float epsilon,
                const ParameterScope& scope);

  // y [rows, columns]; z of its shape, undefined without a gate.
  Tensor forward(const Context& context, const Tensor& y, const Tensor& z) const;

 private:
  int64_t group_ = 0;
  HeadGate gate_ = HeadGate::none;
  float epsilon_ = 0;
  Tensor weight_;
};

}  // namespace pronghorn
