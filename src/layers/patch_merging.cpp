#include "layers/patch_merging.h"

#include <cmath>

#include "ops/linear.h"

namespace pronghorn {

// Of normalised rows, as patches are embedded: numbers of about 1 stay so.
PatchMerging::PatchMerging(const SpanPlace& place, int64_t hidden_size, const ParameterScope& scope)
    : norm_(scope.child("norm"), place.norm, 4 * hidden_size),
      reduction_(scope.matrix(
          "reduction.weight", place.width, 4 * hidden_size,
          initializers::normal(1 / std::sqrt(4 * static_cast<double>(hidden_size))))) {}

Tensor PatchMerging::merge(const Context& context, const Tensor& x, const MergedGrid& grid) const {
  return linear(context, norm_.forward(context, merge_patches(context, x, grid)), reduction_);
}

}  // namespace pronghorn
