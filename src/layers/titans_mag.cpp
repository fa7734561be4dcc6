// Titans' memory as a gate (MAG, arXiv 2501.00663, section 4.2): a sliding window with persistent
// memory beside a neural memory. Both answers are normalised with learned weights; the memory's
// then gates the window's.
#include "layers/layers.h"
#include "layers/neural_memory.h"
#include "layers/persistent_attention.h"

namespace pronghorn {
namespace {

class TitansMagMixer final : public Mixer, public HasLearningMemory {
 public:
  TitansMagMixer(const nlohmann::json& config, const LayerContext& context,
                 const ParameterScope& scope, const StateScope& states)
      : attention_(config, context, scope.child("attention"), states),
        memory_(config, context, scope.child("memory"), states),
        slot_(states.add(fast_weight_memory_journal(memory_.options()))),
        output_(attention_.width(), config.at("answer_bias"), context, scope) {}

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const Tensor y = attention_.forward(input, x);
    return output_.join(context, output_.normalized(context, y), memory_.forward(input, x, slot_));
  }

  LearningMemory learning_memory() const override { return {slot_, memory_.options()}; }

  double sequence_cost(double context) const override {
    return attention_.sequence_cost(context) + fast_weight_memory_cost(memory_.options());
  }

 private:
  PersistentAttention attention_;
  NeuralMemory memory_;
  JournalSlot slot_;
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
