#include "backend/fast_weight_memory.h"

#include <algorithm>

#include "backend/cpu/fast_weight_memory_tasks.h"
#include "base/threads.h"
#include "tensor/storage.h"

namespace pronghorn {
namespace {

class Floats {
 public:
  explicit Floats(int64_t count) : storage_(static_cast<size_t>(count) * sizeof(float)) {}
  float* data() const { return reinterpret_cast<float*>(storage_.data()); }

 private:
  Storage storage_;
};

// Multiply-adds that outweigh a fork and join.
constexpr int64_t kTaskWork = 1 << 16;

// Tasks, a head of a run each, that a thread takes at once: changes no result.
int64_t task_grain(const MemoryProblem& problem, std::span<const MemoryRun> runs) {
  int64_t tokens = 0;
  for (const MemoryRun& run : runs) tokens += run.length;
  const auto count = std::max<int64_t>(1, static_cast<int64_t>(runs.size()));
  const int64_t work = problem.shape.state_size() * std::max<int64_t>(1, tokens / count);
  return std::max<int64_t>(1, kTaskWork / std::max<int64_t>(1, work));
}

// to[i] (+)= the sum of from[p * part + i] over the parts p, in order.
void sum_parts(int64_t parts, int64_t part, int64_t count, const float* from, const Matrix& to) {
  if (to.data == nullptr) return;
  constexpr int64_t kGrain = 1024;
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
    if (!to.accumulate) std::fill(to.data + begin, to.data + end, 0.0f);
    for (int64_t p = 0; p < parts; ++p) {
      const float* own = from + p * part;
      for (int64_t i = begin; i < end; ++i) to.data[i] += own[i];
    }
  });
}

class CpuFastWeightMemoryKernels final : public FastWeightMemoryKernels {
 public:
  void forward(const MemoryProblem& problem, std::span<const MemoryRun> runs, const Matrix& out,
               float* saved) override {
    const int64_t heads = problem.heads, count = static_cast<int64_t>(runs.size()) * heads;
    parallel_for(count, task_grain(problem, runs), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        memory_forward_task(problem, runs[static_cast<size_t>(i / heads)], i % heads, out, saved);
      }
    });
  }

  void fold(const MemoryProblem& problem, std::span<const MemoryFold> folds) override {
    const int64_t heads = problem.heads, count = static_cast<int64_t>(folds.size()) * heads;
    parallel_for(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        memory_fold_task(problem, folds[static_cast<size_t>(i / heads)], i % heads);
      }
    });
  }

  void backward(const MemoryProblem& problem, std::span<const MemoryRun> runs,
                const ConstMatrix& out_grad, const float* saved,
                const MemoryGradients& gradients) override {
    const int64_t heads = problem.heads, count = static_cast<int64_t>(runs.size());
    const int64_t size = problem.shape.state_size(), width = problem.shape.head_dim;
    const Floats initial(count * heads * size), tau(count * heads * kMemoryMiniBatch);
    const Floats norm_weight(count * heads * width), norm_bias(count * heads * width);
    parallel_for(count * heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        MemoryTaskGradients own;
        own.initial = initial.data() + i * size;
        own.tau = tau.data() + i * kMemoryMiniBatch;
        own.norm_weight = norm_weight.data() + i * width;
        own.norm_bias = norm_bias.data() + i * width;
        memory_backward_task(problem, runs[static_cast<size_t>(i / heads)], i % heads, out_grad,
                             saved, gradients, own);
      }
    });
    sum_parts(count, heads * size, heads * size, initial.data(), gradients.initial);
    sum_parts(count, heads * width, heads * width, norm_weight.data(), gradients.norm_weight);
    sum_parts(count, heads * width, heads * width, norm_bias.data(), gradients.norm_bias);
    sum_parts(count * heads, kMemoryMiniBatch, problem.mini_batch, tau.data(), gradients.tau);
  }
};

}  // namespace

std::unique_ptr<FastWeightMemoryKernels> make_cpu_fast_weight_memory_kernels() {
  return std::make_unique<CpuFastWeightMemoryKernels>();
}

}  // namespace pronghorn
