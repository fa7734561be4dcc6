// Compressive memories on the CPU: a task for each sequence and memory.
#include "backend/compressive_memory.h"

#include "backend/cpu/compressive_memory_tasks.h"
#include "base/threads.h"

namespace pronghorn {
namespace {

// task(item, memory) for each item of a list and each memory.
template <typename Item, typename Task>
void for_each_memory(const CompressiveMemoryShape& shape, std::span<const Item> items,
                     const Task& task) {
  parallel_for(std::ssize(items) * shape.kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      task(items[static_cast<size_t>(i / shape.kv_heads)], i % shape.kv_heads);
    }
  });
}

class CpuCompressiveMemoryKernels final : public CompressiveMemoryKernels {
 public:
  void forward(const CompressiveMemoryShape& shape, std::span<const CompressiveMemoryRun> runs,
               const CompressiveMemoryInputs& inputs, const Matrix& out) override {
    for_each_memory(shape, runs, [&](const CompressiveMemoryRun& run, int64_t memory) {
      cpu_compressive_memory::forward(shape, run, memory, inputs, out);
    });
  }
  void backward(const CompressiveMemoryShape& shape, std::span<const CompressiveMemoryRun> runs,
                const CompressiveMemoryInputs& inputs, const ConstMatrix& out,
                const ConstMatrix& grad_out, const CompressiveMemoryGradients& gradients) override {
    for_each_memory(shape, runs, [&](const CompressiveMemoryRun& run, int64_t memory) {
      cpu_compressive_memory::backward(shape, run, memory, inputs, out, grad_out, gradients);
    });
  }
  void steps(const CompressiveMemoryShape& shape,
             std::span<const std::span<const ReplayStep>> sequences,
             const CompressiveMemoryInputs& inputs, const Matrix& out) override {
    for_each_memory(shape, sequences,
                    [&](const std::span<const ReplayStep>& sequence, int64_t memory) {
                      cpu_compressive_memory::steps(shape, sequence, memory, inputs, out);
                    });
  }
};

}  // namespace

std::unique_ptr<CompressiveMemoryKernels> make_cpu_compressive_memory_kernels() {
  return std::make_unique<CpuCompressiveMemoryKernels>();
}

}  // namespace pronghorn
