// Hymba's mixer (Dong et al., arXiv 2411.13676, section 2.1, equations 1 to 3): attention and Mamba
// side by side between one input and one output projection. Each answer is normalised, and the mean
// of both is projected back. Values are as wide as Mamba's channels ask for, keys may be narrower.
#include <algorithm>
#include <utility>

#include "layers/layers.h"
#include "layers/mamba_core.h"
#include "layers/rope_config.h"
#include "layers/shared_keys.h"
#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

struct HymbaConfig {
  HeadsConfig heads;
  int64_t kv_heads = 0, value_dim = 0, window = 0;
  bool has_rope = false, bias = false;
  RopeConfig rope;
  SharedKeysConfig shared;
  MambaCoreConfig core;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "query heads", "width of a head's query and key");
    read_kv_heads(f, heads.heads, kv_heads);
    f.integer(
        "value_dim", value_dim,
        {std::max<int64_t>(1, 2 * context.hidden_size / heads.heads), "2 hidden_size / heads"}, 1,
        limits::kHeadDim, "width of a head's value; Mamba has `heads` x `value_dim` channels");
    f.integer("window", window, 0, 0, limits::kWindow, "tokens that a row looks back; 0: all");
    has_rope = f.object(
        "rope", [&](ConfigFields& inner) { rope.fields(inner, heads.head_dim); },
        "rotary positions, an object of the next keys; omitted: no positions at all");
    shared.fields(f);
    f.boolean("bias", bias, false, "on the input and output projections");
    core.fields(f, context);
  }
};

class HymbaMixer final : public Mixer {
 public:
  using Config = HymbaConfig;

  HymbaMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
             const StateScope& states)
      : norm_epsilon_(context.norm_epsilon),
        shared_(config.shared),
        inner_size_(config.heads.heads * config.value_dim),
        core_(config.core, inner_size_, context, scope, states) {
    options_.heads = config.heads.heads;
    options_.kv_heads = config.kv_heads;
    options_.head_dim = config.heads.head_dim;
    options_.value_dim = config.value_dim;
    options_.window = config.window;
    options_.prefix = context.prefix;
    options_.keys = shared_.owner();
    if (config.has_rope) angles_ = options_.angles = config.rope.angles();
    q_width_ = options_.heads * options_.head_dim;
    if (!shared_.borrows()) {
      k_width_ = options_.kv_heads * options_.head_dim;
      v_width_ = options_.kv_heads * options_.value_dim;
      key_value_ = states.add(attention_journal(options_));
    }
    const int64_t d = context.hidden_size;
    const int64_t width = q_width_ + k_width_ + v_width_ + 2 * inner_size_;
    const Initializer zero = initializers::constant(0), one = initializers::constant(1);
    in_proj_ = scope.matrix("in_proj.weight", width, d, projection_initializer(context));
    out_proj_ = scope.matrix("out_proj.weight", d, inner_size_, residual_initializer(context));
    if (config.bias) {
      in_bias_ = scope.tensor("in_proj.bias", {width}, zero);
      out_bias_ = scope.tensor("out_proj.bias", {d}, zero);
    }
    attention_norm_ = scope.tensor("attention_norm.weight", {inner_size_}, one);
    mamba_norm_ = scope.tensor("mamba_norm.weight", {inner_size_}, one);
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const Tensor projected = linear(context, x, in_proj_, in_bias_);
    int64_t column = 0;
    const auto next = [&](int64_t width) {
      return projected.column_slice(std::exchange(column, column + width), width);
    };
    const Tensor q = turned(input, next(q_width_));
    Tensor seen;
    if (shared_.borrows()) {
      seen = attend_borrowed(input, shared_, q, options_);
    } else {
      const Tensor k = turned(input, next(k_width_)), v = next(v_width_);
      seen = attend_own(input, shared_, q, k, v, options_, key_value_);
    }
    const Tensor given = next(inner_size_), gate = next(inner_size_);
    const Tensor scanned = core_.forward(input, given, gate);
    const Tensor both = add(context, rms_norm(context, seen, attention_norm_, norm_epsilon_),
                            rms_norm(context, scanned, mamba_norm_, norm_epsilon_));
    return linear(context, scale(context, both, 0.5f), out_proj_, out_bias_);
  }

  double sequence_cost(double context) const override {
    const double seen = rows_seen(options_, context);
    return 2 * seen * static_cast<double>(q_width_ + inner_size_) + core_.sequence_cost();
  }

  int64_t context_limit() const override { return pronghorn::context_limit(angles_); }

 private:
  Tensor turned(const LayerInput& input, const Tensor& heads) const {
    return pronghorn::turned(input, heads, options_.head_dim, angles_);
  }

  AttentionOptions options_;
  SharedAngles angles_;  // null: no positions
  float norm_epsilon_;
  SharedKeysConfig shared_;
  int64_t inner_size_, q_width_ = 0, k_width_ = 0, v_width_ = 0;
  MambaCore core_;
  JournalSlot key_value_;
  Weight in_proj_, out_proj_;
  Tensor in_bias_, out_bias_, attention_norm_, mamba_norm_;
};

}  // namespace

MixerType hymba_mixer_type() {
  return mixer_type<HymbaMixer>("hymba",
                                "attention and Mamba side by side between shared projections",
                                "arXiv 2411.13676", R"({"type": "hymba", "heads": 2, "rope": {}})");
}

}  // namespace pronghorn
