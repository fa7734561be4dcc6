#include "ops/optimizer_kernels.h"

#include <algorithm>

#include "backend/backend.h"
#include "base/error.h"

namespace pronghorn {

void adamw_update(std::span<float> parameters, std::span<const float> gradients, std::span<float> m,
                  std::span<float> v, const AdamW& settings) {
  require(gradients.size() == parameters.size() && m.size() == parameters.size() &&
              v.size() == parameters.size(),
          "adamw", "{} gradients and moments of {} and {} for {} parameters", gradients.size(),
          m.size(), v.size(), parameters.size());
  require(settings.step >= 1, "adamw", "step {} where the first is 1", settings.step);
  backend().pointwise().adamw(static_cast<int64_t>(parameters.size()), parameters.data(),
                              gradients.data(), m.data(), v.data(), settings);
}

void append_blocks(std::span<const float> values, std::vector<std::span<const float>>& blocks) {
  while (!values.empty()) {
    const std::span<const float> block =
        values.first(std::min(values.size(), static_cast<size_t>(kSquaresBlock)));
    blocks.push_back(block);
    values = values.subspan(block.size());
  }
}

std::vector<double> sums_of_squares(std::span<const std::span<const float>> parts) {
  std::vector<double> sums(parts.size());
  backend().pointwise().sums_of_squares(parts, sums.data());
  return sums;
}

double sum_of_squares(std::span<const float> values) {
  std::vector<std::span<const float>> blocks;
  append_blocks(values, blocks);
  double sum = 0;
  for (const double block : sums_of_squares(blocks)) sum += block;
  return sum;
}

}  // namespace pronghorn
