// What layers share: limits of their settings, settings that several have, initial values.
#pragma once

#include <cstdint>

#include "backend/activation.h"
#include "layers/fields.h"
#include "layers/layer.h"

namespace pronghorn {

// Largest settings accepted from a configuration: far above any published model, and such that
// products of a few of them stay far from overflow.
namespace limits {
constexpr int64_t kHeads = 4096;
constexpr int64_t kHeadDim = 4096;
constexpr int64_t kState = 4096;
constexpr int64_t kChannelState = 1024;  // of a state per channel
constexpr int64_t kWidth = 1 << 20;
constexpr int64_t kTaps = 64;                  // of a convolution
constexpr int64_t kWindow = int64_t{1} << 40;  // longer than any text: sums with it fit
constexpr int64_t kExperts = 4096;
constexpr double kRopeTheta = 1e12;
constexpr double kLeastExpand = 0.0625, kExpand = 64;
constexpr double kLeastTimeStep = 1e-8, kTimeStep = 1e3;
}  // namespace limits

// Of the L2 norm of unit keys and queries, as in the published implementations.
constexpr float kUnitEpsilon = 1e-6f;

constexpr double kRopeTheta = 10000;  // base of the rotary angles (arXiv 2104.09864)
constexpr int64_t kConvKernel = 4;

// heads, and head_dim, which is hidden_size / heads unless it is given. Throws Error if that is not
// whole.
struct HeadsConfig {
  int64_t heads = 0, head_dim = 0;

  void fields(ConfigFields& f, const LayerContext& context, std::string_view heads_meaning,
              std::string_view head_dim_meaning);
};

// kv_heads of attention with that many query heads, which it divides.
void read_kv_heads(ConfigFields& f, int64_t heads, int64_t& kv_heads);

// mini_batch of a memory that learns: its gradients are taken at the same weights for that many
// tokens, and anchors lie between mini-batches, so that it divides kExactStep.
void read_mini_batch(ConfigFields& f, int64_t& mini_batch);

// Step sizes dt = softplus(raw + bias) of Mamba and what is built like it: at the start log-uniform
// from `minimum` to `maximum`, and at least `floor` (arXiv 2312.00752, section 3.6).
struct TimeStepConfig {
  double minimum = 0.001, maximum = 0.1, floor = 1e-4;

  void fields(ConfigFields& f);
  Initializer bias() const;
};

// An activation by its name in configurations: "silu", "gelu", "gelu_tanh", "relu", "relu2",
// "swoosh_r" or "swoosh_l".
Activation activation_named(std::string_view name);

// PyTorch's default for a depthwise convolution: uniform within 1/sqrt(fan-in). Of taps and bias.
Initializer convolution_initializer(int64_t taps);

// x times a factor of the configuration; x itself if that is 1.
Tensor scaled(const Context& context, const Tensor& x, float factor);

// Of projections from the residual stream, and back into it.
Initializer projection_initializer(const LayerContext& context);
Initializer residual_initializer(const LayerContext& context);

}  // namespace pronghorn
