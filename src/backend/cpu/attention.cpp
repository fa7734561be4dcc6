#include "backend/attention.h"

namespace pronghorn {
namespace {

class CpuAttentionKernels final : public AttentionKernels {};

}  // namespace

std::unique_ptr<AttentionKernels> make_cpu_attention_kernels() {
  return std::make_unique<CpuAttentionKernels>();
}

}  // namespace pronghorn
