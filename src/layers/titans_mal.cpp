// Titans' memory as a layer (MAL, arXiv 2501.00663, section 4.3): a neural memory, and a sliding
// window with persistent memory that looks at what the memory made of the sequence.
#include "layers/layers.h"
#include "layers/neural_memory.h"
#include "layers/persistent_attention.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

class TitansMalMixer final : public Mixer, public HasLearningMemory {
 public:
  using Config = MemoryAndWindowConfig;

  TitansMalMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
                 const StateScope& states)
      : memory_(config.memory, context, scope.child("memory"), states),
        slot_(states.add(fast_weight_memory_journal(memory_.options()))),
        attention_(config, context, scope.child("attention"), states),
        norm_epsilon_(context.norm_epsilon) {
    const int64_t d = context.hidden_size;
    const Initializer one = initializers::constant(1);
    const Initializer out = residual_initializer(context);
    g_proj_ = scope.matrix("g_proj.weight", memory_.width(), d, projection_initializer(context));
    memory_norm_ = scope.tensor("memory_norm.weight", {memory_.head_dim()}, one);
    memory_proj_ = scope.matrix("memory_proj.weight", d, memory_.width(), out);
    attention_norm_ = scope.tensor("attention_norm.weight", {d}, one);
    o_proj_ = scope.matrix("o_proj.weight", d, attention_.width(), out);
  }

  // y = M(x), normalised per head, gated and projected; o = y + SWA(norm(x + y)): a residual
  // connection around each, of which the block adds the outer one.
  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const Tensor answer = memory_.forward(input, x, slot_);
    const Tensor gated =
        gated_rms_norm(context, answer, linear(context, x, g_proj_), memory_norm_,
                       memory_.head_dim(), norm_epsilon_, GateOrder::norm_then_gate);
    const Tensor y = linear(context, gated, memory_proj_);
    const Tensor normed = add_rms_norm(context, x, y, attention_norm_, norm_epsilon_).second;
    const Tensor seen = attention_.forward(input, normed);
    return add(context, y, linear(context, seen, o_proj_));
  }

  LearningMemory learning_memory() const override { return {slot_, memory_.options()}; }

  double sequence_cost(double context) const override {
    return attention_.sequence_cost(context) + fast_weight_memory_cost(memory_.options());
  }

 private:
  NeuralMemory memory_;
  JournalSlot slot_;
  PersistentAttention attention_;
  float norm_epsilon_;
  Weight g_proj_, memory_proj_, o_proj_;
  Tensor memory_norm_, attention_norm_;
};

}  // namespace

MixerType titans_mal_mixer_type() {
  return mixer_type<TitansMalMixer>(
      "titans_mal", "a neural memory, then a sliding window with persistent memory (MAL)",
      "arXiv 2501.00663", R"({"type": "titans_mal", "heads": 2})");
}

}  // namespace pronghorn
