#include "model/forward_run.h"

#include <memory>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "model/model.h"
#include "model/prefix.h"
#include "model/recompute.h"
#include "ops/forks.h"
#include "ops/pointwise.h"
#include "ops/segment_mean.h"
#include "ops/subsample.h"
#include "tensor/sequence_shards.h"

namespace pronghorn {
namespace {

// Runs a block whose rows may be pieces of sequences: an error then says which block it was.
template <typename Forward>
Stream in_layer(int64_t layer, const CheckedBatch& batch, const Forward& forward) {
  if (batch.shards() == nullptr) return forward();
  try {
    return forward();
  } catch (const Error& error) {
    throw Error(fmt::format("layers.{}", layer), error.what());
  }
}

void check_forks(const Model& model) {
  constexpr const char* kWhere = "batch";
  require(model.config().span_count() == 0 && model.config().prefix_tokens == 0, kWhere,
          "segments go on from others, in a model with spans or a prefix");
  const std::shared_ptr<const StateLayout> layout = model.layout();
  for (const std::vector<JournalShape>& layer : layout->layers) {
    for (const JournalShape& shape : layer) {
      require(shape.forks, kWhere, "segments go on from others, which '{}' cannot", shape.name);
    }
  }
}

// outer: rows of the whole batch that are in the span around this one; null: there is none.
SpanTrace traced(int64_t number, const Subsample::Span& span, const std::vector<int32_t>* outer) {
  SpanTrace trace;
  trace.span = number;
  for (int64_t row = 0; row < span.outer.rows(); ++row) {
    trace.rows.push_back(outer == nullptr ? static_cast<int32_t>(row)
                                          : (*outer)[static_cast<size_t>(row)]);
    trace.scores.push_back(*span.choice.scores.row(row));
  }
  return trace;
}

}  // namespace

Context forward_context(const Context& asked, const CheckedBatch& batch) {
  Context context = asked;
  // Pieces of sequences are computed as the sequences would be.
  const CheckedBatch& whole = batch.shards() != nullptr ? batch.shards()->whole() : batch;
  context.exact = asked.exact && whole.needs_exact_rows();
  return context;
}

void count_rows(const CheckedBatch& batch) {
  for (const Segment& segment : batch.segments()) {
    const bool adds = segment.parents.empty() && segment.mask != Mask::replace;
    if (segment.state != nullptr && adds) segment.state->advance(segment.length);
  }
}

ForwardRun::ForwardRun(const Model& model, const Context& asked, const CheckedBatch& batch,
                       const ForwardObserver& observer)
    : model_(model), context_(forward_context(asked, batch)), observer_(observer) {
  if (has_forks(batch)) check_forks(model);
  const Tensor rows = model_.embedded(context_, batch);
  const int64_t prefix_tokens = model_.config().prefix_tokens;
  if (prefix_tokens == 0) {
    begin(batch, rows);
    return;
  }
  Tensor prefix;
  if (wants_prefix(batch)) {
    std::vector<int32_t> all(static_cast<size_t>(prefix_tokens));
    std::iota(all.begin(), all.end(), 0);
    prefix = embedding(context_, model_.prefix_, all);
    read_prefix(asked, batch, prefix);
  }
  PrefixedBatch prefixed = with_prefix(context_, batch, prefix_tokens, prefix, rows);
  own_ = std::move(prefixed.rows);
  prefixed_.emplace(std::move(prefixed.batch));
  begin(*prefixed_, prefixed_->embeddings());
}

ForwardRun::ForwardRun(const Model& model, const Context& context, const CheckedBatch& batch,
                       const Tensor& rows)
    : model_(model), context_(context) {
  begin(batch, rows);
}

// One after another, and always alone: the bits of a prefix do not depend on the batch.
void ForwardRun::read_prefix(const Context& asked, const CheckedBatch& batch,
                             const Tensor& prefix) const {
  for (const Segment& segment : batch.segments()) {
    if (segment.state == nullptr || segment.length == 0 || segment.state->has_begun()) continue;
    const Batch alone = prefix_alone(*segment.state, prefix);
    const CheckedBatch checked(alone);
    ForwardRun run(model_, forward_context(asked, checked), checked, prefix);
    while (run.advance()) {
    }
    run.finish();
  }
}

void ForwardRun::begin(const CheckedBatch& batch, const Tensor& rows) {
  whole_batch_ = &batch;
  whole_.emplace(batch.rows(), HandedOut{.losses = context_.tape != nullptr && observer_.on_loss,
                                         .loads = static_cast<bool>(observer_.on_load)});
  stream_ = {rows, {}};
  if (model_.config().has_sides()) whole_->set(Side::kEmbeddings, stream_.sum);
}

bool ForwardRun::advance() {
  const std::vector<PatternStep>& steps = model_.config().steps;
  while (!ended_ && step_ < steps.size()) {
    switch (steps[step_].kind) {
      case PatternStep::Kind::open:
        enter_span();
        ++step_;
        break;
      case PatternStep::Kind::close:
        leave_span();
        ++step_;
        break;
      case PatternStep::Kind::block:
        if (batch().rows() > 0) {
          run_part();
          return true;
        }
        ++block_;
        ++step_;
        break;
    }
  }
  return false;
}

void ForwardRun::run_part() {
  const Block& block = *model_.blocks()[block_];
  const auto layer = static_cast<int64_t>(block_);
  const LayerInput input{context_, batch(), carry()};
  MixersSeen seen;
  if (observer_.on_mixers) {
    seen = [this, layer](const Tensor& given, const Tensor& gave) {
      observer_.on_mixers({layer, given, gave});
    };
  }
  const bool recomputes = model_.config().recompute && context_.tape != nullptr;
  stream_ = in_layer(layer, batch(), [&] {
    if (recomputes) return recomputed(block, input, stream_);
    if (half_) return block.second_part(input, stream_);
    return block.has_two_parts() ? block.first_part(input, stream_, seen)
                                 : block.forward(input, stream_, seen);
  });
  half_ = !half_ && !recomputes && block.has_two_parts();
  if (half_) return;
  ++block_;
  ++step_;
  ended_ = !observe();
}

bool ForwardRun::observe() {
  if (!observer_.on_block) return true;
  const int64_t span = open_.empty() ? -1 : open_.back().number;
  const auto layers = static_cast<int64_t>(block_);
  if (observer_.on_block({layers, span, context_, stream_, model_.norm_, own_})) return true;
  model_.check_exit(layers, "early exit");
  return false;
}

void ForwardRun::enter_span() {
  const int64_t number = next_span_++;
  const Subsample& layer = model_.spans_[static_cast<size_t>(number)];
  Subsample::Span span = layer.enter({context_, batch(), carry()}, stream_.value(context_));
  std::vector<int32_t> inner_rows;
  if (observer_.on_span) {
    const SpanTrace trace = traced(number, span, open_.empty() ? nullptr : &open_.back().rows);
    for (const int32_t row : span.choice.selection.rows) {
      inner_rows.push_back(trace.rows[static_cast<size_t>(row)]);
    }
    observer_.on_span(trace);
  }
  stream_ = {span.inner, {}};
  Carry inner = layer.carries() ? carry().select(context_, span.choice.selection.rows)
                                : Carry(span.batch.rows(), carry().wanted());
  open_.push_back({layer, number, std::move(span), std::move(inner), std::move(inner_rows)});
}

void ForwardRun::leave_span() {
  if (model_.config().subsample.merges()) return;  // its rows stay merged
  const OpenSpan ended = std::move(open_.back());
  open_.pop_back();
  carry().take(ended.carry);
  stream_ = {ended.layer.leave(context_, batch(), ended.span, stream_.value(context_)), {}};
}

Tensor ForwardRun::finish() {
  Tensor hidden = normalized(model_.norm_, context_, stream_);
  for (const OpenSpan& stage : open_) whole_->take(stage.carry);
  // A row of each image is asked for what its merged patches have come to.
  if (!open_.empty()) {
    hidden = segment_mean(context_, hidden, open_.back().span.batch, *whole_batch_);
  }
  for (const LayerLoss& loss : whole_->losses()) observer_.on_loss(loss);
  for (const ExpertLoad& load : whole_->loads()) observer_.on_load(load);
  count_rows(*whole_batch_);
  if (const SequenceShards* shards = whole_batch_->shards()) shards->advance_states();
  return own_.empty() ? hidden : gather_rows(context_, hidden, own_);
}

}  // namespace pronghorn
