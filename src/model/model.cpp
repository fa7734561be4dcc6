#include "model/model.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "model/forward_run.h"
#include "model/lora.h"
#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/segment_mean.h"
#include "tensor/sequence_shards.h"

namespace pronghorn {
namespace {

int64_t residual_additions(const ModelConfig& config) {
  int64_t count = 0;
  for (const PatternStep& step : config.steps) {
    if (step.kind != PatternStep::Kind::block) continue;
    const BlockConfig& block = config.blocks.at(step.block);
    count += (block.mixers.empty() ? 0 : 1) + (block.feed_forward.is_null() ? 0 : 1);
  }
  return count;
}

// Throws Error if the blocks together have more parameters than fit into memory: each kind is
// built once without values, which takes no memory, before any number of the model is drawn; twice
// where a side's weights are shared.
void require_memory_for_blocks(const ModelConfig& config, LayerContext context, Purpose purpose) {
  std::map<char, int64_t> sizes, sharing;
  int64_t total = 0, layer = 0;
  for (const PatternStep& step : config.steps) {
    if (step.kind != PatternStep::Kind::block) continue;
    if (!sizes.contains(step.block)) {
      ParameterStore store(0, false, purpose);
      const ParameterScope scope(store, "block");
      const BlockConfig& kind = config.blocks.at(step.block);
      context.hidden_size = config.block_width(step.block);
      const Block block(kind, config, context, scope, 0);
      sizes[step.block] = sharing[step.block] = store.bytes_needed();
      if (kind.side) {
        const Block again(kind, config, context, {store, "again"}, 0, &scope);
        sharing[step.block] = store.bytes_needed() - sizes[step.block];
      }
    }
    total += (config.side_owner(layer) == layer ? sizes : sharing)[step.block];
    ++layer;
    ParameterStore::require_memory(total);
  }
}

// Of patches and frames: so that numbers up to 1 become embeddings of about 1.
Initializer input_initializer(int64_t features) {
  return initializers::normal(1 / std::sqrt(static_cast<double>(features)));
}

// Throws Error unless sequences can lie on several ranks: what is done to whole sequences outside
// of layers is not done to their pieces.
void check_pieces(const ModelConfig& config) {
  const auto has_span = [](const PatternStep& step) {
    return step.kind == PatternStep::Kind::open;
  };
  const std::pair<bool, const char*> needs[] = {
      {config.image.has_value(), "of images"},
      {config.vision.has_value(), "that sees images"},
      {config.sound.has_value(), "of sound"},
      {config.diffusion.has_value(), "that fills in masked tokens"},
      {config.prefix_tokens > 0, "with rows before every sequence (prefix_tokens)"},
      {std::ranges::any_of(config.steps, has_span), "with subsampled spans"}};
  for (const auto& [is_so, what] : needs) {
    if (!is_so) continue;
    throw Error("sequence_parallel", fmt::format("a model {}, which needs whole sequences", what),
                "leave out --sequence-parallel");
  }
}

// Of what decides the state, without names of blocks, which a published family does not keep.
uint64_t fingerprint_of(const ModelConfig& config, const StateLayout& layout) {
  nlohmann::json identity = write_pronghorn_config(config);
  const nlohmann::json blocks = identity.at("blocks");
  for (const char* key : {"train", "recompute", "initializer_range", "pattern", "blocks", "mtp",
                          "max_position_embeddings", "original_max_position_embeddings"}) {
    identity.erase(key);
  }
  for (const PatternStep& step : config.steps) {
    if (step.kind != PatternStep::Kind::block) continue;
    identity["layers"].push_back(blocks.at(std::string(1, step.block)));
  }
  if (config.span_count() > 0) identity["layer_spans"] = layout.layer_spans;
  const std::string text = identity.dump();
  return XXH3_64bits(text.data(), text.size());
}

}  // namespace

Model::Model(ModelConfig config, uint64_t seed)
    : Model(std::move(config), seed, true, Purpose::training) {}

Model::Model(ModelConfig config, uint64_t seed, bool initialize, Purpose purpose)
    : config_(std::move(config)), store_(seed, initialize, purpose) {
  require(config_.vocab_size > 0, "vocab_size", "is missing from the configuration");
  LayerContext context;
  context.hidden_size = config_.hidden_size;
  context.initializer_range = config_.initializer_range;
  context.residual_scale = 1 / std::sqrt(static_cast<double>(residual_additions(config_)));
  context.norm_epsilon = config_.norm_epsilon;
  context.depth = config_.block_count();
  context.prefix = config_.prefix_tokens;
  require_memory_for_blocks(config_, context, purpose);

  const ParameterScope scope(store_, "");
  make_inputs(scope);
  std::shared_ptr<StateLayout> layout = make_blocks(context, scope);
  layout->fingerprint = fingerprint_of(config_, *layout);
  layout_ = std::move(layout);
  require(position_limit_ > config_.prefix_tokens, "prefix_tokens",
          "{} fill all of the {} positions that the model has", config_.prefix_tokens,
          position_limit_);
  // The scores are linear in what it gives, so their factor can be its own.
  norm_ = Norm(scope.child("norm"), config_.norm_style(), config_.output_size(),
               static_cast<float>(config_.logit_scale));
  head_ = config_.tie_embeddings
              ? embeddings_
              : scope.matrix("lm_head.weight", config_.vocab_size, config_.output_size(),
                             initializers::normal(config_.initializer_range));

  context.layer = context.depth;
  auto mtp_layout = std::make_shared<StateLayout>();
  for (int64_t k = 0; k < config_.mtp.heads; ++k) {
    mtp_.emplace_back(config_, context, scope.child("mtp").child(std::to_string(k)));
    mtp_layout->layers = {mtp_.back().journals()};  // the same for all
  }
  mtp_layout_ = std::move(mtp_layout);
}

void Model::make_inputs(const ParameterScope& scope) {
  const Initializer normal = initializers::normal(config_.initializer_range);
  int64_t learned_positions = config_.learned_positions;
  if (config_.image) {
    const ImageConfig& image = *config_.image;
    require(image.sized(), "image", "width, height and channels are missing");
    embeddings_ = scope.matrix("patch_embeddings.weight", config_.hidden_size, image.features(),
                               input_initializer(image.features()));
    input_bias_ =
        scope.tensor("patch_embeddings.bias", {config_.hidden_size}, initializers::constant(0));
    learned_positions = image.learned_positions ? image.rows() : 0;
    position_limit_ = image.rows();
  } else if (config_.sound) {
    const int64_t features = config_.sound->features();
    embeddings_ = scope.matrix("frame_embeddings.weight", config_.hidden_size, features,
                               input_initializer(features));
    input_bias_ =
        scope.tensor("frame_embeddings.bias", {config_.hidden_size}, initializers::constant(0));
  } else {
    embeddings_ =
        scope.matrix("embeddings.weight", config_.vocab_size, config_.hidden_size, normal);
  }
  if (config_.vision) {
    const ParameterScope projector = scope.child("mm_projector");
    projector_ = projector.matrix("weight", config_.hidden_size, config_.vision->features(),
                                  input_initializer(config_.vision->features()));
    projector_bias_ = projector.tensor("bias", {config_.hidden_size}, initializers::constant(0));
    projector_norm_ = Norm(projector.child("norm"), config_.norm_style(), config_.hidden_size);
  }
  if (config_.embedding_norm) {
    embedding_norm_ =
        Norm(scope.child("embedding_norm"), config_.norm_style(), config_.hidden_size);
  }
  if (config_.prefix_tokens > 0) {
    prefix_ = scope.matrix("prefix.weight", config_.prefix_tokens, config_.hidden_size, normal);
  }
  if (learned_positions > 0) {
    positions_ = scope.matrix("positions.weight", learned_positions, config_.hidden_size, normal);
    position_limit_ = learned_positions;
  }
}

std::shared_ptr<StateLayout> Model::make_blocks(LayerContext context, const ParameterScope& scope) {
  auto layout = std::make_shared<StateLayout>();
  layout->prefix = config_.prefix_tokens;
  std::vector<int64_t> open = {-1};    // the spans around the current place, innermost last
  std::vector<int64_t> strides = {1};  // the products of their rates
  std::vector<int64_t> widths = {config_.hidden_size};   // of their rows
  std::vector<std::vector<JournalShape>> span_journals;  // of the ends of spans
  for (const PatternStep& step : config_.steps) {
    const auto layer = static_cast<int64_t>(blocks_.size());
    const auto span = static_cast<int64_t>(spans_.size());
    switch (step.kind) {
      case PatternStep::Kind::block:
        context.layer = layer;
        context.hidden_size = widths.back();
        blocks_.push_back(make_block(config_.blocks.at(step.block), context, scope));
        position_limit_ = std::min(position_limit_, blocks_.back()->context_limit());
        layout->layers.push_back(blocks_.back()->journals());
        layout->layer_spans.push_back(open.back());
        break;
      case PatternStep::Kind::open: {
        std::vector<JournalShape> journals;
        const int64_t width = config_.subsample.width(span, widths.back());
        const SpanPlace place{span, strides.back(), width, config_.norm_style()};
        spans_.emplace_back(config_.subsample, place, widths.back(), config_.initializer_range,
                            scope.child("spans").child(std::to_string(span)),
                            StateScope(context.depth + span, journals));
        span_journals.push_back(std::move(journals));
        layout->span_parents.push_back(open.back());
        open.push_back(span);
        strides.push_back(strides.back() * config_.subsample.rate(span));
        widths.push_back(width);
        break;
      }
      case PatternStep::Kind::close:
        open.pop_back();
        strides.pop_back();
        widths.pop_back();
        break;
    }
  }
  // What their ends keep comes after the blocks, as of layers around the spans. All spans are of
  // one kind: each has some, or none has.
  for (size_t span = 0; span < span_journals.size(); ++span) {
    if (span_journals[span].empty()) continue;
    layout->layers.push_back(std::move(span_journals[span]));
    layout->layer_spans.push_back(layout->span_parents[span]);
  }
  return layout;
}

std::unique_ptr<Block> Model::make_block(const BlockConfig& block, const LayerContext& context,
                                         const ParameterScope& scope) const {
  const auto place = [&](int64_t layer) {
    return scope.child("layers").child(std::to_string(layer));
  };
  const int64_t owner = config_.side_owner(context.layer);
  const ParameterScope owner_place = place(owner);
  return std::make_unique<Block>(block, config_, context, place(context.layer), context.layer,
                                 owner == context.layer ? nullptr : &owner_place);
}

Tensor Model::embedded_tokens(const Context& context, const CheckedBatch& batch) const {
  const auto words = [&](std::span<const int32_t> tokens) {
    const Tensor rows = embedding(context, embeddings_, tokens);
    const auto factor = static_cast<float>(config_.embedding_scale);
    return factor == 1 ? rows : scale(context, rows, factor);
  };
  const Tensor& patches = batch.patches();
  if (!patches.defined()) return words(batch.tokens());
  require(config_.vision.has_value(), "batch", "patches in a model that sees no images");
  require(patches.columns() == config_.vision->features(), "batch",
          "patches {} for a model of patches of {} numbers", patches.shape(),
          config_.vision->features());
  const Tensor seen =
      projector_norm_.forward(context, linear(context, patches, projector_, projector_bias_));
  std::vector<int32_t> tokens, places;  // of each row: patches before words
  int32_t patch = 0;
  for (const int32_t token : batch.tokens()) {
    if (token == kPatch) {
      places.push_back(patch++);
    } else {
      places.push_back(static_cast<int32_t>(patches.rows() + std::ssize(tokens)));
      tokens.push_back(token);
    }
  }
  if (tokens.empty()) return seen;
  const Tensor parts[] = {seen, words(tokens)};
  return embedding(context, concatenate_rows(context, parts), places);
}

Tensor Model::embedded(const Context& context, const CheckedBatch& batch) const {
  for (const Segment& segment : batch.segments()) {
    if (segment.state == nullptr || segment.length == 0 || segment.mask == Mask::replace) continue;
    // A state counts tokens by position: truncate() and saved sessions go by it.
    const std::span<const int32_t> positions = batch.positions(segment);
    const int64_t first = segment.state->length();
    const auto [least, most] = std::minmax_element(positions.begin(), positions.end());
    require(*least == first && *most < first + segment.length, "batch",
            "positions {} to {} continue a sequence of {} tokens by {}", *least, *most, first,
            segment.length);
  }
  for (const int32_t position : batch.positions()) {
    require(position < position_limit_ - config_.prefix_tokens, "batch",
            "position {} of a model whose positions end at {}: it cannot read longer texts",
            position, position_limit_ - config_.prefix_tokens);
  }
  Tensor rows = batch.embeddings();
  if (config_.of_measurements()) {
    const char* const what = config_.image ? "patches" : "frames";
    require(rows.defined(), "batch", "tokens in place of {}", what);
    require(rows.columns() == embeddings_.in(), "batch", "rows {} of {} of {} numbers",
            rows.shape(), what, embeddings_.in());
    rows = linear(context, rows, embeddings_, input_bias_);
  } else if (!rows.defined()) {
    require(static_cast<int64_t>(batch.tokens().size()) == batch.rows(), "batch",
            "neither tokens nor embeddings for {} rows", batch.rows());
    rows = embedded_tokens(context, batch);
  }
  require(rows.columns() == config_.hidden_size, "batch", "embeddings {} for a model of width {}",
          rows.shape(), config_.hidden_size);
  if (positions_.defined()) {
    rows = add(context, rows, embedding(context, positions_, batch.positions()));
  }
  return embedding_norm_.defined() ? embedding_norm_.forward(context, rows) : rows;
}

void Model::check_exit(int64_t layers, std::string_view where) const {
  require(layers >= 1 && layers <= config_.block_count(), where, "{} layers of a model of {}",
          layers, config_.block_count());
  require(layout_->span_of(static_cast<size_t>(layers - 1)) < 0, where,
          "layer {} is inside a subsampled span, where some tokens are missing (choose one outside "
          "the parentheses)",
          layers);
  require(!config_.subsample.merges(), where,
          "layer {} has rows of another stage than the model's end", layers);
}

Tensor Model::forward(const Context& asked, const CheckedBatch& batch,
                      const ForwardObserver& observer) const {
  if (batch.shards() != nullptr) check_pieces(config_);
  if (config_.image) {
    const CheckedBatch whole = whole_images(batch, *config_.image);
    const Tensor hidden = forward_masked(asked, whole, observer);
    // Where patches were merged, it has been taken.
    const bool mean = config_.image->pool == ImageConfig::Pool::mean && !config_.subsample.merges();
    return mean ? segment_mean(asked, hidden, whole) : hidden;
  }
  if (config_.sound && config_.sound->both_ways) {
    return forward_masked(asked, whole_sounds(batch), observer);
  }
  if (!config_.diffusion) return forward_masked(asked, batch, observer);
  return forward_masked(asked, with_masks(batch, *config_.diffusion), observer);
}

Tensor Model::forward_masked(const Context& asked, const CheckedBatch& batch,
                             const ForwardObserver& observer) const {
  ForwardRun run(*this, asked, batch, observer);
  while (run.advance()) {
  }
  return run.finish();
}

Tensor Model::mtp_forward(const Context& asked, int64_t head, const Tensor& hidden,
                          const CheckedBatch& batch, const ForwardObserver& observer) const {
  require(head >= 0 && head < mtp_depth(), "mtp", "head {} of a model with {}", head, mtp_depth());
  const Context context = forward_context(asked, batch);
  const Tensor tokens = embedded(context, batch);
  Carry carry(batch.rows(), {.losses = context.tape != nullptr && observer.on_loss});
  const Tensor result =
      mtp_[static_cast<size_t>(head)].forward({context, batch, carry}, hidden, tokens);
  for (const LayerLoss& loss : carry.losses()) observer.on_loss(loss);
  count_rows(batch);
  return result;
}

Tensor Model::logits(const Context& context, const Tensor& hidden) const {
  const Tensor scores = linear(context, hidden, head_);
  const auto cap = static_cast<float>(config_.logit_soft_cap);
  return cap > 0 ? soft_cap(context, scores, cap) : scores;
}

CrossEntropy Model::cross_entropy(const Context& context, const Tensor& hidden,
                                  std::span<const int32_t> targets, double gradient_scale,
                                  double z_loss_weight, std::span<const float> weights) const {
  return linear_cross_entropy(context, hidden, head_, targets, gradient_scale, z_loss_weight,
                              static_cast<float>(config_.logit_soft_cap), weights);
}

std::unique_ptr<Model> Model::outline(ModelConfig config) {
  return std::unique_ptr<Model>(new Model(std::move(config), 0, false, Purpose::inference));
}

const std::vector<Parameter>& Model::trained() const {
  return adapter_ == nullptr ? parameters() : adapter_->parameters();
}

void Model::set_adapter(std::shared_ptr<const Adapter> adapter) {
  if (adapter_ != nullptr) {
    for (const Adapter::Part& part : adapter_->parts()) {
      parameters()[part.parameter].matrix.adapt(nullptr);
    }
  }
  adapter_ = std::move(adapter);
  if (adapter_ == nullptr) return;
  for (const Adapter::Part& part : adapter_->parts()) {
    parameters()[part.parameter].matrix.adapt(part.change);
  }
}

int64_t Model::parameter_count() const {
  return std::accumulate(
      parameters().begin(), parameters().end(), int64_t{0},
      [](int64_t sum, const Parameter& parameter) { return sum + parameter.size(); });
}

int64_t Model::active_parameter_count() const {
  double active = 0;
  for (const Parameter& parameter : parameters()) {
    active += parameter.share * static_cast<double>(parameter.size());
  }
  return std::llround(active);
}

int64_t Model::non_embedding_parameter_count() const {
  if (config_.of_measurements()) return parameter_count() - embeddings_.size();
  const int64_t table = embeddings_.size();
  return parameter_count() - (config_.tie_embeddings ? table : 2 * table);
}

}  // namespace pronghorn
