// Titans' long-term memory alone (LMM, arXiv 2501.00663): a neural memory, its answers normalised
// per head and gated.
#include "layers/layers.h"
#include "layers/neural_memory.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

class TitansMemoryMixer final : public Mixer, public HasLearningMemory {
 public:
  using Config = NeuralMemoryConfig;

  TitansMemoryMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
                    const StateScope& states)
      : memory_(config, context, scope, states),
        slot_(states.add(fast_weight_memory_journal(memory_.options()))),
        norm_epsilon_(context.norm_epsilon) {
    const int64_t d = context.hidden_size;
    g_proj_ = scope.matrix("g_proj.weight", memory_.width(), d, projection_initializer(context));
    o_norm_ = scope.tensor("o_norm.weight", {memory_.head_dim()}, initializers::constant(1));
    o_proj_ = scope.matrix("o_proj.weight", d, memory_.width(), residual_initializer(context));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const Tensor answer = memory_.forward(input, x, slot_);
    const Tensor normed =
        gated_rms_norm(context, answer, linear(context, x, g_proj_), o_norm_, memory_.head_dim(),
                       norm_epsilon_, GateOrder::norm_then_gate);
    return linear(context, normed, o_proj_);
  }

  LearningMemory learning_memory() const override { return {slot_, memory_.options()}; }

  double sequence_cost(double) const override { return fast_weight_memory_cost(memory_.options()); }

 private:
  NeuralMemory memory_;
  JournalSlot slot_;
  float norm_epsilon_;
  Weight g_proj_, o_proj_;
  Tensor o_norm_;
};

}  // namespace

MixerType titans_memory_mixer_type() {
  return mixer_type<TitansMemoryMixer>(
      "titans_memory", "a network that learns at test time: momentum, forgetting (LMM)",
      "arXiv 2501.00663", R"({"type": "titans_memory", "heads": 2})");
}

}  // namespace pronghorn
