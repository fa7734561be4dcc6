#include "model/prefix.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "ops/pointwise.h"

namespace pronghorn {

bool wants_prefix(const CheckedBatch& batch) {
  return std::ranges::any_of(batch.segments(), [](const Segment& segment) {
    return segment.length > 0 && (segment.state == nullptr || !segment.state->has_begun());
  });
}

PrefixedBatch with_prefix(const Context& context, const CheckedBatch& batch, int64_t length,
                          const Tensor& prefix, const Tensor& embeddings) {
  require(batch.coordinate_count() == 0, "batch", "coordinates in a model with a prefix");
  PrefixedBatch result;
  std::vector<Tensor> parts;
  for (const Segment& segment : batch.segments()) {
    Segment longer = segment;
    longer.first_row = result.batch.rows();
    if (segment.state == nullptr && segment.length > 0) {
      longer.length += length;
      parts.push_back(prefix);
      for (int64_t i = 0; i < length; ++i) {
        result.batch.positions.push_back(static_cast<int32_t>(i));
      }
    }
    if (segment.length > 0)
      parts.push_back(embeddings.row_slice(segment.first_row, segment.length));
    for (const int32_t position : batch.positions(segment)) {
      result.rows.push_back(static_cast<int32_t>(result.batch.rows()));
      result.batch.positions.push_back(position + static_cast<int32_t>(length));
    }
    result.batch.segments.push_back(std::move(longer));
  }
  if (result.batch.rows() == batch.rows()) {
    result.rows.clear();
    result.batch.embeddings = embeddings;
  } else {
    result.batch.embeddings = concatenate_rows(context, parts);
  }
  return result;
}

Batch prefix_alone(SequenceState& state, const Tensor& prefix) {
  Batch batch;
  batch.embeddings = prefix;
  batch.positions.resize(static_cast<size_t>(prefix.rows()));
  std::iota(batch.positions.begin(), batch.positions.end(), 0);
  batch.segments.push_back({&state, 0, prefix.rows()});
  return batch;
}

}  // namespace pronghorn
