// Infini-attention (Munkhdalai et al., arXiv 2404.07143): causal attention within segments, and a
// compressive memory of the segments before, blended by a learned gate of each head.
#include <algorithm>
#include <string>

#include "base/error.h"
#include "layers/layers.h"
#include "layers/rope_config.h"
#include "layers/toolbox.h"
#include "ops/attention.h"
#include "ops/compressive_memory.h"
#include "ops/gates.h"
#include "ops/key_blocks.h"
#include "ops/linear.h"
#include "ops/linear_maps.h"
#include "ops/pointwise.h"
#include "tensor/sequence_shards.h"

namespace pronghorn {
namespace {

struct InfiniConfig {
  HeadsConfig heads;
  int64_t kv_heads = 0, segment = 0;
  bool has_rope = false;
  RopeConfig rope;
  std::string update;

  void fields(ConfigFields& f, const LayerContext& context) {
    constexpr int64_t kMostSegment = int64_t{1} << 20;  // the state counts its tokens in f32
    heads.fields(f, context, "query heads", "width of a head");
    read_kv_heads(f, heads.heads, kv_heads);
    f.integer("segment", segment, 2048, kExactStep, kMostSegment,
              "tokens that attention looks at one another in; a multiple of 16");
    f.check(segment % kExactStep == 0, "segment", "{} is no multiple of {}", segment, kExactStep);
    f.one_of("update", update, {"delta", "linear"}, "delta",
             "what a token writes: its value, less what the memory had for its key "
             "(`\"delta\"`), or as it is (`\"linear\"`)");
    has_rope = f.object(
        "rope", [&](ConfigFields& inner) { rope.fields(inner, heads.head_dim); },
        "rotary positions within segments, an object as attention's; omitted: none");
  }
};

class InfiniMixer final : public Mixer {
 public:
  using Config = InfiniConfig;

  InfiniMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
              const StateScope& states) {
    local_.heads = memory_.heads = config.heads.heads;
    local_.kv_heads = memory_.kv_heads = config.kv_heads;
    local_.head_dim = memory_.key_dim = memory_.value_dim = config.heads.head_dim;
    local_.segment = memory_.segment = config.segment;
    memory_.delta_rule = config.update == "delta";
    if (config.has_rope) local_.angles = config.rope.angles();
    const int64_t in_width = context.input_width(), heads = local_.heads;
    const int64_t q_width = heads * local_.head_dim, kv_width = local_.kv_heads * local_.head_dim;
    const Initializer in = projection_initializer(context);
    q_proj_ = scope.matrix("q_proj.weight", q_width, in_width, in);
    k_proj_ = scope.matrix("k_proj.weight", kv_width, in_width, in);
    v_proj_ = scope.matrix("v_proj.weight", kv_width, in_width, in);
    o_proj_ =
        scope.matrix("o_proj.weight", context.hidden_size, q_width, residual_initializer(context));
    beta_ = scope.tensor("beta", {heads}, initializers::constant(0));
    rows_ = states.add(attention_journal(local_));
    state_ = states.add(compressive_memory_journal(memory_));
  }

  // O = sigmoid(beta) A_mem + (1 - sigmoid(beta)) A_dot; the memory's keys have no positions.
  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const CheckedBatch& batch = input.batch;
    require_whole(batch, "infini");
    check_positions(batch);
    const auto [q, k, v] = linear_maps(context, x, {{&q_proj_}, {&k_proj_}, {&v_proj_}});
    const Tensor recalled = compressive_memory(context, q, k, v, memory_, batch, state_);
    const Tensor seen =
        attention(context, turned(input, q), turned(input, k), v, local_, batch, rows_);
    const Tensor blended = add(context, scale_columns(context, recalled, gate(context, 1)),
                               scale_columns(context, seen, gate(context, -1)));
    return linear(context, blended, o_proj_);
  }

  // Of each number of a memory: read 2, write 2, and with the delta rule read once more.
  double sequence_cost(double context) const override {
    const double seen = std::min(context, static_cast<double>(local_.segment) / 2);
    const double writes = memory_.delta_rule ? 4.0 : 2.0;
    const auto heads = static_cast<double>(local_.heads);
    const auto dim = static_cast<double>(local_.head_dim);
    return 4 * seen * heads * dim +
           (2 * heads + writes * static_cast<double>(local_.kv_heads)) * dim * (dim + 1);
  }

  int64_t context_limit() const override { return pronghorn::context_limit(local_.angles); }

 private:
  // Attention counts its segments by positions, the memory by rows: they must be the same.
  void check_positions(const CheckedBatch& batch) const {
    for (const Segment& segment : batch.segments()) {
      const int64_t before = segment.state == nullptr
                                 ? 0
                                 : segment.state->journal(state_.layer, state_.index).length();
      for (int64_t i = 0; i < segment.length; ++i) {
        const auto row = static_cast<size_t>(segment.first_row + i);
        require(batch.positions()[row] == index_in_sequence(segment, i, before), "infini",
                "position {} of row {} of a sequence: segments cannot be told where tokens are "
                "left out (use no spans and skip no positions)",
                batch.positions()[row], index_in_sequence(segment, i, before));
      }
    }
  }

  Tensor turned(const LayerInput& input, const Tensor& heads) const {
    return pronghorn::turned(input, heads, local_.head_dim, local_.angles);
  }

  // sigmoid(sign beta), for each column of the heads.
  Tensor gate(const Context& context, float sign) const {
    const Tensor beta = beta_.reshape({1, local_.heads});
    const Tensor share = sigmoid(context, scaled(context, beta, sign));
    return repeat_each(context, share.reshape({local_.heads}), local_.head_dim);
  }

  AttentionOptions local_;
  CompressiveMemoryOptions memory_;
  JournalSlot rows_, state_;
  Weight q_proj_, k_proj_, v_proj_, o_proj_;
  Tensor beta_;  // [heads]
};

}  // namespace

MixerType infini_mixer_type() {
  return mixer_type<InfiniMixer>(
      "infini", "Infini-attention: attention within segments, a compressive memory before them",
      "arXiv 2404.07143",
      R"({"type": "infini", "heads": 4, "kv_heads": 2, "head_dim": 6, "segment": 32, "rope": {}})");
}

}  // namespace pronghorn
