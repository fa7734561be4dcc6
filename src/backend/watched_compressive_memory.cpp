// Watched kernels of compressive memories. A token reads a matrix and writes it; the delta rule
// reads once more. A backward pass counts twice its forward.
#include "backend/watched_kernels.h"

namespace pronghorn {
namespace {

class WatchedCompressiveMemory final : public CompressiveMemoryKernels {
 public:
  WatchedCompressiveMemory(CompressiveMemoryKernels& kernels, KernelWatcher& watcher)
      : kernels_(kernels), watcher_(watcher) {}

  void forward(const CompressiveMemoryShape& shape, std::span<const CompressiveMemoryRun> runs,
               const CompressiveMemoryInputs& inputs, const Matrix& out) override {
    const Watched watched(watcher_, call("compressive_memory_forward", shape, rows_of(runs)));
    kernels_.forward(shape, runs, inputs, out);
  }
  void backward(const CompressiveMemoryShape& shape, std::span<const CompressiveMemoryRun> runs,
                const CompressiveMemoryInputs& inputs, const ConstMatrix& out,
                const ConstMatrix& grad_out, const CompressiveMemoryGradients& gradients) override {
    const Watched watched(watcher_, call("compressive_memory_backward", shape, 2 * rows_of(runs)));
    kernels_.backward(shape, runs, inputs, out, grad_out, gradients);
  }
  void steps(const CompressiveMemoryShape& shape,
             std::span<const std::span<const ReplayStep>> sequences,
             const CompressiveMemoryInputs& inputs, const Matrix& out) override {
    double tokens = 0;
    for (const std::span<const ReplayStep> sequence : sequences) {
      for (const ReplayStep& step : sequence) tokens += static_cast<double>(step.tokens.size());
    }
    const Watched watched(watcher_, call("compressive_memory_steps", shape, tokens));
    kernels_.steps(shape, sequences, inputs, out);
  }

 private:
  static double rows_of(std::span<const CompressiveMemoryRun> runs) {
    double rows = 0;
    for (const CompressiveMemoryRun& run : runs) rows += static_cast<double>(run.length);
    return rows;
  }
  static KernelCall call(const char* kernel, const CompressiveMemoryShape& shape, double tokens) {
    const auto matrices =
        static_cast<double>(shape.heads + shape.kv_heads * (shape.delta_rule ? 2 : 1));
    const auto size = static_cast<double>(shape.memory_size());
    return {.kernel = kernel,
            .kind = "recurrence",
            .operations = 2 * tokens * matrices * size,
            .bytes = 4 * tokens * static_cast<double>(shape.row_width())};
  }

  CompressiveMemoryKernels& kernels_;
  KernelWatcher& watcher_;
};

}  // namespace

std::unique_ptr<CompressiveMemoryKernels> make_watched_compressive_memory(
    CompressiveMemoryKernels& kernels, KernelWatcher& watcher) {
  return std::make_unique<WatchedCompressiveMemory>(kernels, watcher);
}

}  // namespace pronghorn
