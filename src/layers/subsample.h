// Subsample: the layer around a span of blocks that runs on other rows than those around it. It
// chooses or makes them in front of the span, and joins the span's results after it. How it does so
// is the kind of the span: SUBLLM's (arXiv 2406.06571), a mixture of depths' (arXiv 2404.02258),
// Zipformer's (arXiv 2310.11230), where a few rows become one, or the merging of patches
// (arXiv 2103.14030), after which rows stay what they became.
#pragma once

#include <cstdint>
#include <variant>

#include "layers/layer.h"
#include "layers/mixture_of_depths.h"
#include "layers/parameters.h"
#include "layers/patch_merging.h"
#include "layers/span_choice.h"
#include "layers/states.h"
#include "layers/subllm.h"
#include "layers/zipformer.h"
#include "tensor/batch.h"
#include "tensor/tape.h"

namespace pronghorn {

class Subsample {
 public:
  // place: its number names what a SequenceState keeps of it. states: for what the two ends keep of
  // the rows around the span.
  Subsample(const SubsampleConfig& config, const SpanPlace& place, int64_t hidden_size,
            double initializer_range, const ParameterScope& scope, const StateScope& states);

  // What is known between the two ends of a span.
  struct Span {
    Tensor outer;  // the rows in front of the span [rows, hidden_size]
    SpanChoice choice;
    Tensor inner;        // the rows that enter [entering, width]
    CheckedBatch batch;  // of these
  };

  // input: of the rows in front of the span.
  Span enter(const LayerInput& input, const Tensor& x) const;

  // batch: as given to enter(). y: what the span made of span.inner. Returns [rows, hidden_size] of
  // that batch. Throws Error where patches were merged, for which there is no way back.
  Tensor leave(const Context& context, const CheckedBatch& batch, const Span& span,
               const Tensor& y) const;

  // Floating-point operations for each row in front of the span.
  double cost() const;

  // Whether what layers carry goes along into the span: rows stand for the same and are as wide.
  bool carries() const { return carries_; }

 private:
  using Kind = std::variant<SubllmScore, DepthRouter, ZipformerPooling, PatchMerging>;
  static Kind make(const SubsampleConfig& config, const SpanPlace& place, int64_t hidden_size,
                   double initializer_range, const ParameterScope& scope, const StateScope& states);

  static Span merged(const PatchMerging& merging, const LayerInput& input, const Tensor& x);

  int64_t span_;
  bool carries_;
  Kind kind_;
};

}  // namespace pronghorn
