// Element-wise and row-wise kernels, losses and the optimiser's update.
#pragma once

#include <memory>

namespace pronghorn {

class PointwiseKernels {
 public:
  virtual ~PointwiseKernels() = default;
};

std::unique_ptr<PointwiseKernels> make_cpu_pointwise_kernels();

}  // namespace pronghorn
