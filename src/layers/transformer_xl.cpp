// Transformer-XL (Dai et al., arXiv 1901.02860): attention that sees a memory of earlier tokens, to
// whose hidden states no gradient goes, and knows distances instead of positions.
#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "layers/layers.h"
#include "layers/toolbox.h"
#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/linear_maps.h"
#include "ops/pointwise.h"
#include "ops/rope.h"

namespace pronghorn {
namespace {

struct TransformerXlConfig {
  HeadsConfig heads;
  int64_t memory = 0, segment = 0, position_width = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "heads", "width of a head");
    f.integer("memory", memory, 512, 1, limits::kWindow,
              "tokens that a token sees besides itself, those before it");
    f.integer("segment", segment, 0, 0, limits::kWindow,
              "tokens after whose multiples a token sends no gradient to the hidden states of "
              "those before; 0: it does to all");
    f.check(segment == 0 || context.prefix == 0, "segment", "{} beside learned rows before a text",
            segment);
    f.integer("position_width", position_width, {context.hidden_size, "hidden_size"}, 2,
              limits::kWidth, "numbers of a distance, sines and cosines; even");
    f.check(position_width % 2 == 0, "position_width", "{} is odd", position_width);
  }
};

// The score of two tokens (the paper's section 3.3), with sines and cosines r of their distance:
//   s_ij = (q_i + u) . k_j + (q_i + v) . W r_(i-j),  r_t = [cos(t w), -sin(t w)]
// Of these the second part is a product, too: W^T (q_i + v), turned to position i as rotary
// positions turn it, and the cosines and sines of position j. So one attention has both, to keys
// with j's place behind the head's own numbers.
class TransformerXlMixer final : public Mixer {
 public:
  using Config = TransformerXlConfig;

  TransformerXlMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
                     const StateScope& states)
      : head_dim_(config.heads.head_dim),
        position_width_(config.position_width),
        segment_(config.segment),
        angles_(rotary_angles(kRopeTheta, config.position_width)) {
    window_.heads = window_.kv_heads = config.heads.heads;
    window_.head_dim = head_dim_ + position_width_;
    window_.value_dim = head_dim_;
    window_.scale = 1 / std::sqrt(static_cast<float>(head_dim_));
    window_.window = config.memory + 1;
    window_.prefix = context.prefix;
    const int64_t width = window_.heads * head_dim_, in_width = context.input_width();
    const Initializer in = projection_initializer(context), zero = initializers::constant(0);
    q_proj_ = scope.matrix("q_proj.weight", width, in_width, in);
    k_proj_ = scope.matrix("k_proj.weight", width, in_width, in);
    v_proj_ = scope.matrix("v_proj.weight", width, in_width, in);
    for (int64_t head = 0; head < window_.heads; ++head) {
      r_proj_.push_back(
          scope.matrix(fmt::format("r_proj.{}.weight", head), position_width_, head_dim_, in));
    }
    u_ = scope.tensor("u", {width}, zero);
    v_ = scope.tensor("v", {width}, zero);
    o_proj_ =
        scope.matrix("o_proj.weight", context.hidden_size, width, residual_initializer(context));
    rows_ = states.add(attention_journal(window_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const CheckedBatch& batch = input.batch;
    const auto [q, k, v] = linear_maps(context, x, {{&q_proj_}, {&k_proj_}, {&v_proj_}});
    const Tensor to_places = add_bias(context, q, v_);
    const Tensor queries = by_head(context, add_bias(context, q, u_), [&](int64_t head) {
      const Tensor part = to_places.column_slice(head * head_dim_, head_dim_);
      return turned(input, linear(context, part, r_proj_[static_cast<size_t>(head)]));
    });
    const Tensor places = places_of(input);
    const auto keys = [&](const Tensor& own) {
      return by_head(context, own, [&](int64_t) { return places; });
    };
    if (!stops_gradients(input)) {
      const Tensor seen = attention(context, queries, keys(k), v, window_, batch, rows_);
      return linear(context, seen, o_proj_);
    }
    // The same in two parts: tokens of the same segment, and earlier ones, whose hidden states are
    // constants.
    const Tensor constant = x.detach();
    const auto [old_k, old_v] = linear_maps(context, constant, {{&k_proj_}, {&v_proj_}});
    AttentionOptions own = window_;
    own.segment = segment_;
    AttentionOptions earlier = own;
    earlier.earlier = true;
    // Where there is no earlier token that part weighs nothing.
    constexpr float kNothing = -1e30f;
    const std::vector<float> nothing(static_cast<size_t>(window_.heads), kNothing);
    const AttentionResult parts[] = {
        partial_attention(context, queries, keys(k), v, own, batch, rows_),
        partial_attention(context, queries, keys(old_k), old_v, earlier, batch, rows_,
                          Tensor::from(nothing, {window_.heads}))};
    return linear(context, merge_attention(context, queries, parts, {}, {}, window_), o_proj_);
  }

  double sequence_cost(double context) const override {
    const auto widths = static_cast<double>(window_.heads * (window_.head_dim + head_dim_));
    return 2 * rows_seen(window_, context) * widths;
  }

 private:
  // Whole texts whose forward may be one of training.
  bool stops_gradients(const LayerInput& input) const {
    const bool whole = std::ranges::all_of(
        input.batch.segments(), [](const Segment& each) { return each.state == nullptr; });
    return segment_ > 0 && whole && (input.context.tape != nullptr || !input.context.exact);
  }

  Tensor turned(const LayerInput& input, const Tensor& x) const {
    return rope(input.context, x, input.batch.positions(), position_width_, angles_);
  }

  // [rows, position_width]: the cosines and sines of each position.
  Tensor places_of(const LayerInput& input) const {
    const auto half = static_cast<size_t>(position_width_ / 2);
    std::vector<float> first;
    for (int64_t row = 0; row < input.batch.rows(); ++row) {
      first.insert(first.end(), half, 1.0f);
      first.insert(first.end(), half, 0.0f);
    }
    return turned(input, Tensor::from(first, {input.batch.rows(), position_width_}));
  }

  // Each head's columns of x with part(head) behind them.
  Tensor by_head(const Context& context, const Tensor& x,
                 const std::function<Tensor(int64_t head)>& part) const {
    std::vector<Tensor> parts;
    for (int64_t head = 0; head < window_.heads; ++head) {
      parts.push_back(x.column_slice(head * head_dim_, head_dim_));
      parts.push_back(part(head));
    }
    return concatenate_columns(context, parts);
  }

  int64_t head_dim_, position_width_, segment_;
  AttentionOptions window_;
  SharedAngles angles_;
  JournalSlot rows_;
  Weight q_proj_, k_proj_, v_proj_, o_proj_;
  std::vector<Weight> r_proj_;  // of each head: [position_width, head_dim]
  Tensor u_, v_;                // [heads head_dim]
};

}  // namespace

MixerType transformer_xl_mixer_type() {
  return mixer_type<TransformerXlMixer>(
      "transformer_xl", "attention to a memory of earlier tokens, by distances", "arXiv 1901.02860",
      R"({"type": "transformer_xl", "heads": 2, "memory": 20, "segment": 128,
          "position_width": 10})");
}

}  // namespace pronghorn
