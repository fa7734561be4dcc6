// PatchMerging: the passage from one stage of a hierarchical model of images to the next, as Swin
// Transformer has it (arXiv 2103.14030, section 3.1), and VMamba after it (arXiv 2401.10166,
// section 4.1): rows of half the height, half the width and other columns.
#pragma once

#include <cstdint>

#include "layers/layer.h"
#include "layers/parameters.h"
#include "layers/span_choice.h"
#include "ops/patch_merging.h"
#include "tensor/tensor.h"

namespace pronghorn {

//   row of a square of 2 x 2 = W norm([its four rows, side by side])
class PatchMerging {
 public:
  // hidden_size: columns of the rows before it; place.width: of those after it.
  PatchMerging(const SpanPlace& place, int64_t hidden_size, const ParameterScope& scope);

  // x [rows, hidden_size] to [squares, width].
  Tensor merge(const Context& context, const Tensor& x, const MergedGrid& grid) const;

  // Floating-point operations of a row.
  double cost() const { return 2.0 * static_cast<double>(reduction_.size()) / 4; }

 private:
  Norm norm_;         // of 4 hidden_size
  Weight reduction_;  // [width, 4 hidden_size]
};

}  // namespace pronghorn
