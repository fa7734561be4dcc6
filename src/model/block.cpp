#include "model/block.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "layers/both_ways.h"
#include "layers/scans.h"
#include "layers/span_choice.h"
#include "layers/toolbox.h"
#include "ops/pointwise.h"
#include "ops/subsample.h"

namespace pronghorn {

Tensor Stream::value(const Context& context) const {
  return delta.defined() ? add(context, sum, delta) : sum;
}

Tensor normalized(const Norm& norm, const Context& context, const Stream& stream) {
  return stream.delta.defined() ? norm.add_forward(context, stream.sum, stream.delta).second
                                : norm.forward(context, stream.sum);
}

namespace {

using NormResidual = BlockConfig::NormResidual;

// The stream with its delta added, and what a part under this norm is given of it.
std::pair<Tensor, Tensor> enter(const Context& context, const Norm& norm, const Stream& stream) {
  if (!norm.defined()) {
    const Tensor value = stream.value(context);
    return {value, value};
  }
  if (stream.delta.defined()) return norm.add_forward(context, stream.sum, stream.delta);
  return {stream.sum, norm.forward(context, stream.sum)};
}

// A mixer of a block: one that sees both ways, if the model asks for that.
std::unique_ptr<Mixer> make_mixer(const nlohmann::json& config, const ModelConfig& model,
                                  const LayerContext& context, const ParameterScope& scope,
                                  int64_t state_layer, std::vector<JournalShape>& journals) {
  const std::string name = config.at("type");
  const MixerType& type = find_mixer_type(name, "block");
  const auto own = static_cast<int64_t>(journals.size());
  std::unique_ptr<Mixer> mixer =
      type.create(config, context, scope, StateScope(state_layer, journals));
  const std::string where = fmt::format("layers.{}.mixer", context.layer);
  const bool both_ways = model.sees_both_ways();
  const int64_t block = model.diffusion ? model.diffusion->block : 0;
  if (sees_whole_texts(*mixer)) {
    require(both_ways && block == 0, where,
            "{} sees whole texts both ways: it is for models that fill in masked tokens without "
            "blocks, and for those of images and sound",
            name);
    return mixer;
  }
  if (!both_ways || sees_both_ways(*mixer)) return mixer;
  require(block == 0 || std::all_of(journals.begin() + own, journals.end(),
                                    [](const JournalShape& shape) { return shape.forks; }),
          where,
          "{} sees earlier rows only, or in a window, and cannot go on from them in several ways: "
          "it cannot see blocks of {} both ways",
          name, block);
  require(config.value("keys_to", 0) == 0 && config.value("keys_from", 0) == 0, where,
          "keys are shared in both directions");
  const Scan scan = model.image ? context.scan : Scan::both;
  const bool shared = model.image   ? model.image->shared_directions
                      : model.sound ? model.sound->shared_directions
                                    : model.diffusion->shared_directions;
  std::vector<std::unique_ptr<Mixer>> mixers;
  mixers.push_back(std::move(mixer));
  for (const ScanPass& pass : scan_passes(scan)) {
    if (pass.name.empty() || shared) continue;
    std::vector<JournalShape> no_state;
    mixers.push_back(
        type.create(config, context, scope.child(pass.name), {context.layer, no_state}));
  }
  return scanned(scan, std::move(mixers));
}

}  // namespace

Block::Block(const BlockConfig& config, const ModelConfig& model, LayerContext context,
             const ParameterScope& scope, int64_t state_layer, const ParameterScope* side_owner)
    : residual_(config.residual),
      residual_multiplier_(static_cast<float>(config.residual_multiplier)),
      norm_residual_(config.norm_residual) {
  using Norms = BlockConfig::Norms;
  context.scan = config.scan;
  const auto norm = [&](std::string_view name) {
    return Norm(scope.child(name), model.norm_style(), context.hidden_size);
  };
  const bool mixes = !config.mixers.empty();
  const bool before = config.norms == Norms::before || config.norms == Norms::both;
  const bool after = config.norms == Norms::after || config.norms == Norms::both;
  if (mixes && before) mixer_norm_ = norm("mixer_norm");
  if (mixes && after) mixer_post_norm_ = norm("mixer_post_norm");
  const double matrices_before = scope.store().matrix_size();
  const StateScope states(state_layer, journals_);
  if (config.side) {
    const ParameterScope side = scope.child("side");
    side_.emplace(*config.side, model, context,
                  side_owner == nullptr ? side : side.sharing(side_owner->child("side")), states);
  }
  const bool several = config.mixers.size() > 1;
  for (size_t i = 0; i < config.mixers.size(); ++i) {
    const nlohmann::json& mixer = config.mixers[i];
    const ParameterScope inner =
        several ? scope.child("mixers").child(std::to_string(i)) : scope.child("mixer");
    mixers_.push_back(make_mixer(mixer, model, context, inner, state_layer, journals_));
    if (several && config.merge == BlockConfig::Merge::mean_of_norms) {
      branch_norms_.emplace_back(scope.child("branch_norms").child(std::to_string(i)),
                                 model.norm_style(), context.hidden_size);
    }
  }
  if (!config.feed_forward.is_null()) {
    const bool own_input = residual_ != BlockConfig::Residual::shared;
    if (config.norms != Norms::after && own_input) ffn_norm_ = norm("ffn_norm");
    if (after) ffn_post_norm_ = norm("ffn_post_norm");
    const auto& type =
        find_feed_forward_type(config.feed_forward.at("type").get<std::string>(), "block");
    const size_t journals = journals_.size();
    feed_forward_ = type.create(config.feed_forward, context, scope.child("ffn"), states);
    require(!model.sees_both_ways() || journals_.size() == journals,
            fmt::format("layers.{}.ffn", context.layer),
            "{} looks at earlier rows, in a model that sees both ways", type.name);
  }
  matrix_size_ = scope.store().matrix_size() - matrices_before;
  if (!config.bypass_steps) return;
  bypass_steps_ = *config.bypass_steps;
  bypass_scale_ =
      scope.tensor("bypass_scale", {context.hidden_size}, initializers::constant(kBypassScale));
}

Stream Block::forward(const LayerInput& input, const Stream& stream, const MixersSeen& seen) const {
  if (!bypass_scale_.defined()) return run(input, stream, seen);
  const Context& context = input.context;
  const Tensor x = stream.value(context);
  const Tensor y = run(input, {x, {}}, seen).value(context);
  std::vector<int32_t> rows(static_cast<size_t>(x.rows()));
  std::iota(rows.begin(), rows.end(), 0);
  const Tensor scale = limited_bypass_scale(context, bypass_scale_, bypass_steps_);
  return {upsample(context, x, y, Tensor::full({x.rows(), 1}, 1), scale, rows), {}};
}

Stream Block::run(const LayerInput& input, const Stream& stream, const MixersSeen& seen) const {
  const Stream first = first_part(input, stream, seen);
  return feeds_after_mixers() ? second_part(input, first) : first;
}

bool Block::feeds_after_mixers() const {
  return !mixers_.empty() && feed_forward_ != nullptr &&
         residual_ == BlockConfig::Residual::sequential;
}

Stream Block::first_part(const LayerInput& input, const Stream& stream,
                         const MixersSeen& seen) const {
  const Context& context = input.context;
  if (mixers_.empty()) return feed(input, stream);
  const auto [stream_sum, entered] = enter_mixers(input, stream);
  const Tensor sum = base(context, stream_sum, entered, &NormResidual::mixer_stream);
  const Tensor gave = mix(input, entered);
  if (seen) seen(entered, gave);
  const Tensor mixed = addend(context, mixer_post_norm_, gave, &NormResidual::mixer_part);
  if (feed_forward_ == nullptr || feeds_after_mixers()) return {sum, mixed};
  const bool shared = residual_ == BlockConfig::Residual::shared;
  const bool two_hop = residual_ == BlockConfig::Residual::two_hop;
  const Stream seen_by_ffn = two_hop ? Stream{sum, mixed} : Stream{sum, {}};
  const Tensor inner = shared ? entered : enter(context, ffn_norm_, seen_by_ffn).second;
  const Tensor fed = addend(context, ffn_post_norm_, feed_forward_->forward(input, inner),
                            &NormResidual::ffn_part);
  return {sum, two_hop ? fed : add(context, mixed, fed)};
}

std::pair<Tensor, Tensor> Block::enter_mixers(const LayerInput& input, const Stream& stream) const {
  const Context& context = input.context;
  if (!side_) return enter(context, mixer_norm_, stream);
  const Tensor sum = stream.value(context);
  return {sum, enter(context, mixer_norm_, {sum, side_->forward(input, sum)}).second};
}

Stream Block::feed(const LayerInput& input, const Stream& stream) const {
  const auto [sum, inner] = enter(input.context, ffn_norm_, stream);
  return {base(input.context, sum, inner, &NormResidual::ffn_stream),
          addend(input.context, ffn_post_norm_, feed_forward_->forward(input, inner),
                 &NormResidual::ffn_part)};
}

Tensor Block::addend(const Context& context, const Norm& norm, const Tensor& given,
                     double NormResidual::*factor) const {
  const Tensor normed = norm.defined() ? norm.forward(context, given) : given;
  const Tensor added = scaled(context, normed, residual_multiplier_);
  if (!norm_residual_) return added;
  return scaled(context, added, static_cast<float>((*norm_residual_).*factor));
}

Tensor Block::base(const Context& context, const Tensor& sum, const Tensor& entered,
                   double NormResidual::*factor) const {
  if (!norm_residual_) return sum;
  return scaled(context, entered, static_cast<float>((*norm_residual_).*factor));
}

Tensor Block::mix(const LayerInput& input, const Tensor& x) const {
  if (mixers_.size() == 1) return mixers_.front()->forward(input, x);
  const Context& context = input.context;
  Tensor total;
  for (size_t i = 0; i < mixers_.size(); ++i) {
    Tensor branch = mixers_[i]->forward(input, x);
    if (!branch_norms_.empty()) branch = branch_norms_[i].forward(context, branch);
    total = total.defined() ? add(context, total, branch) : branch;
  }
  if (branch_norms_.empty()) return total;
  return scale(context, total, 1.0f / static_cast<float>(mixers_.size()));
}

int64_t Block::context_limit() const {
  int64_t limit = side_ ? side_->mixer().context_limit() : std::numeric_limits<int64_t>::max();
  for (const auto& mixer : mixers_) limit = std::min(limit, mixer->context_limit());
  return limit;
}

TokenCost Block::cost(double context) const {
  TokenCost total{2 * matrix_size_, 0};
  if (side_) total.sequence += side_->sequence_cost(context);
  for (const auto& mixer : mixers_) total.sequence += mixer->sequence_cost(context);
  if (feed_forward_ != nullptr) total.sequence += feed_forward_->sequence_cost(context);
  return total;
}

}  // namespace pronghorn
