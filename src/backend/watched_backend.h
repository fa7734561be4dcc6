// A backend whose kernels tell somebody when they begin and end: the seam for measuring and for
// tests. Every operator, forward and backward, reaches its kernels through backend(), so nothing
// escapes it, and a backend that is not watched does not pay for it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/backend.h"
#include "tensor/memory.h"

namespace pronghorn {

// How the operations of a kernel are computed.
enum class Arithmetic { f32, bf16, int8 };

// What a call of a kernel is to do.
struct KernelCall {
  const char* kernel = "";  // "linear_forward"; a literal, the same address for the same kernel
  const char* kind = "";    // "product", "attention", "recurrence", "convolution", "norm", ...
  double operations = 0;    // a multiply-add counts as two; 0: unknown
  Arithmetic arithmetic = Arithmetic::f32;
  double bytes = 0;  // of the operands, each counted once wherever it lies; 0: unknown
  // Of products: the weights; empty for gradients of weights, which `gradient` then tells apart.
  const Weight* weight = nullptr;
  std::span<const GroupedProduct> products = {};
  const float* gradient = nullptr;  // the gradient of the product's result, in backward kernels
};

class KernelWatcher {
 public:
  virtual ~KernelWatcher() = default;
  // Around every call, on the thread that makes it; calls do not nest.
  virtual void begin(const KernelCall& call) = 0;
  virtual void end() = 0;
};

// Both must outlive the result.
std::unique_ptr<Backend> make_watched_backend(Backend& backend, KernelWatcher& watcher);

// The functions of the host's memory, apart from those that give and take blocks, as kernels of the
// kind "memory".
std::unique_ptr<Memory> make_watched_memory(KernelWatcher& watcher);

}  // namespace pronghorn
