#include "ops/optimizer_kernels.h"

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

double sum_of_squares(std::span<const float> values) {
  return backend().pointwise().sum_of_squares(static_cast<int64_t>(values.size()), values.data());
}

}  // namespace pronghorn
