#include "backend/convolution.h"

namespace pronghorn {
namespace {

class CpuConvolutionKernels final : public ConvolutionKernels {};

}  // namespace

std::unique_ptr<ConvolutionKernels> make_cpu_convolution_kernels() {
  return std::make_unique<CpuConvolutionKernels>();
}

}  // namespace pronghorn
