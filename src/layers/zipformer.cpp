#include "layers/zipformer.h"

#include <algorithm>
#include <array>
#include <vector>

#include "base/error.h"
#include "layers/scans.h"
#include "ops/pointwise.h"
#include "ops/short_convolution.h"
#include "ops/subsample.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "zipformer span";

// Whether rows see all of their segment.
bool sees_all(const CheckedBatch& batch) {
  const Mask mask = batch.segments().front().mask;
  require(mask == Mask::full || mask == Mask::causal, kWhere,
          "rows see neither all of their segment nor what is before them");
  for (const Segment& segment : batch.segments()) {
    require(segment.mask == mask, kWhere, "segments of one batch see different ways");
    require(mask == Mask::causal || segment.state == nullptr, kWhere,
            "keeps no state of a sequence that is seen whole");
  }
  return mask == Mask::full;
}

// Groups are counted by position, so none may be left out.
void check_positions(const CheckedBatch& batch, int64_t stride) {
  for (const Segment& segment : batch.segments()) {
    if (!segment.parents.empty() || segment.length == 0) continue;
    const std::span<const int32_t> positions = batch.positions(segment);
    require(segment.state != nullptr || positions.front() == stride - 1, kWhere,
            "a sequence begins at position {} in place of {}", positions.front(), stride - 1);
    for (size_t i = 1; i < positions.size(); ++i) {
      require(positions[i] - int64_t{positions[i - 1]} == stride, kWhere,
              "position {} follows {}: none may be left out", positions[i], positions[i - 1]);
    }
  }
}

Tensor ones(int64_t rows) { return Tensor::full({rows, 1}, 1); }

// The first columns of x.
Tensor first_columns(const Tensor& x, int64_t count) {
  return x.columns() == count ? x : x.column_slice(0, count);
}

// x with zeros behind its columns.
Tensor widened(const Context& context, const Tensor& x, int64_t width) {
  if (x.columns() == width) return x;
  const std::array<Tensor, 2> parts = {x, Tensor::zeros({x.rows(), width - x.columns()})};
  return concatenate_columns(context, parts);
}

}  // namespace

ZipformerPooling::ZipformerPooling(const SubsampleConfig& config, const SpanPlace& place,
                                   int64_t hidden_size, const ParameterScope& scope,
                                   const StateScope& states)
    : rate_(config.rate(place.span)),
      width_(place.width > 0 ? place.width : hidden_size),
      common_(std::min(width_, hidden_size)),
      stride_(place.stride),
      group_(stride_ * rate_),
      bypass_steps_(config.bypass_steps),
      pool_state_(states.add(short_convolution_journal(common_, rate_))),
      hold_state_(states.add(short_convolution_journal(common_, rate_))),
      pool_(scope.tensor("pool.weight", {rate_}, initializers::constant(0))),
      bypass_scale_(scope.tensor("bypass_scale", {common_}, initializers::constant(kBypassScale))),
      hold_(Tensor::full({common_, rate_}, 1)),
      unit_(Tensor::full({common_}, 1)) {}

SpanChoice ZipformerPooling::choose(const LayerInput& input, const Tensor& x) const {
  const CheckedBatch& batch = input.batch;
  const bool all = sees_all(batch);
  const Tensor seen = first_columns(x, common_);
  const Tensor weights = pooling_weights(input.context, pool_, common_);
  SpanChoice choice;
  if (all) {
    const ScannedRows one_way(batch, scan_passes(Scan::raster).front());
    choice.pooled =
        short_convolution(input.context, seen, weights, {}, false, one_way.batch(), pool_state_);
  } else {
    check_positions(batch, stride_);
    choice.pooled = short_convolution(input.context, seen, weights, {}, false, batch, pool_state_);
  }
  std::vector<float> scores;
  for (const Segment& segment : batch.segments()) {
    int64_t count = 0;
    for (int64_t i = 0; i < segment.length; ++i) {
      const int64_t row = segment.first_row + i;
      const bool ends = all ? (i + 1) % rate_ == 0 || i + 1 == segment.length
                            : ends_group(batch.positions()[static_cast<size_t>(row)]);
      scores.push_back(ends ? 1.0f : -1.0f);
      if (!ends) continue;
      choice.selection.rows.push_back(static_cast<int32_t>(row));
      ++count;
    }
    choice.selection.counts.push_back(count);
  }
  choice.scores = Tensor::from(scores, {batch.rows(), 1});
  choice.pooled = widened(input.context, choice.pooled, width_);
  return choice;
}

Tensor ZipformerPooling::join(const Context& context, const CheckedBatch& batch, const Tensor& x,
                              std::span<const int32_t> ends, const Tensor& y) const {
  if (x.rows() == 0) return x;
  const Tensor own = first_columns(x, common_), made = first_columns(y, common_);
  std::vector<int32_t> rows;  // to which something comes back
  Tensor back;
  if (sees_all(batch)) {
    // Every segment ends with the end of a group.
    std::vector<int32_t> groups;
    int32_t group = 0;
    for (int64_t row = 0; row < x.rows(); ++row) {
      rows.push_back(static_cast<int32_t>(row));
      groups.push_back(group);
      if (ends[static_cast<size_t>(group)] == row) ++group;
    }
    back = embedding(context, made, groups);
  } else {
    Tensor spread = Tensor::zeros(own.shape());
    if (!ends.empty())
      spread = upsample(context, spread, made, ones(std::ssize(ends)), unit_, ends);
    // Of any `rate` rows one after another a single one ends a group, so a sum of them is its own.
    back = short_convolution(context, spread, hold_, {}, false, batch, hold_state_);
    for (int64_t row = 0; row < x.rows(); ++row) {
      const int64_t position = batch.positions()[static_cast<size_t>(row)];
      if (position + 1 >= group_) rows.push_back(static_cast<int32_t>(row));
    }
    if (rows.empty()) return x;
    if (std::ssize(rows) < x.rows()) back = gather_rows(context, back, rows);
  }
  const Tensor joined =
      upsample(context, own, back, ones(std::ssize(rows)), bypass_scale(context), rows);
  if (common_ == x.columns()) return joined;
  const std::array<Tensor, 2> parts = {joined, x.column_slice(common_, x.columns() - common_)};
  return concatenate_columns(context, parts);
}

Tensor ZipformerPooling::bypass_scale(const Context& context) const {
  return limited_bypass_scale(context, bypass_scale_, bypass_steps_);
}

}  // namespace pronghorn
