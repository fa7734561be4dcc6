// Dense matrix products.
#pragma once

#include <memory>

namespace pronghorn {

class MatmulKernels {
 public:
  virtual ~MatmulKernels() = default;
};

std::unique_ptr<MatmulKernels> make_cpu_matmul_kernels();

}  // namespace pronghorn
