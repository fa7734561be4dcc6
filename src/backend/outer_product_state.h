// Gated outer-product states, with or without erasing (kernel family A).
#pragma once

#include <memory>

namespace pronghorn {

class OuterProductStateKernels {
 public:
  virtual ~OuterProductStateKernels() = default;
};

std::unique_ptr<OuterProductStateKernels> make_cpu_outer_product_state_kernels();

}  // namespace pronghorn
