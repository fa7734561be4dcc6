// Titans' memory as a gate (MAG, arXiv 2501.00663, section 4.2): a sliding window with persistent
// memory beside a neural memory. Both answers are normalised with learned weights; the memory's
// then gates the window's.
#include "layers/layers.h"
#include "layers/neural_memory.h"
#include "layers/persistent_attention.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

class TitansMagMixer final : public Mixer {
 public:
  TitansMagMixer(const nlohmann::json& config, const LayerContext& context,
                 const ParameterScope& scope)
      : attention_(config, context, scope.child("attention")),
        memory_(config, context, scope.child("memory")),
        norm_epsilon_(context.norm_epsilon) {
    const Initializer one = initializers::constant(1);
    attention_norm_ = scope.tensor("attention_norm.weight", {attention_.width()}, one);
    memory_norm_ = scope.tensor("memory_norm.weight", {memory_.width()}, one);
    // From 1, so that each branch also passes by itself: a product of two unknowns teaches neither.
    attention_bias_ = scope.tensor("attention_norm.bias", {attention_.width()}, one);
    memory_bias_ = scope.tensor("memory_norm.bias", {memory_.width()}, one);
    o_proj_ =
        scope.matrix("o_proj.weight", context.hidden_size, attention_.width(),
                     initializers::normal(context.initializer_range * context.residual_scale));
  }

  // o = (norm(y) + b_y) silu(norm(M(x)) + b_M)
  Tensor forward(const Context& context, const Tensor& x, const Batch& batch,
                 JournalSlot slot) const override {
    const Tensor y = rms_norm(context, attention_.forward(context, x, batch, slot), attention_norm_,
                              norm_epsilon_);
    slot.index += static_cast<int64_t>(attention_.journals().size());
    const Tensor answer =
        rms_norm(context, memory_.forward(context, x, batch, slot), memory_norm_, norm_epsilon_);
    return linear(context,
                  swiglu(context, add_bias(context, answer, memory_bias_),
                         add_bias(context, y, attention_bias_)),
                  o_proj_);
  }

  std::vector<JournalShape> journals() const override {
    std::vector<JournalShape> shapes = attention_.journals();
    for (JournalShape& shape : memory_.journals()) shapes.push_back(std::move(shape));
    return shapes;
  }

  std::optional<LearningMemory> memory(JournalSlot slot) const override {
    slot.index += static_cast<int64_t>(attention_.journals().size());
    return memory_.memory(slot);
  }

  TokenCost cost(double context) const override {
    const TokenCost attention = attention_.cost(context), memory = memory_.cost();
    const auto out = static_cast<double>(o_proj_.in() * o_proj_.out());
    return {attention.matmul + memory.matmul + 2 * out, attention.sequence + memory.sequence};
  }

 private:
  PersistentAttention attention_;
  NeuralMemory memory_;
  float norm_epsilon_;
  Tensor attention_norm_, attention_bias_, memory_norm_, memory_bias_;
  Weight o_proj_;
};

}  // namespace

MixerType titans_mag_mixer_type() {
  return {"titans_mag", "a sliding window gated by a neural memory, with persistent memory (MAG)",
          "arXiv 2501.00663", complete_memory_and_window, create_mixer<TitansMagMixer>};
}

}  // namespace pronghorn
