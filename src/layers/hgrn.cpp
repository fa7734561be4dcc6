// HGRN (Qin et al., arXiv 2311.04823): a gated linear RNN whose state is an element per channel,
// with lower bounds of decays that rise with depth. Parameter names are those of the
// flash-linear-attention checkpoints.
#include "layers/layers.h"
#include "layers/linear_parts.h"
#include "layers/toolbox.h"
#include "ops/diagonal_scan.h"
#include "ops/gates.h"
#include "ops/linear.h"
#include "ops/linear_maps.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

struct HgrnConfig {
  int64_t width = 0;
  bool lower_bound = true;
  double norm_epsilon = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    f.integer("width", width, {context.hidden_size, "hidden_size"}, 1, limits::kWidth,
              "of the recurrence");
    f.boolean("lower_bound", lower_bound, true,
              "decays have lower bounds, which are learned and rise from layer to layer");
    read_norm_epsilon(f, norm_epsilon, "of the norm of the output");
  }
};

class HgrnMixer final : public Mixer {
 public:
  using Config = HgrnConfig;

  HgrnMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
            const StateScope& states)
      : width_(config.width), bound_(config.lower_bound, width_, context, scope) {
    const int64_t d = context.hidden_size;
    const Initializer in = projection_initializer(context);
    i_proj_ = scope.matrix("i_proj.weight", width_, d, in);
    f_proj_ = scope.matrix("f_proj.weight", width_, d, in);
    g_proj_ = scope.matrix("g_proj.weight", width_, d, in);
    o_proj_ = scope.matrix("o_proj.weight", d, width_, residual_initializer(context));
    g_norm_ = GatedHeadNorm("g_norm.weight", width_, HeadGate::silu,
                            epsilon_or_default(config.norm_epsilon, context), scope);
    state_ = states.add(diagonal_scan_journal(width_, false));
  }

  // h_t = f_t h_{t-1} + (1 - f_t) silu(i_t)
  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const auto [i, f, g] = linear_maps(context, x, {{&i_proj_}, {&f_proj_}, {&g_proj_}});
    const auto [log_decay, free] = lower_bounded_gate(context, f, bound_.value(context));
    const Tensor h =
        diagonal_scan(context, log_decay, swiglu(context, i, free), input.batch, state_);
    return linear(context, g_norm_.forward(context, h, g), o_proj_);
  }

  // A channel's gates: about 6 operations; its update: 2.
  double sequence_cost(double) const override { return 8.0 * static_cast<double>(width_); }

 private:
  int64_t width_;
  RisingBound bound_;
  GatedHeadNorm g_norm_;
  JournalSlot state_;
  Weight i_proj_, f_proj_, g_proj_, o_proj_;
};

}  // namespace

MixerType hgrn_mixer_type() {
  return mixer_type<HgrnMixer>("hgrn", "gated linear RNN with an element per channel",
                               "arXiv 2311.04823", R"({"type": "hgrn"})");
}

}  // namespace pronghorn
