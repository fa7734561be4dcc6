// Titans' memory as context (MAC, arXiv 2501.00663, section 4.1): attention within segments to
// persistent memory, to what the memory recalls for each token, and to the tokens; what comes out
// asks the memory again and is gated by its answer.
//
// The memory learns from the layer's input, as in titans-pytorch, and not from what attention makes
// of it (the paper's equation): so segments need not wait for each other, and one operator runs
// over the whole sequence. A token sees what is recalled for itself and those before it in its
// segment, never after.
#include <variant>

#include "layers/layers.h"
#include "layers/neural_memory.h"
#include "layers/persistent_attention.h"
#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/rope.h"

namespace pronghorn {
namespace {

struct TitansMacConfig {
  NeuralMemoryConfig memory;
  PersistentConfig attention;
  int64_t segment = 0;
  bool answer_bias = false;

  void fields(ConfigFields& f, const LayerContext& context) {
    memory.fields(f, context);
    attention.fields(f, memory.heads);
    f.integer("segment", segment, 64, kExactStep, 8 * kExactStep, "of MAC: 16, 32, 64 or 128");
    f.check(segment % kExactStep == 0 && 8 * memory.mini_batch % segment == 0, "segment",
            "{} is not 16, 32, 64 or 128, or more than 8 mini-batches of {}", segment,
            memory.mini_batch);
    read_answer_bias(f, memory, answer_bias);
  }
};

class TitansMacMixer final : public Mixer, public HasLearningMemory {
 public:
  using Config = TitansMacConfig;

  TitansMacMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
                 const StateScope& states)
      : memory_(config.memory, context, scope.child("memory"), states),
        recall_options_(memory_.options()),
        persistent_(config.attention.persistent),
        angles_(rotary_angles(config.attention.rope_theta, config.memory.heads.head_dim)),
        norm_epsilon_(context.norm_epsilon),
        output_(memory_.width(), config.answer_bias, context, scope) {
    attention_.heads = attention_.kv_heads = config.memory.heads.heads;
    attention_.head_dim = config.memory.heads.head_dim;
    attention_.segment = config.segment;
    std::get<TitansRule>(recall_options_.rule).read_interval = attention_.segment;
    const int64_t d = context.hidden_size, width = memory_.width();
    const Initializer in = projection_initializer(context);
    q_proj_ = scope.matrix("q_proj.weight", width, d, in);
    k_proj_ = scope.matrix("k_proj.weight", width, d, in);
    v_proj_ = scope.matrix("v_proj.weight", width, d, in);
    recall_norm_ = scope.tensor("recall_norm.weight", {width}, initializers::constant(1));
    recall_k_proj_ = scope.matrix("recall_k_proj.weight", width, width, in);
    recall_v_proj_ = scope.matrix("recall_v_proj.weight", width, width, in);
    if (persistent_ > 0) {
      persistent_keys_ = scope.tensor("persistent_keys", {persistent_, width}, in);
      persistent_values_ = scope.tensor("persistent_values", {persistent_, width}, in);
    }
    ask_proj_ = scope.matrix("ask_proj.weight", width, width, in);
    recall_slot_ = states.add(fast_weight_memory_journal(recall_options_));
    recalled_rows_ = states.add(attention_journal(attention_));
    token_rows_ = states.add(attention_journal(attention_));
    slot_ = states.add(fast_weight_memory_journal(memory_.options()));
  }

  // h = M(q) at the weights of the segment's start, y = attention to [P | h | S], m = M(norm(y))
  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const CheckedBatch& batch = input.batch;
    FastWeightMemoryInputs inputs = memory_.features(input, x);
    const auto turned = [&](const Tensor& heads) {
      return rope(context, heads, batch.positions(), attention_.head_dim, angles_);
    };
    const Tensor recalled =
        rms_norm(context, fast_weight_memory(context, inputs, recall_options_, batch, recall_slot_),
                 recall_norm_, norm_epsilon_);
    const Tensor q = turned(linear(context, x, q_proj_));
    const AttentionResult parts[] = {
        partial_attention(context, q, turned(linear(context, recalled, recall_k_proj_)),
                          linear(context, recalled, recall_v_proj_), attention_, batch,
                          recalled_rows_),
        partial_attention(context, q, turned(linear(context, x, k_proj_)),
                          linear(context, x, v_proj_), attention_, batch, token_rows_)};
    const Tensor y = output_.normalized(
        context,
        merge_attention(context, q, parts, persistent_keys_, persistent_values_, attention_));
    inputs.q = memory_.unit(context, linear(context, y, ask_proj_));
    return output_.join(context, y,
                        fast_weight_memory(context, inputs, memory_.options(), batch, slot_));
  }

  LearningMemory learning_memory() const override { return {slot_, memory_.options()}; }

  double sequence_cost(double) const override {
    // On average a token sees half of its segment, twice.
    const auto seen = static_cast<double>(attention_.segment + persistent_);
    return 2 * fast_weight_memory_cost(memory_.options()) +
           4 * static_cast<double>(memory_.width()) * seen;
  }

 private:
  NeuralMemory memory_;
  FastWeightMemoryOptions recall_options_;
  AttentionOptions attention_;
  JournalSlot recall_slot_, recalled_rows_, token_rows_, slot_;
  int64_t persistent_;
  SharedAngles angles_;
  float norm_epsilon_;
  Weight q_proj_, k_proj_, v_proj_, recall_k_proj_, recall_v_proj_, ask_proj_;
  Tensor recall_norm_, persistent_keys_, persistent_values_;
  GatedAnswer output_;
};

}  // namespace

MixerType titans_mac_mixer_type() {
  return mixer_type<TitansMacMixer>(
      "titans_mac", "attention in segments to tokens and to what a neural memory recalls (MAC)",
      "arXiv 2501.00663", R"({"type": "titans_mac", "heads": 2})");
}

}  // namespace pronghorn
