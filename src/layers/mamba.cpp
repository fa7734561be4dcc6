// Mamba layer (Gu and Dao, arXiv 2312.00752, figure 3): projection, short convolution, selective
// scan, output gate. Parameter names are those of the published checkpoints. In a model of images
// it scans in several orders between projections and a gate that they share: Vision Mamba (Zhu et
// al., arXiv 2401.09417, algorithm 1), and with a convolution over the grid and a norm VMamba's
// SS2D (Liu et al., arXiv 2401.10166, figure 3).
#include <memory>
#include <string>
#include <vector>

#include "layers/both_ways.h"
#include "layers/layers.h"
#include "layers/mamba_core.h"
#include "layers/scans.h"
#include "layers/toolbox.h"
#include "ops/grid_convolution.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

constexpr int64_t kGridTaps = 9;  // 3 x 3

struct MambaConfig {
  double expand = 0;
  int64_t inner_size = 0;
  bool bias = false;
  MambaCoreConfig core;
  bool grid = false, scan_norm = false;  // in a model of images

  void fields(ConfigFields& f, const LayerContext& context) {
    f.hint("expand", expand, 2, limits::kLeastExpand, limits::kExpand,
           "only for the default of `inner_size`");
    const auto inner = static_cast<int64_t>(expand * static_cast<double>(context.hidden_size));
    f.integer("inner_size", inner_size, {inner, "expand x hidden_size"}, 1, limits::kWidth,
              "channels");
    f.boolean("bias", bias, false, "on the input and output projections");
    core.fields(f, context);
    if (context.scan == Scan::none) return;
    std::string convolution;
    f.one_of("convolution", convolution, {"causal", "grid"}, "causal",
             "a short one in each scan, or one of 3 x 3 before all of them");
    f.boolean("scan_norm", scan_norm, false, "LayerNorm of the sum of the scans, before the gate");
    grid = convolution == "grid";
    if (grid) core.conv_kernel = 0;
  }
};

class MambaMixer final : public Mixer, public SeesBothWays {
 public:
  using Config = MambaConfig;

  MambaMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
             const StateScope& states)
      : inner_size_(config.inner_size),
        norm_epsilon_(context.norm_epsilon),
        passes_(scan_passes(context.scan)),
        core_(config.core, inner_size_, context, scope, states) {
    const int64_t d = context.hidden_size;
    const Initializer zero = initializers::constant(0);
    in_proj_ = scope.matrix("in_proj.weight", 2 * inner_size_, d, projection_initializer(context));
    out_proj_ = scope.matrix("out_proj.weight", d, inner_size_, residual_initializer(context));
    if (config.bias) {
      in_bias_ = scope.tensor("in_proj.bias", {2 * inner_size_}, zero);
      out_bias_ = scope.tensor("out_proj.bias", {d}, zero);
    }
    std::vector<JournalShape> no_state;
    for (const ScanPass& pass : passes_) {
      if (pass.name.empty()) continue;
      others_.push_back(std::make_unique<MambaCore>(config.core, inner_size_, context,
                                                    scope.child(pass.name),
                                                    StateScope(context.layer, no_state)));
    }
    if (config.grid) {
      const Initializer taps = convolution_initializer(kGridTaps);
      grid_weight_ = scope.tensor("conv2d.weight", {inner_size_, kGridTaps}, taps, Decay::yes);
      if (config.core.conv_bias) grid_bias_ = scope.tensor("conv2d.bias", {inner_size_}, taps);
    }
    if (config.scan_norm) {
      norm_weight_ = scope.tensor("out_norm.weight", {inner_size_}, initializers::constant(1));
      norm_bias_ = scope.tensor("out_norm.bias", {inner_size_}, zero);
    }
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Tensor xz = linear(input.context, x, in_proj_, in_bias_);
    const Tensor scanned = xz.column_slice(0, inner_size_);
    const Tensor gate = xz.column_slice(inner_size_, inner_size_);
    const Tensor y = passes_.empty() ? core_.forward(input, scanned, gate)
                                     : swiglu(input.context, gate, scan_all(input, scanned));
    return linear(input.context, y, out_proj_, out_bias_);
  }

  double sequence_cost(double) const override {
    return static_cast<double>(1 + others_.size()) * core_.sequence_cost() +
           2.0 * static_cast<double>(grid_weight_.defined() ? kGridTaps * inner_size_ : 0);
  }

  bool sees_both_ways() const override { return !passes_.empty(); }
  bool keeps_keys() const override { return false; }

 private:
  // The sum of the scans. Their outputs are added before the gate, which is the same for all, so
  // that one projection serves each end.
  Tensor scan_all(const LayerInput& input, const Tensor& x) const {
    const Context& context = input.context;
    const Tensor u = grid_weight_.defined()
                         ? grid_convolution(context, x, grid_weight_, grid_bias_, true, input.batch)
                         : x;
    Tensor sum;
    for (size_t i = 0; i < passes_.size(); ++i) {
      const MambaCore& core = i == 0 ? core_ : *others_[i - 1];
      const ScannedRows rows(input.batch, passes_[i]);
      const LayerInput inner{context, rows.batch(), input.carry};
      const Tensor y = rows.leave(context, core.scan(inner, rows.enter(context, u)));
      sum = sum.defined() ? add(context, sum, y) : y;
    }
    if (!norm_weight_.defined()) return sum;
    return layer_norm(context, sum, norm_weight_, norm_bias_, norm_epsilon_);
  }

  int64_t inner_size_;
  float norm_epsilon_;
  std::span<const ScanPass> passes_;  // of a model of images
  MambaCore core_;
  std::vector<std::unique_ptr<MambaCore>> others_;  // of the passes after the first
  Weight in_proj_, out_proj_;
  Tensor in_bias_, out_bias_, grid_weight_, grid_bias_, norm_weight_, norm_bias_;
};

}  // namespace

MixerType mamba_mixer_type() {
  return mixer_type<MambaMixer>("mamba", "selective state space model with a diagonal state (S6)",
                                "arXiv 2312.00752", R"({"type": "mamba"})");
}

}  // namespace pronghorn
