// What is between the projections of a Mamba layer (arXiv 2312.00752, figure 3): short convolution,
// selective scan, output gate. Hymba has it beside attention, between projections that both share.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "layers/fields.h"
#include "layers/known.h"
#include "layers/layer.h"
#include "layers/toolbox.h"

namespace pronghorn {

// Heads with a state each (Mamba-2, arXiv 2405.21060, section 7.1, and Mamba-3 after it).
struct StateHeads {
  double expand = 0;
  int64_t heads = 0, head_dim = 0, state = 0, groups = 0;

  // least_state: the fewest rows of a state.
  void head_fields(ConfigFields& f, const LayerContext& context, int64_t least_state);
};

struct MambaCoreConfig {
  // conv_kernel 0: x is scanned as it is.
  int64_t state = 0, conv_kernel = 0, time_step_rank = 0;
  TimeStepConfig time_step;
  bool conv_bias = false;
  std::string inner_norms;
  double inner_norm_epsilon = 0;

  void fields(ConfigFields& f, const LayerContext& context);
};

class MambaCore {
 public:
  // Registers its parameters under the names of the published checkpoints.
  MambaCore(const MambaCoreConfig& config, int64_t inner_size, const LayerContext& context,
            const ParameterScope& scope, const StateScope& states);

  // silu(z) y, y being the scan of the convolution of x; all [rows, inner_size].
  Tensor forward(const LayerInput& input, const Tensor& x, const Tensor& z) const;
  // y alone.
  Tensor scan(const LayerInput& input, const Tensor& x) const;

  // As Mixer::sequence_cost().
  double sequence_cost() const;

 private:
  void make_inner_norms(const std::string& kind, const ParameterScope& scope);

  int64_t inner_size_, state_, time_step_rank_;
  float inner_norm_epsilon_;
  JournalSlot conv_rows_, scan_;
  Weight x_proj_, dt_proj_;
  Tensor conv_weight_, conv_bias_, dt_bias_, A_log_, D_, dt_norm_, b_norm_, c_norm_;
  std::unique_ptr<Known<Tensor>> rates_ = std::make_unique<Known<Tensor>>();  // of A_log
};

}  // namespace pronghorn
