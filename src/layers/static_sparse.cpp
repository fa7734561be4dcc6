// Attention whose tokens look at earlier ones by where they are: Longformer (Beltagy et al., arXiv
// 2004.05150) and BigBird (Zaheer et al., arXiv 2007.14062), in the causal form of language models;
// Longformer also both ways, with global tokens that have projections of their own.
#include <algorithm>
#include <string>

#include "backend/attention.h"
#include "base/random.h"
#include "layers/both_ways.h"
#include "layers/layers.h"
#include "layers/rope_config.h"
#include "layers/toolbox.h"
#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/linear_maps.h"
#include "ops/pointwise.h"
#include "ops/static_lists.h"

namespace pronghorn {
namespace {

struct StaticSparseConfig {
  HeadsConfig heads;
  int64_t kv_heads = 0;
  StaticPattern pattern;
  bool has_rope = false, both_ways = false;
  RopeConfig rope;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "query heads", "width of a head");
    read_kv_heads(f, heads.heads, kv_heads);
    if (f.type() == "bigbird") {
      bigbird_fields(f, context);
    } else {
      longformer_fields(f);
    }
    has_rope = f.object(
        "rope", [&](ConfigFields& inner) { rope.fields(inner, heads.head_dim); },
        "rotary positions, an object as attention's; omitted: none");
  }

  void longformer_fields(ConfigFields& f) {
    constexpr int64_t kMost = 1 << 20;
    f.integer("window", pattern.window, 512, 1, kMost,
              "tokens that a token sees, itself and those before it");
    f.integer("global", pattern.first, 0, 0, kMost,
              "first tokens of a sequence, which all that follow see");
    f.boolean("both_ways", both_ways, false,
              "tokens see as many after them, too, and the first ones the whole text, by "
              "projections of their own: in models that fill in masked tokens, and of images");
    nlohmann::json list;
    f.json("dilations", list, nullptr, "1 for each",
           "of the window, for each key-value head: a list; d: every d-th token");
    pattern.dilations.assign(static_cast<size_t>(kv_heads), 1);
    if (list.is_null()) return;
    f.check(list.is_array() && std::ssize(list) == kv_heads, "dilations",
            "is not a list of {} numbers", kv_heads);
    for (size_t i = 0; i < list.size(); ++i) {
      f.check(list[i].is_number_integer() && list[i] >= 1 && list[i] <= kMost, "dilations",
              "has something other than whole numbers from 1 to {}", kMost);
      pattern.dilations[i] = list[i].get<int64_t>();
    }
  }

  void bigbird_fields(ConfigFields& f, const LayerContext& context) {
    constexpr int64_t kMostBlock = 1 << 20, kMostBlocks = 1 << 12, kMostSeed = int64_t{1} << 40;
    int64_t seed = 0;
    f.integer("block", pattern.block, 64, kAttentionTile, kMostBlock,
              "tokens of a block; a multiple of 64");
    f.check(pattern.block % kAttentionTile == 0, "block", "{} is no multiple of {}", pattern.block,
            kAttentionTile);
    f.integer("window", pattern.window, 3, 1, kMostBlocks,
              "blocks that a token sees, its own and those before it");
    f.integer("global", pattern.first, 1, 0, kMostBlocks,
              "first blocks of a sequence, which all that follow see");
    f.integer("random", pattern.random, 3, 0, kMostBlocks,
              "further blocks, drawn for each block and key-value head");
    f.integer("seed", seed, 0, 0, kMostSeed, "of what is drawn, with the layer's number");
    pattern.seed = philox(static_cast<uint64_t>(seed), static_cast<uint64_t>(context.layer), 0);
    pattern.dilations.assign(static_cast<size_t>(kv_heads), 1);
  }
};

class StaticSparseMixer final : public Mixer, public SeesBothWays {
 public:
  using Config = StaticSparseConfig;

  StaticSparseMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
                    const StateScope& states)
      : pattern_(config.pattern), both_ways_(config.both_ways) {
    options_.heads = config.heads.heads;
    options_.kv_heads = config.kv_heads;
    options_.head_dim = config.heads.head_dim;
    if (config.has_rope) options_.angles = config.rope.angles();
    const int64_t q_width = options_.heads * options_.head_dim;
    const int64_t kv_width = options_.kv_heads * options_.head_dim;
    const Initializer in = projection_initializer(context);
    q_proj_ = scope.matrix("q_proj.weight", q_width, context.input_width(), in);
    k_proj_ = scope.matrix("k_proj.weight", kv_width, context.input_width(), in);
    v_proj_ = scope.matrix("v_proj.weight", kv_width, context.input_width(), in);
    o_proj_ =
        scope.matrix("o_proj.weight", context.hidden_size, q_width, residual_initializer(context));
    if (both_ways_) {
      if (pattern_.first == 0) return;
      q_global_proj_ = scope.matrix("q_global_proj.weight", q_width, context.input_width(), in);
      k_global_proj_ = scope.matrix("k_global_proj.weight", kv_width, context.input_width(), in);
      v_global_proj_ = scope.matrix("v_global_proj.weight", kv_width, context.input_width(), in);
      return;
    }
    JournalShape rows = attention_journal(options_);
    rows.key_width = 0;  // which rows are looked at is decided here
    rows_ = states.add(std::move(rows));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const auto [q, k, v] = linear_maps(context, x, {{&q_proj_}, {&k_proj_}, {&v_proj_}});
    const BlockLists lists = both_ways_ ? both_ways_lists(pattern_, input.batch)
                                        : static_lists(pattern_, input.batch, rows_);
    Tensor seen = attention(context, turned(input, q), turned(input, k), v, options_, input.batch,
                            rows_, {}, lists);
    // Where tokens see something in one of the two, they see nothing in the other, which is 0.
    if (both_ways_ && pattern_.first > 0) seen = add(context, seen, seen_by_first(input, x));
    return linear(context, seen, o_proj_);
  }

  double sequence_cost(double context) const override {
    const int64_t ahead = both_ways_ ? pattern_.window - 1 : 0;
    const double seen =
        std::min(context, static_cast<double>((pattern_.width() + ahead) * pattern_.block));
    return 4 * seen * static_cast<double>(options_.heads * options_.head_dim);
  }

  int64_t context_limit() const override { return pronghorn::context_limit(options_.angles); }

  bool sees_both_ways() const override { return both_ways_; }
  bool keeps_keys() const override { return false; }

 private:
  // What the first tokens see of the whole text.
  Tensor seen_by_first(const LayerInput& input, const Tensor& x) const {
    const Context& context = input.context;
    const auto [q, k, v] =
        linear_maps(context, x, {{&q_global_proj_}, {&k_global_proj_}, {&v_global_proj_}});
    return attention(context, turned(input, q), turned(input, k), v, options_, input.batch, rows_,
                     {}, global_lists(pattern_.first, input.batch));
  }

  Tensor turned(const LayerInput& input, const Tensor& heads) const {
    return pronghorn::turned(input, heads, options_.head_dim, options_.angles);
  }

  StaticPattern pattern_;
  bool both_ways_;
  AttentionOptions options_;
  JournalSlot rows_;
  Weight q_proj_, k_proj_, v_proj_, o_proj_;
  Weight q_global_proj_, k_global_proj_, v_global_proj_;  // of the first tokens, both ways
};

}  // namespace

MixerType longformer_mixer_type() {
  return mixer_type<StaticSparseMixer>(
      "longformer", "windows with gaps, and the first tokens", "arXiv 2004.05150",
      R"({"type": "longformer", "heads": 4, "kv_heads": 2, "head_dim": 6, "window": 11, "global": 3,
          "dilations": [1, 3], "rope": {}})");
}

MixerType bigbird_mixer_type() {
  return mixer_type<StaticSparseMixer>(
      "bigbird", "a window of blocks, the first ones, and some drawn at random", "arXiv 2007.14062",
      R"({"type": "bigbird", "heads": 4, "kv_heads": 2, "head_dim": 6, "window": 1, "random": 1,
          "rope": {}})");
}

}  // namespace pronghorn
