// Outer-product states of a layer: one, or those of log-linear attention (arXiv 2506.04761).
#pragma once

#include <cstdint>
#include <vector>

#include "layers/fields.h"
#include "layers/layer.h"
#include "layers/parameters.h"
#include "layers/states.h"
#include "ops/log_linear_state.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace pronghorn {

struct LevelsConfig {
  int64_t levels = 0, bucket = 0;

  void fields(ConfigFields& f);
};

// With levels, what a token reads from each is weighted by softplus(L l_proj(x)): parameters
// l_proj.weight [levels heads, hidden_size] and L [levels heads], level by level.
class LeveledState {
 public:
  LeveledState() = default;
  LeveledState(const LevelsConfig& config, const OuterProductStateOptions& options,
               const LayerContext& context, const ParameterScope& scope, const StateScope& states);

  // x [rows, hidden_size]: what the layer is given. Returns [rows, value_heads value_dim].
  Tensor forward(const LayerInput& input, const Tensor& x,
                 const OuterProductStateInputs& inputs) const;

  // How many states there are.
  int64_t count() const { return static_cast<int64_t>(slots_.size()); }

 private:
  LogLinearOptions options_;
  std::vector<JournalSlot> slots_;
  Weight l_proj_;
  Tensor L_;
};

}  // namespace pronghorn
