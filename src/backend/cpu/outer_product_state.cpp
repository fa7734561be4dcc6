#include "backend/outer_product_state.h"

namespace pronghorn {
namespace {

class CpuOuterProductStateKernels final : public OuterProductStateKernels {};

}  // namespace

std::unique_ptr<OuterProductStateKernels> make_cpu_outer_product_state_kernels() {
  return std::make_unique<CpuOuterProductStateKernels>();
}

}  // namespace pronghorn
