#include "layers/subsample.h"

#include <utility>
#include <vector>

#include "base/error.h"
#include "ops/subsample.h"

namespace pronghorn {

Subsample::Subsample(const SubsampleConfig& config, const SpanPlace& place, int64_t hidden_size,
                     double initializer_range, const ParameterScope& scope,
                     const StateScope& states)
    : span_(place.span),
      carries_(!config.merges() && (place.width == 0 || place.width == hidden_size)),
      kind_(make(config, place, hidden_size, initializer_range, scope, states)) {}

Subsample::Kind Subsample::make(const SubsampleConfig& config, const SpanPlace& place,
                                int64_t hidden_size, double initializer_range,
                                const ParameterScope& scope, const StateScope& states) {
  switch (config.kind) {
    case SubsampleConfig::Kind::mixture_of_depths:
      return DepthRouter(config, place.span, hidden_size, initializer_range, scope);
    case SubsampleConfig::Kind::zipformer:
      return ZipformerPooling(config, place, hidden_size, scope, states);
    case SubsampleConfig::Kind::patch_merging:
      return PatchMerging(place, hidden_size, scope);
    case SubsampleConfig::Kind::subllm:
      break;
  }
  return SubllmScore(config, place.span, hidden_size, initializer_range, scope);
}

Subsample::Span Subsample::enter(const LayerInput& input, const Tensor& x) const {
  if (const auto* merging = std::get_if<PatchMerging>(&kind_)) return merged(*merging, input, x);
  const CheckedBatch& batch = input.batch;
  SpanChoice choice;
  Tensor inner = x;
  if (batch.rows() > 0) {
    choice = std::visit(
        [&](const auto& kind) -> SpanChoice {
          if constexpr (requires { kind.choose(input, x); }) {
            return kind.choose(input, x);
          } else {
            return {};
          }
        },
        kind_);
    const Tensor& entering = choice.pooled.defined() ? choice.pooled : x;
    inner = gather_rows(input.context, entering, choice.selection.rows);
  } else {
    choice.selection.counts.assign(batch.segments().size(), 0);
  }
  CheckedBatch inner_batch = selected_batch(batch, choice.selection);
  for (size_t s = 0; s < batch.segments().size(); ++s) {
    const Segment& segment = batch.segments()[s];
    if (segment.state == nullptr || segment.parents.empty()) continue;
    const int64_t first = inner_batch.segments()[s].first_row, count = choice.selection.counts[s];
    std::vector<int32_t> nodes;
    for (int64_t i = first; i < first + count; ++i) {
      const int32_t row = choice.selection.rows[static_cast<size_t>(i)];
      nodes.push_back(row - static_cast<int32_t>(segment.first_row));
    }
    segment.state->set_tree_nodes(span_, std::move(nodes));
  }
  return {x, std::move(choice), inner, std::move(inner_batch)};
}

// Of each square its first row is the one that enters.
Subsample::Span Subsample::merged(const PatchMerging& merging, const LayerInput& input,
                                  const Tensor& x) {
  MergedGrid grid = merged_grid(input.batch);
  SpanChoice choice;
  choice.selection.rows = grid.corners.front();
  std::vector<float> scores(static_cast<size_t>(x.rows()), -1.0f);
  for (const int32_t row : choice.selection.rows) scores[static_cast<size_t>(row)] = 1;
  for (const Segment& segment : grid.batch.segments) {
    choice.selection.counts.push_back(segment.length);
  }
  choice.scores = Tensor::from(scores, {x.rows(), 1});
  const Tensor inner = merging.merge(input.context, x, grid);
  return {x, std::move(choice), inner, CheckedBatch(std::move(grid.batch))};
}

Tensor Subsample::leave(const Context& context, const CheckedBatch& batch, const Span& span,
                        const Tensor& y) const {
  const std::vector<int32_t>& rows = span.choice.selection.rows;
  if (const auto* pooling = std::get_if<ZipformerPooling>(&kind_)) {
    return pooling->join(context, batch, span.outer, rows, y);
  }
  require(!std::holds_alternative<PatchMerging>(kind_), "patch_merging",
          "a span that gives nothing back");
  if (rows.empty()) return span.outer;
  const Tensor scale = std::visit(
      [&](const auto& kind) -> Tensor {
        if constexpr (requires { kind.bypass_scale(context); }) {
          return kind.bypass_scale(context);
        } else {
          return {};
        }
      },
      kind_);
  return upsample(context, span.outer, y, span.choice.weights, scale, rows);
}

double Subsample::cost() const {
  return std::visit([](const auto& kind) { return kind.cost(); }, kind_);
}

}  // namespace pronghorn
