#include "backend/matmul.h"

namespace pronghorn {
namespace {

class CpuMatmulKernels final : public MatmulKernels {};

}  // namespace

std::unique_ptr<MatmulKernels> make_cpu_matmul_kernels() {
  return std::make_unique<CpuMatmulKernels>();
}

}  // namespace pronghorn
