// Titans' long-term memory alone (LMM, arXiv 2501.00663): a neural memory, its answers normalised
// per head and gated.
#include "layers/layers.h"
#include "layers/neural_memory.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

class TitansMemoryMixer final : public Mixer {
 public:
  TitansMemoryMixer(const nlohmann::json& config, const LayerContext& context,
                    const ParameterScope& scope)
      : memory_(config, context, scope), norm_epsilon_(context.norm_epsilon) {
    const int64_t d = context.hidden_size;
    g_proj_ = scope.matrix("g_proj.weight", memory_.width(), d,
                           initializers::normal(context.initializer_range));
    o_norm_ = scope.tensor("o_norm.weight", {memory_.head_dim()}, initializers::constant(1));
    o_proj_ =
        scope.matrix("o_proj.weight", d, memory_.width(),
                     initializers::normal(context.initializer_range * context.residual_scale));
  }

  Tensor forward(const Context& context, const Tensor& x, const CheckedBatch& batch,
                 JournalSlot slot) const override {
    const Tensor answer = memory_.forward(context, x, batch, slot);
    const Tensor normed =
        gated_rms_norm(context, answer, linear(context, x, g_proj_), o_norm_, memory_.head_dim(),
                       norm_epsilon_, GateOrder::norm_then_gate);
    return linear(context, normed, o_proj_);
  }

  std::vector<JournalShape> journals() const override { return memory_.journals(); }

  std::optional<LearningMemory> memory(JournalSlot slot) const override {
    return memory_.memory(slot);
  }

  TokenCost cost(double) const override {
    TokenCost cost = memory_.cost();
    cost.matmul += 4 * static_cast<double>(o_proj_.in() * o_proj_.out());
    return cost;
  }

 private:
  NeuralMemory memory_;
  float norm_epsilon_;
  Weight g_proj_, o_proj_;
  Tensor o_norm_;
};

nlohmann::json complete_titans_memory(ConfigReader reader, const LayerContext& context) {
  nlohmann::json config = {{"type", reader.string("type")}};
  complete_neural_memory(reader, context, config);
  reader.finish();
  return config;
}

}  // namespace

MixerType titans_memory_mixer_type() {
  return {"titans_memory", "a network that learns at test time: momentum, forgetting (LMM)",
          "arXiv 2501.00663", complete_titans_memory, create_mixer<TitansMemoryMixer>};
}

}  // namespace pronghorn
