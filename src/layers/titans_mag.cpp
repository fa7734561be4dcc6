// Titans' memory as a gate (MAG, arXiv 2501.00663, section 4.2): a sliding window with persistent
// memory beside a neural memory. Both answers are normalised with learned weights; the memory's
// then gates the window's.
#include "layers/layers.h"
#include "layers/neural_memory.h"
#include "layers/persistent_attention.h"

namespace pronghorn {
namespace {

struct TitansMagConfig {
  MemoryAndWindowConfig parts;
  bool answer_bias = false;

  void fields(ConfigFields& f, const LayerContext& context) {
    parts.fields(f, context);
    read_answer_bias(f, parts.memory, answer_bias);
  }
};

class TitansMagMixer final : public Mixer, public HasLearningMemory {
 public:
  using Config = TitansMagConfig;

  TitansMagMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
                 const StateScope& states)
      : attention_(config.parts, context, scope.child("attention"), states),
        memory_(config.parts.memory, context, scope.child("memory"), states),
        slot_(states.add(fast_weight_memory_journal(memory_.options()))),
        output_(attention_.width(), config.answer_bias, context, scope) {}

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

}  // namespace

MixerType titans_mag_mixer_type() {
  return mixer_type<TitansMagMixer>(
      "titans_mag", "a sliding window gated by a neural memory, with persistent memory (MAG)",
      "arXiv 2501.00663", R"({"type": "titans_mag", "heads": 2})");
}

}  // namespace pronghorn
