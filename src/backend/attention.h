// Tiled softmax attention.
#pragma once

#include <memory>

namespace pronghorn {

class AttentionKernels {
 public:
  virtual ~AttentionKernels() = default;
};

std::unique_ptr<AttentionKernels> make_cpu_attention_kernels();

}  // namespace pronghorn
