#include "backend/pointwise.h"

namespace pronghorn {
namespace {

class CpuPointwiseKernels final : public PointwiseKernels {};

}  // namespace

std::unique_ptr<PointwiseKernels> make_cpu_pointwise_kernels() {
  return std::make_unique<CpuPointwiseKernels>();
}

}  // namespace pronghorn
