// Native sparse attention (Yuan et al., arXiv 2502.11089): each query sees the sequence three
// times, as compressed blocks, as the blocks of tokens that matter most by these, and as a window
// of the last tokens. Gates of each head add the three up.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "layers/layers.h"
#include "layers/rope_config.h"
#include "layers/toolbox.h"
#include "ops/attention.h"
#include "ops/compressed_keys.h"
#include "ops/gates.h"
#include "ops/linear.h"
#include "ops/linear_maps.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

constexpr int64_t kMostBlock = 1 << 16, kMostBlocks = 1 << 12;

struct NsaConfig {
  HeadsConfig heads;
  int64_t kv_heads = 0;
  bool has_rope = false;
  RopeConfig rope;
  int64_t compress_block = 0, compress_stride = 0, compress_size = 0;
  int64_t select_block = 0, select_top = 0, window = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "query heads", "width of a head");
    read_kv_heads(f, heads.heads, kv_heads);
    has_rope = f.object(
        "rope", [&](ConfigFields& inner) { rope.fields(inner, heads.head_dim); },
        "rotary positions, an object as attention's; omitted: none");
    f.integer("compress_block", compress_block, 32, 1, kMostBlock,
              "tokens that a compressed key stands for");
    f.integer("compress_stride", compress_stride,
              {std::min<int64_t>(16, compress_block), "16, or `compress_block` if that is less"}, 1,
              compress_block, "tokens from one such block to the next; divides `compress_block`");
    f.check(compress_block % compress_stride == 0, "compress_stride", "{} does not divide {}",
            compress_stride, compress_block);
    f.integer("compress_size", compress_size, {heads.head_dim, "`head_dim`"}, 1, limits::kWidth,
              "width inside the network that compresses");
    f.integer("select_block", select_block, 64, 1, kMostBlock,
              "tokens of the blocks that are chosen; a divisor or a multiple of 64 that "
              "`compress_stride` divides");
    f.check((select_block % kAttentionTile == 0 || kAttentionTile % select_block == 0) &&
                select_block % compress_stride == 0,
            "select_block", "{} is no divisor or multiple of {}, or {} does not divide it",
            select_block, kAttentionTile, compress_stride);
    f.integer("select_top", select_top, 16, 3, kMostBlocks,
              "blocks that are chosen; the first one and the last two are always among them");
    f.integer("window", window, 512, 1, limits::kWindow, "tokens that the third part looks back");
  }
};

// From the rows of a block, those of one head, to one row.
struct Compressor {
  // share: of the tokens, that it is multiplied with.
  Compressor(const ParameterScope& scope, int64_t block, int64_t head_dim, int64_t size,
             double share) {
    const auto spread = [](int64_t fan_in) {
      return initializers::normal(1 / std::sqrt(static_cast<double>(fan_in)));
    };
    // The paper's embedding of places in a block is added to its rows: the same as this bias.
    up = scope.matrix("up.weight", size, block * head_dim, spread(block * head_dim), share);
    up_bias = scope.tensor("up.bias", {size}, initializers::constant(0));
    down = scope.matrix("down.weight", head_dim, size, spread(size), share);
  }

  Tensor forward(const Context& context, const Tensor& rows) const {
    return linear(context, activate(context, linear(context, rows, up, up_bias), Activation::silu),
                  down);
  }

  Weight up, down;
  Tensor up_bias;
};

class NsaMixer final : public Mixer {
 public:
  using Config = NsaConfig;

  NsaMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
           const StateScope& states)
      : config_(config),
        compress_keys_(compressor(scope.child("compress_k"), config)),
        compress_values_(compressor(scope.child("compress_v"), config)) {
    selected_.heads = config.heads.heads;
    selected_.kv_heads = config.kv_heads;
    selected_.head_dim = config.heads.head_dim;
    if (config.has_rope) selected_.angles = config.rope.angles();
    window_ = selected_;
    window_.window = config.window;
    window_.prefix = context.prefix;
    compressed_.attention = selected_;
    compressed_.block = config.compress_block;
    compressed_.stride = config.compress_stride;
    compressed_.select_block = config.select_block;
    compressed_.select_top = config.select_top;
    make_parameters(context, scope);
    JournalShape selected = attention_journal(selected_);
    selected.key_width = 0;  // which rows are looked at is decided here
    selected_rows_ = states.add(std::move(selected));
    compressed_rows_ = states.add(compressed_keys_journal(compressed_));
    window_rows_ = states.add(attention_journal(window_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const CheckedBatch& batch = input.batch;
    const auto [queries, ck, cv, sk, sv, wk, wv, g] = linear_maps(context, x,
                                                                  {{&q_proj_},
                                                                   {&parts_[0].k},
                                                                   {&parts_[0].v},
                                                                   {&parts_[1].k},
                                                                   {&parts_[1].v},
                                                                   {&parts_[2].k},
                                                                   {&parts_[2].v},
                                                                   {&g_proj_}});
    const Tensor q = turned(input, queries), raw[] = {ck, cv};
    CompressedKeys compressed(context, concatenate_columns(context, raw), compressed_, batch,
                              compressed_rows_);
    compressed.set(compress(context, compressed));
    const Tensor seen[] = {
        compressed.attend(context, q),
        attention(context, q, turned(input, sk), sv, selected_, batch, selected_rows_, {},
                  compressed.choose(q)),
        attention(context, q, turned(input, wk), wv, window_, batch, window_rows_)};
    const Tensor gates = sigmoid(context, g);
    Tensor sum;
    for (int64_t part = 0; part < 3; ++part) {
      const Tensor gated = scale_groups(context, seen[part],
                                        gates.column_slice(part * selected_.heads, selected_.heads),
                                        selected_.head_dim);
      sum = part == 0 ? gated : add(context, sum, gated);
    }
    return linear(context, sum, o_proj_);
  }

  double sequence_cost(double context) const override {
    const double width = static_cast<double>(selected_.heads * selected_.head_dim);
    const double selected = static_cast<double>(config_.select_block * config_.select_top);
    const double entries = context / static_cast<double>(config_.compress_stride);
    // Scores of entries are computed for attention and once more for the choice.
    return 4 * width * (std::min(context, selected) + rows_seen(window_, context)) +
           6 * width * entries;
  }

  int64_t context_limit() const override { return pronghorn::context_limit(selected_.angles); }

 private:
  static Compressor compressor(const ParameterScope& scope, const NsaConfig& config) {
    // Once a stride, for each key-value head.
    const double share =
        static_cast<double>(config.kv_heads) / static_cast<double>(config.compress_stride);
    return {scope, config.compress_block, config.heads.head_dim, config.compress_size, share};
  }

  void make_parameters(const LayerContext& context, const ParameterScope& scope) {
    const int64_t d = context.hidden_size, in_width = context.input_width();
    const int64_t q_width = selected_.heads * selected_.head_dim;
    const int64_t kv_width = selected_.kv_heads * selected_.head_dim;
    const Initializer in = projection_initializer(context);
    q_proj_ = scope.matrix("q_proj.weight", q_width, in_width, in);
    const char* names[] = {"compress", "select", "window"};
    for (size_t part = 0; part < 3; ++part) {
      const std::string name = names[part];
      parts_[part].k = scope.matrix(name + "_k_proj.weight", kv_width, in_width, in);
      parts_[part].v = scope.matrix(name + "_v_proj.weight", kv_width, in_width, in);
    }
    g_proj_ = scope.matrix("g_proj.weight", 3 * selected_.heads, in_width, in);
    o_proj_ = scope.matrix("o_proj.weight", d, q_width, residual_initializer(context));
  }

  Tensor turned(const LayerInput& input, const Tensor& x) const {
    return pronghorn::turned(input, x, selected_.head_dim, selected_.angles);
  }

  // Keys and values of the blocks' entries. A key takes the position of its block's last row.
  Tensor compress(const Context& context, const CompressedKeys& compressed) const {
    const Tensor& rows = compressed.block_rows();
    if (!rows.defined()) return {};
    const int64_t dim = selected_.head_dim, heads = selected_.kv_heads;
    const int64_t count = std::ssize(compressed.positions()), width = config_.compress_block * dim;
    std::vector<Tensor> keys, all;
    // Rows of one head side by side: a copy, since they lie apart.
    const auto of_head = [&](int64_t head) {
      const Tensor part[] = {rows.column_slice(head * dim, dim)};
      return concatenate_columns(context, part).reshape({count, width});
    };
    for (int64_t h = 0; h < heads; ++h) {
      keys.push_back(compress_keys_.forward(context, of_head(h)));
    }
    Tensor k = concatenate_columns(context, keys);
    if (selected_.angles != nullptr) {
      k = rope(context, k, compressed.positions(), dim, selected_.angles);
    }
    all.push_back(k);
    for (int64_t h = heads; h < 2 * heads; ++h) {
      all.push_back(compress_values_.forward(context, of_head(h)));
    }
    return concatenate_columns(context, all);
  }

  NsaConfig config_;
  AttentionOptions selected_, window_;
  CompressedKeysOptions compressed_;
  JournalSlot selected_rows_, compressed_rows_, window_rows_;
  struct Part {
    Weight k, v;
  };
  Part parts_[3];  // compressed, selected, window
  Weight q_proj_, g_proj_, o_proj_;
  Compressor compress_keys_, compress_values_;
};

}  // namespace

MixerType nsa_mixer_type() {
  return mixer_type<NsaMixer>(
      "nsa", "native sparse attention: compressed, chosen and last keys", "arXiv 2502.11089",
      R"({"type": "nsa", "heads": 4, "kv_heads": 2, "head_dim": 6, "compress_block": 8,
          "compress_stride": 4, "select_block": 16, "select_top": 4, "window": 20, "rope": {}})");
}

}  // namespace pronghorn
