// Short causal depthwise convolutions.
#pragma once

#include <memory>

namespace pronghorn {

class ConvolutionKernels {
 public:
  virtual ~ConvolutionKernels() = default;
};

std::unique_ptr<ConvolutionKernels> make_cpu_convolution_kernels();

}  // namespace pronghorn
