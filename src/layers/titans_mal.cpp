// Titans' memory as a layer (MAL, arXiv 2501.00663, section 4.3): a neural memory, and a sliding
// window with persistent memory that looks at what the memory made of the sequence.
#include "layers/layers.h"
#include "layers/neural_memory.h"
#include "layers/persistent_attention.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

class TitansMalMixer final : public Mixer {
 public:
  TitansMalMixer(const nlohmann::json& config, const LayerContext& context,
                 const ParameterScope& scope)
      : memory_(config, context, scope.child("memory")),
        attention_(config, context, scope.child("attention")),
        norm_epsilon_(context.norm_epsilon) {
    const int64_t d = context.hidden_size;
    const Initializer one = initializers::constant(1);
    const Initializer out =
        initializers::normal(context.initializer_range * context.residual_scale);
    g_proj_ = scope.matrix("g_proj.weight", memory_.width(), d,
                           initializers::normal(context.initializer_range));
    memory_norm_ = scope.tensor("memory_norm.weight", {memory_.head_dim()}, one);
    memory_proj_ = scope.matrix("memory_proj.weight", d, memory_.width(), out);
    attention_norm_ = scope.tensor("attention_norm.weight", {d}, one);
    o_proj_ = scope.matrix("o_proj.weight", d, attention_.width(), out);
  }

  // y = M(x), normalised per head, gated and projected; o = y + SWA(norm(x + y)): a residual
  // connection around each, of which the block adds the outer one.
  Tensor forward(const Context& context, const Tensor& x, const CheckedBatch& batch,
                 JournalSlot slot) const override {
    const Tensor answer = memory_.forward(context, x, batch, slot);
    slot.index += static_cast<int64_t>(memory_.journals().size());
    const Tensor gated =
        gated_rms_norm(context, answer, linear(context, x, g_proj_), memory_norm_,
                       memory_.head_dim(), norm_epsilon_, GateOrder::norm_then_gate);
    const Tensor y = linear(context, gated, memory_proj_);
    const Tensor normed = add_rms_norm(context, x, y, attention_norm_, norm_epsilon_).second;
    const Tensor seen = attention_.forward(context, normed, batch, slot);
    return add(context, y, linear(context, seen, o_proj_));
  }

  std::vector<JournalShape> journals() const override {
    std::vector<JournalShape> shapes = memory_.journals();
    for (JournalShape& shape : attention_.journals()) shapes.push_back(std::move(shape));
    return shapes;
  }

  std::optional<LearningMemory> memory(JournalSlot slot) const override {
    return memory_.memory(slot);
  }

  TokenCost cost(double context) const override {
    const TokenCost attention = attention_.cost(context), memory = memory_.cost();
    const auto width = static_cast<double>(2 * memory_.width() + attention_.width());
    return {attention.matmul + memory.matmul + 2 * width * static_cast<double>(o_proj_.out()),
            attention.sequence + memory.sequence};
  }

 private:
  NeuralMemory memory_;
  PersistentAttention attention_;
  float norm_epsilon_;
  Weight g_proj_, memory_proj_, o_proj_;
  Tensor memory_norm_, attention_norm_;
};

nlohmann::json complete_titans_mal(ConfigReader reader, const LayerContext& context) {
  nlohmann::json config = complete_memory_and_window(reader, context);
  reader.finish();
  return config;
}

}  // namespace

MixerType titans_mal_mixer_type() {
  return {"titans_mal", "a neural memory, then a sliding window with persistent memory (MAL)",
          "arXiv 2501.00663", complete_titans_mal, create_mixer<TitansMalMixer>};
}

}  // namespace pronghorn
