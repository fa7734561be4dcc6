// What an optimiser does to flat spans of parameters.
#pragma once

#include <span>

#include "backend/pointwise.h"

namespace pronghorn {

// One step of AdamW, see `AdamW` in backend/pointwise.h for the equations; m and v are the moments,
// zeros before the first step. All spans have the same size. Whoever owns the parameters' tensor
// calls bump_version() on it afterwards.
void adamw_update(std::span<float> parameters, std::span<const float> gradients, std::span<float> m,
                  std::span<float> v, const AdamW& settings);

// The sum of squares in float64, the same bits for any number of threads.
double sum_of_squares(std::span<const float> values);

}  // namespace pronghorn
