// ForwardObserver: how a caller looks at a forward on its way, or ends it early.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "layers/carry.h"
#include "model/block.h"
#include "ops/subsample.h"

namespace pronghorn {

// Where a forward is after a block.
struct BlockEnd {
  int64_t layers = 0;  // blocks of the model that are done
  int64_t span = -1;   // the subsampled span whose rows these are; -1: all rows of the batch
  const Context& context;
  const Stream& stream;
  const Norm& norm;
  // Which rows of the stream are the batch's, in a model with a prefix; empty: all.
  std::span<const int32_t> rows = {};

  // The residual stream [rows, hidden_size], as it is and normalised as after the last block.
  Tensor value() const { return selected(stream.value(context)); }
  Tensor hidden() const { return selected(normalized(norm, context, stream)); }

 private:
  Tensor selected(const Tensor& all) const {
    return rows.empty() ? all : gather_rows(context, all, rows);
  }
};

// What a subsampled span did with the rows that came to it.
struct SpanTrace {
  int64_t span = 0;
  std::vector<int32_t> rows;  // of the batch, that came to the span
  std::vector<float> scores;  // of each; without a tape it entered if above 0
};

// What the mixers of a block were given, and what they gave together.
struct MixersTrace {
  int64_t layer = 0;
  Tensor given, gave;  // [rows, hidden_size]
};

// Functions that are empty are not called, and what they would have received is not computed.
struct ForwardObserver {
  // After each block that had rows. false: the forward goes no further and returns end.hidden();
  // throws Error if that is asked for inside a subsampled span, where some rows are missing.
  std::function<bool(const BlockEnd& end)> on_block = {};
  // At the beginning of each subsampled span.
  std::function<void(const SpanTrace& trace)> on_span = {};
  // At the end, with a tape: each loss of a layer. To take part in training its value needs a
  // gradient before the tape runs.
  std::function<void(const LayerLoss& loss)> on_loss = {};
  // At the end: how many rows each expert of a layer was given. Not in heads for multi-token
  // prediction.
  std::function<void(const ExpertLoad& load)> on_load = {};
  // In each block with mixers that had rows; not where activations are recomputed, with a tape.
  std::function<void(const MixersTrace& trace)> on_mixers = {};
};

}  // namespace pronghorn
