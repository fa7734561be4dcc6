// Titans' memory as a gate (MAG, arXiv 2501.00663, section 4.2): a sliding window with persistent
// memory beside a neural memory. Both answers are normalised with learned weights; the memory's
// then gates the window's.
#include "layers/layers.h"
#include "layers/neural_memory.h"
#include "layers/persistent_attention.h"

namespace pronghorn {
namespace {

class TitansMagMixer final : public Mixer {
 public:
  TitansMagMixer(const nlohmann::json& config, const LayerContext& context,
                 const ParameterScope& scope)
      : attention_(config, context, scope.child("attention")),
        memory_(config, context, scope.child("memory")),
        output_(attention_.width(), config.at("answer_bias"), context, scope) {}

  Tensor forward(const Context& context, const Tensor& x, const CheckedBatch& batch,
                 JournalSlot slot) const override {
    const Tensor y = attention_.forward(context, x, batch, slot);
    slot.index += static_cast<int64_t>(attention_.journals().size());
    return output_.join(context, output_.normalized(context, y),
                        memory_.forward(context, x, batch, slot));
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
    const auto out = static_cast<double>(output_.width() * output_.hidden_size());
    return {attention.matmul + memory.matmul + 2 * out, attention.sequence + memory.sequence};
  }

 private:
  PersistentAttention attention_;
  NeuralMemory memory_;
  GatedAnswer output_;
};

nlohmann::json complete_titans_mag(ConfigReader reader, const LayerContext& context) {
  nlohmann::json config = complete_memory_and_window(reader, context);
  complete_gated_answer(reader, config);
  reader.finish();
  return config;
}

}  // namespace

MixerType titans_mag_mixer_type() {
  return {"titans_mag", "a sliding window gated by a neural memory, with persistent memory (MAG)",
          "arXiv 2501.00663", complete_titans_mag, create_mixer<TitansMagMixer>};
}

}  // namespace pronghorn
