// What the files of routers share (ops/experts.h): scores of a row, and loops over rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "base/threads.h"
#include "ops/experts.h"
#include "ops/operands.h"

namespace pronghorn {

double log_sum_exp(std::span<const float> z);

// The scores of a row of logits: softmax(z) or sigmoid(z). Both [experts].
void router_scores(const RouterOptions& options, std::span<const float> z,
                   std::span<double> scores);

inline std::span<const float> row_of(const PooledVector<float>& values, int64_t row,
                                     int64_t width) {
  return std::span(values).subspan(static_cast<size_t>(row * width), static_cast<size_t>(width));
}

// body(begin, end) over rows of `width` numbers.
template <typename Body>
void for_rows(int64_t rows, int64_t width, Body&& body) {
  constexpr int64_t kGrain = 1 << 12;  // numbers of a task
  parallel_for(rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)), body);
}

// Throws Error if the logits are not those of that many experts.
void check_logits(const Tensor& logits, const RouterOptions& options);

}  // namespace pronghorn
