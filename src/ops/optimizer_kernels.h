// What an optimiser does to flat spans of parameters.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/pointwise.h"

namespace pronghorn {

// One step of AdamW, see `AdamW` in backend/pointwise.h for the equations; m and v are the moments,
// zeros before the first step. All spans have the same size. Whoever owns the parameters' tensor
// calls bump_version() on it afterwards.
void adamw_update(std::span<float> parameters, std::span<const float> gradients, std::span<float> m,
                  std::span<float> v, const AdamW& settings);

// Appends `values` to `blocks`, cut into blocks of kSquaresBlock numbers.
constexpr int64_t kSquaresBlock = 1 << 14;
void append_blocks(std::span<const float> values, std::vector<std::span<const float>>& blocks);

// The sum of squares of each part in float64. Parts are spread over the threads; the bits are the
// same for any number of them.
std::vector<double> sums_of_squares(std::span<const std::span<const float>> parts);

// The sum of squares over blocks of kSquaresBlock numbers, in their order.
double sum_of_squares(std::span<const float> values);

}  // namespace pronghorn
