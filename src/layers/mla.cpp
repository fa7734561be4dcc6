// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): keys and values of all
// heads come from one narrow vector per token, which is all that is kept of it beside one key for
// the rotary positions that the heads share; and DeepSeek sparse attention (arXiv 2512.02556,
// section 2.1), the same over the tokens that an indexer chooses. Parameter names are near those of
// the published checkpoints.
#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "layers/both_ways.h"
#include "layers/indexer.h"
#include "layers/layers.h"
#include "layers/rope_config.h"
#include "layers/toolbox.h"
#include "ops/attention.h"
#include "ops/kept_states.h"
#include "ops/linear.h"
#include "ops/linear_maps.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

struct MlaConfig {
  int64_t heads = 0, query_rank = 0, latent = 0, head_dim = 0, rope_dim = 0, value_dim = 0;
  bool has_rope = false, bias = false;
  RopeConfig rope;
  double scale = 0, norm_epsilon = 0;
  bool sparse = false;  // an indexer chooses keys
  IndexerConfig indexer;

  const RopeConfig* positions() const { return has_rope ? &rope : nullptr; }

  void fields(ConfigFields& f, const LayerContext& context) {
    constexpr double kMostScale = 1e4;
    f.integer("heads", heads, kRequired, 1, limits::kHeads, "heads");
    f.check(f.has("head_dim") || context.hidden_size >= heads, "heads", "{} heads of a width of {}",
            heads, context.hidden_size);
    f.integer("head_dim", head_dim,
              {std::max<int64_t>(1, context.hidden_size / heads), "hidden_size / heads"}, 1,
              limits::kHeadDim, "of queries and keys, the part that has no positions");
    f.integer("rope_dim", rope_dim, {(head_dim / 2 + 1) / 2 * 2, "head_dim / 2, made even"}, 1,
              limits::kHeadDim, "of queries and keys, the part that has; its key is shared");
    f.integer("value_dim", value_dim, {head_dim, "`head_dim`"}, 1, limits::kHeadDim,
              "of a head's values");
    f.integer("latent", latent, {4 * head_dim, "4 x head_dim"}, 1, limits::kWidth,
              "width of the vector that keys and values come from");
    f.integer("query_rank", query_rank, 0, 0, limits::kWidth,
              "width between the two projections that make queries; 0: there is one");
    has_rope = f.object(
        "rope", [&](ConfigFields& inner) { rope.fields(inner, rope_dim); },
        "rotary positions of the `rope_dim` part, an object as attention's; omitted: none");
    f.number("scale", scale, {0.0, "1 / sqrt(head_dim + rope_dim)"}, 0, kMostScale,
             "of the scores");
    f.number("norm_epsilon", norm_epsilon, 1e-6, 0, 1, "of the norms of the narrow vectors");
    f.boolean("bias", bias, false,
              "on the projections from and to the stream, queries without "
              "`query_rank` excepted");
    sparse = f.type() == "dsa";
    if (sparse) indexer.fields(f, positions());
  }
};

// Two forms of the same numbers, which differ by rounding. Absorbed: the matrices that would widen
// a latent vector are applied to queries and outputs instead, so that attention reads latent
// vectors as they are kept. Expanded: keys and values are made, which takes fewer operations where
// many rows look at them. Both keep the same journal.
class MlaMixer final : public Mixer, public SeesBothWays {
 public:
  using Config = MlaConfig;

  MlaMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
           const StateScope& states)
      : config_(config), norm_epsilon_(static_cast<float>(config.norm_epsilon)) {
    const int64_t heads = config.heads, width = config.head_dim + config.rope_dim;
    expanded_.heads = expanded_.kv_heads = absorbed_.heads = heads;
    expanded_.head_dim = width;
    expanded_.value_dim = config.value_dim;
    absorbed_.kv_heads = 1;
    absorbed_.head_dim = config.latent + config.rope_dim;
    absorbed_.value_dim = config.latent;
    absorbed_.value_in_key = true;
    const double scale =
        config.scale > 0 ? config.scale : 1 / std::sqrt(static_cast<double>(width));
    expanded_.scale = absorbed_.scale = static_cast<float>(scale);
    if (config.has_rope) angles_ = absorbed_.angles = config.rope.angles();
    absorbed_.rope_begin = config.latent;
    make_parameters(context, scope);
    JournalShape latents = attention_journal(absorbed_);
    if (config.sparse) latents.key_width = 0;  // which rows are looked at is decided here
    latents_ = states.add(std::move(latents));
    if (config.sparse) {
      const int64_t from = config.query_rank > 0 ? config.query_rank : context.hidden_size;
      indexer_ = Indexer(config.indexer, from, config.positions(), context, scope.child("indexer"),
                         states);
    }
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    Projected in;
    in.x = x;
    in.from = x;
    Tensor kv;
    if (q_a_proj_.defined()) {
      const auto [narrow, latent] =
          linear_maps(context, x, {{&q_a_proj_, &q_a_bias_}, {&kv_a_proj_, &kv_a_bias_}});
      in.from = rms_norm(context, narrow, q_norm_, norm_epsilon_);
      const auto [q, q_rope] = linear_maps(context, in.from, {{&q_nope_proj_}, {&q_rope_proj_}});
      in.q = q;
      in.q_rope = turned(input, q_rope);
      kv = latent;
    } else {
      const auto [q, q_rope, latent] =
          linear_maps(context, x, {{&q_nope_proj_}, {&q_rope_proj_}, {&kv_a_proj_, &kv_a_bias_}});
      in.q = q;
      in.q_rope = turned(input, q_rope);
      kv = latent;
    }
    in.latent = rms_norm(context, kv.column_slice(0, config_.latent), kv_norm_, norm_epsilon_);
    in.k_rope = turned(input, kv.column_slice(config_.latent, config_.rope_dim));
    return linear(context, attended(input, in), o_proj_, o_bias_);
  }

  // In the absorbed form, as tokens are decoded.
  double sequence_cost(double context) const override {
    double seen = context, choice = 0;
    if (config_.sparse) {
      seen = std::min(context, static_cast<double>(config_.indexer.top));
      choice = indexer_.sequence_cost(context);
    }
    return choice +
           seen * static_cast<double>(config_.heads * (4 * config_.latent + 2 * config_.rope_dim));
  }

  int64_t context_limit() const override { return pronghorn::context_limit(angles_); }
  // An indexer chooses among earlier tokens.
  bool sees_both_ways() const override { return !config_.sparse; }

 private:
  struct Projected {
    Tensor x, from;  // the layer's input, and what queries are made of
    Tensor q, q_rope, latent, k_rope;
  };

  void make_parameters(const LayerContext& context, const ParameterScope& scope) {
    const int64_t d = context.hidden_size, heads = config_.heads;
    const Initializer in = projection_initializer(context);
    const Initializer zero = initializers::constant(0), one = initializers::constant(1);
    int64_t from = d;
    if (config_.query_rank > 0) {
      from = config_.query_rank;
      q_a_proj_ = scope.matrix("q_a_proj.weight", from, d, in);
      if (config_.bias) q_a_bias_ = scope.tensor("q_a_proj.bias", {from}, zero);
      q_norm_ = scope.tensor("q_a_layernorm.weight", {from}, one);
    }
    q_nope_proj_ = scope.matrix("q_nope_proj.weight", heads * config_.head_dim, from, in);
    q_rope_proj_ = scope.matrix("q_rope_proj.weight", heads * config_.rope_dim, from, in);
    kv_a_proj_ = scope.matrix("kv_a_proj.weight", config_.latent + config_.rope_dim, d, in);
    if (config_.bias) {
      kv_a_bias_ = scope.tensor("kv_a_proj.bias", {config_.latent + config_.rope_dim}, zero);
    }
    kv_norm_ = scope.tensor("kv_a_layernorm.weight", {config_.latent}, one);
    for (int64_t head = 0; head < heads; ++head) {
      const std::string end = std::to_string(head) + ".weight";
      k_b_proj_.push_back(scope.matrix("k_b_proj." + end, config_.latent, config_.head_dim, in));
      v_b_proj_.push_back(scope.matrix("v_b_proj." + end, config_.value_dim, config_.latent, in));
    }
    o_proj_ =
        scope.matrix("o_proj.weight", d, heads * config_.value_dim, residual_initializer(context));
    if (config_.bias) o_bias_ = scope.tensor("o_proj.bias", {d}, zero);
  }

  // Where rows must be exact there is one form; and single keys are gathered as latent vectors.
  Tensor attended(const LayerInput& input, const Projected& in) const {
    if (input.context.exact || (config_.sparse && input.context.tape == nullptr)) {
      return absorbed(input, in);
    }
    const auto all = [&](const auto& is_so) {
      return std::ranges::all_of(input.batch.segments(), is_so);
    };
    if (all([](const Segment& segment) { return segment.state == nullptr; })) {
      return expanded(input, in);
    }
    const bool is_cheaper = input.context.tape == nullptr && all([&](const Segment& segment) {
                              return is_cheaper_expanded(segment);
                            });
    return is_cheaper ? expanded_with_earlier(input, in) : absorbed(input, in);
  }

  // Whether a long segment of a sequence that is kept takes fewer operations if keys and values are
  // made of all that its rows see, the rows of earlier segments included.
  bool is_cheaper_expanded(const Segment& segment) const {
    const std::optional<int64_t> before = rows_before(segment, latents_);
    if (!before) return false;
    const auto rows = static_cast<double>(segment.length), held = static_cast<double>(*before);
    const double pairs = rows * (held + (rows + 1) / 2);
    const auto latent = static_cast<double>(config_.latent);
    const auto widths = static_cast<double>(config_.head_dim + config_.value_dim);
    return pairs * (2 * latent - widths) > held * latent * widths;
  }

  Tensor turned(const LayerInput& input, const Tensor& x) const {
    return pronghorn::turned(input, x, config_.rope_dim, angles_);
  }

  struct Heads {
    int64_t begin = 0, end = 0;
  };
  Heads all_heads() const { return {0, config_.heads}; }

  // Columns of head `head` among heads of equal width.
  Tensor head_of(const Tensor& x, int64_t head) const {
    const int64_t width = x.columns() / config_.heads;
    return x.column_slice(head * width, width);
  }

  // part(h) for each of the heads side by side, `between` after each of them.
  template <typename Part, typename Between>
  Tensor by_head(const Context& context, const Heads& heads, const Part& part,
                 const Between& between) const {
    std::vector<Tensor> parts;
    for (int64_t head = heads.begin; head < heads.end; ++head) {
      parts.push_back(part(head));
      if (const Tensor after = between(head); after.defined()) parts.push_back(after);
    }
    return concatenate_columns(context, parts);
  }

  Tensor absorbed(const LayerInput& input, const Projected& in) const {
    const Context& context = input.context;
    const auto weight = [](const std::vector<Weight>& weights, int64_t head) -> const Weight& {
      return weights[static_cast<size_t>(head)];
    };
    const Tensor q = by_head(
        context, all_heads(),
        [&](int64_t h) { return linear(context, head_of(in.q, h), weight(k_b_proj_, h)); },
        [&](int64_t h) { return head_of(in.q_rope, h); });
    const Tensor key[] = {in.latent, in.k_rope};
    const Tensor seen = attend(input, in, q, concatenate_columns(context, key), {}, absorbed_);
    return by_head(
        context, all_heads(),
        [&](int64_t h) { return linear(context, head_of(seen, h), weight(v_b_proj_, h)); },
        [](int64_t) { return Tensor(); });
  }

  Tensor expanded_queries(const Context& context, const Projected& in) const {
    return by_head(
        context, all_heads(), [&](int64_t h) { return head_of(in.q, h); },
        [&](int64_t h) { return head_of(in.q_rope, h); });
  }

  Tensor expanded_keys(const Context& context, const Heads& heads, const Tensor& latent,
                       const Tensor& k_rope) const {
    return by_head(
        context, heads,
        [&](int64_t h) {
          return linear_transposed(context, latent, k_b_proj_[static_cast<size_t>(h)]);
        },
        [&](int64_t) { return k_rope; });
  }

  Tensor expanded_values(const Context& context, const Heads& heads, const Tensor& latent) const {
    return by_head(
        context, heads,
        [&](int64_t h) { return linear(context, latent, v_b_proj_[static_cast<size_t>(h)]); },
        [](int64_t) { return Tensor(); });
  }

  Tensor expanded(const LayerInput& input, const Projected& in) const {
    const Context& context = input.context;
    const Tensor q = expanded_queries(context, in);
    const Tensor k = expanded_keys(context, all_heads(), in.latent, in.k_rope);
    const Tensor v = expanded_values(context, all_heads(), in.latent);
    const SequenceShards* const shards = input.batch.shards();
    if (shards == nullptr) return attend(input, in, q, k, v, expanded_);
    // What is kept are latent vectors.
    const Tensor latents[] = {in.latent, in.k_rope};
    keep_rows(*shards, latents_, latents);
    AttentionOptions options = expanded_;
    options.keys = KeyOwner::borrowed;
    return attend(input, in, q, k, v, options);
  }

  // The same where latent vectors are kept: keys and values are made of all that the journal then
  // holds, as it holds it, of some heads at a time, so that they take no more memory than those of
  // a piece of a prompt.
  Tensor expanded_with_earlier(const LayerInput& input, const Projected& in) const {
    const Context& context = input.context;
    const Tensor q = expanded_queries(context, in);
    const Tensor parts[] = {in.latent, in.k_rope};
    const Tensor appended = concatenate_columns(context, parts);
    const int64_t key_dim = expanded_.head_dim, value_dim = expanded_.value_dim;
    const Tensor seen = Tensor::empty({q.rows(), config_.heads * value_dim});
    for (const Segment& segment : input.batch.segments()) {
      const Tensor held = append_and_read(input.batch, segment, appended, latents_);
      const Tensor latent = held.column_slice(0, config_.latent);
      const Tensor k_rope = held.column_slice(config_.latent, config_.rope_dim);
      const Tensor own_q = q.row_slice(segment.first_row, segment.length);
      const Tensor own_seen = seen.row_slice(segment.first_row, segment.length);
      const int64_t most = std::max<int64_t>(1, config_.heads * kPromptPiece / held.rows());
      for (int64_t begin = 0; begin < config_.heads; begin += most) {
        const Heads heads{begin, std::min(config_.heads, begin + most)};
        AttentionOptions options = expanded_;
        options.heads = options.kv_heads = heads.end - begin;
        const Tensor part =
            attention_to_rows(own_q.column_slice(begin * key_dim, options.heads * key_dim),
                              expanded_keys(context, heads, latent, k_rope),
                              expanded_values(context, heads, latent), options);
        own_seen.column_slice(begin * value_dim, options.heads * value_dim).copy_from(part);
      }
    }
    return seen;
  }

  // To all keys, or to those that the indexer chooses; it learns from what is looked at.
  Tensor attend(const LayerInput& input, const Projected& in, const Tensor& q, const Tensor& k,
                const Tensor& v, const AttentionOptions& options) const {
    const Context& context = input.context;
    if (!config_.sparse) return attention(context, q, k, v, options, input.batch, latents_);
    const IndexerInputs index = indexer_.project(input, in.x, in.from);
    BlockLists lists;
    if (indexer_.chooses(context)) lists = indexer_.choose(input, index);
    const AttentionResult seen =
        partial_attention(context, q, k, v, options, input.batch, latents_, {}, lists);
    indexer_.learn(input, index, {q, k, seen.log_sum_exp, options, std::move(lists)});
    return seen.output;
  }

  MlaConfig config_;
  float norm_epsilon_;
  AttentionOptions absorbed_, expanded_;
  SharedAngles angles_;  // null: no positions
  JournalSlot latents_;
  Indexer indexer_;  // of sparse attention
  Weight q_a_proj_, q_nope_proj_, q_rope_proj_, kv_a_proj_, o_proj_;
  std::vector<Weight> k_b_proj_,
      v_b_proj_;  // of each head: [latent, head_dim], [value_dim, latent]
  Tensor q_a_bias_, q_norm_, kv_a_bias_, kv_norm_, o_bias_;
};

}  // namespace

MixerType mla_mixer_type() {
  return mixer_type<MlaMixer>(
      "mla", "multi-head latent attention: keys and values from one narrow vector",
      "arXiv 2405.04434",
      R"({"type": "mla", "heads": 2, "head_dim": 8, "rope_dim": 4, "latent": 16, "rope": {}})");
}

MixerType dsa_mixer_type() {
  return mixer_type<MlaMixer>(
      "dsa", "DeepSeek sparse attention: latent attention to tokens that an indexer chooses",
      "arXiv 2512.02556",
      R"({"type": "dsa", "heads": 2, "head_dim": 8, "rope_dim": 4, "latent": 16, "top": 20,
          "index_heads": 2, "index_dim": 10, "rope": {}})");
}

}  // namespace pronghorn
