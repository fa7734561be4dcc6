#include "backend/outer_product_state.h"

#include <algorithm>
#include <vector>

#include "backend/cpu/outer_product_state_tasks.h"
#include "backend/segment_runs.h"
#include "base/threads.h"
#include "tensor/storage.h"

namespace pronghorn {
namespace {

// Tasks that a call is cut into where it can be: enough to keep many cores busy, a constant so that
// results do not depend on how many there are.
constexpr int64_t kWantedTasks = 16;
constexpr int64_t kNarrowestSlice = 32;  // columns: two of the widest vectors

// Multiply-adds below which a step is not worth a thread of its own.
constexpr int64_t kStepGrain = 1 << 16;

class Floats {
 public:
  explicit Floats(int64_t count) : storage_(static_cast<size_t>(count) * sizeof(float)) {}
  float* data() const { return reinterpret_cast<float*>(storage_.data()); }

 private:
  Storage storage_;
};

struct Plan {
  SegmentRuns<OuterProductSegment> runs;
  int64_t slices = 1;
  int64_t parts = 1;          // tasks that one segment and key head are cut into
  int64_t segment_tasks = 0;  // of one segment, those of the first one first
  std::vector<ChunkTask> tasks = {};

  // Calls body(i) for all tasks, those of one run of segments and of the same heads in order.
  template <typename Body>
  void run(bool backward, const Body& body) const {
    parallel_for(runs.count() * segment_tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        runs.for_each(i / segment_tasks, backward,
                      [&](int64_t segment) { body(segment * segment_tasks + i % segment_tasks); });
      }
    });
  }
};

Plan make_plan(const OuterProductProblem& problem, std::span<const OuterProductSegment> segments) {
  Plan plan{SegmentRuns<OuterProductSegment>(segments)};
  const int64_t count = plan.runs.count();
  while (count * problem.value_heads * plan.slices < kWantedTasks &&
         problem.value_dim % (2 * plan.slices) == 0 &&
         problem.value_dim / (2 * plan.slices) >= kNarrowestSlice) {
    plan.slices *= 2;
  }
  const int64_t group = problem.value_heads / problem.key_heads * plan.slices;
  while (plan.parts < group &&
         (count * problem.key_heads * plan.parts < kWantedTasks || group % plan.parts != 0)) {
    ++plan.parts;
  }
  const int64_t heads = group / plan.parts;
  plan.segment_tasks = problem.key_heads * plan.parts;
  for (const OuterProductSegment& segment : segments) {
    for (int64_t part = 0; part < plan.segment_tasks; ++part) {
      plan.tasks.push_back({&segment, part / plan.parts, part * heads, heads, plan.slices});
    }
  }
  return plan;
}

// to[i, j] (+)= sum over the parts p, in order, of from[i from_row + j from_column + p from_part].
void sum_parts(int64_t rows, int64_t columns, int64_t parts, const float* from, int64_t from_row,
               int64_t from_column, int64_t from_part, const Matrix& to) {
  constexpr int64_t kGrain = 64;
  parallel_for(rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* target = to.row(i);
      for (int64_t j = 0; j < columns; ++j) {
        const float* first = from + i * from_row + j * from_column;
        float sum = first[0];
        for (int64_t p = 1; p < parts; ++p) sum += first[p * from_part];
        target[j] = to.accumulate ? target[j] + sum : sum;
      }
    }
  });
}

class CpuOuterProductStateKernels final : public OuterProductStateKernels {
 public:
  void forward(const OuterProductProblem& problem, std::span<const OuterProductSegment> segments,
               const Matrix& out, const OuterProductSaved& saved) override {
    const Plan plan = make_plan(problem, segments);
    plan.run(false, [&](int64_t i) {
      const ChunkTask& task = plan.tasks[static_cast<size_t>(i)];
      (problem.channel_decay ? channel_forward_task : chunk_forward_task)(problem, task, out,
                                                                          saved);
    });
  }

  void backward(const OuterProductProblem& problem, std::span<const OuterProductSegment> segments,
                const ConstMatrix& out_grad, const OuterProductSaved& saved,
                const OuterProductGradients& gradients) override {
    const Plan plan = make_plan(problem, segments);
    const int64_t rows = problem.rows, key_columns = problem.key_heads * problem.key_dim;
    const int64_t heads = problem.value_heads * plan.slices;
    const bool split = plan.parts > 1;
    const auto count = static_cast<int64_t>(segments.size());
    const Floats q_parts(split ? plan.parts * rows * key_columns : 0);
    const Floats k_parts(split ? plan.parts * rows * key_columns : 0);
    const int64_t decays = problem.value_heads * (problem.channel_decay ? problem.key_dim : 1);
    const Floats log_decay(rows * decays * plan.slices), beta(rows * heads), skip(count * heads);
    std::fill_n(skip.data(), count * heads, 0.0f);

    const auto place = [&](const Matrix& whole, const Floats& parts, int64_t part) {
      if (whole.data == nullptr || !split) return whole;
      return Matrix{parts.data() + part * rows * key_columns, key_columns, false};
    };
    plan.run(true, [&](int64_t i) {
      const ChunkTask& task = plan.tasks[static_cast<size_t>(i)];
      const int64_t part = i % plan.parts;
      ChunkTaskGradients own;
      own.q = place(gradients.q, q_parts, part);
      own.k = place(gradients.k, k_parts, part);
      own.v = gradients.v;
      if (gradients.log_decay.data != nullptr) own.log_decay = log_decay.data();
      if (gradients.beta.data != nullptr) own.beta = beta.data();
      if (gradients.skip.data != nullptr) {
        own.skip = skip.data() + (task.segment - segments.data()) * heads;
      }
      own.virtual_heads = heads;
      (problem.channel_decay ? channel_backward_task : chunk_backward_task)(problem, task, out_grad,
                                                                            saved, own);
    });

    if (split && gradients.q.data != nullptr) {
      sum_parts(rows, key_columns, plan.parts, q_parts.data(), key_columns, 1, rows * key_columns,
                gradients.q);
    }
    if (split && gradients.k.data != nullptr) {
      sum_parts(rows, key_columns, plan.parts, k_parts.data(), key_columns, 1, rows * key_columns,
                gradients.k);
    }
    if (gradients.log_decay.data != nullptr) {
      const int64_t column = problem.channel_decay ? 1 : plan.slices;
      const int64_t part = problem.channel_decay ? decays : 1;
      sum_parts(rows, decays, plan.slices, log_decay.data(), decays * plan.slices, column, part,
                gradients.log_decay);
    }
    if (gradients.beta.data != nullptr) {
      sum_parts(rows, problem.value_heads, plan.slices, beta.data(), heads, plan.slices, 1,
                gradients.beta);
    }
    if (gradients.skip.data != nullptr) {
      // Over segments first, in place; then over slices.
      for (int64_t s = 1; s < count; ++s) {
        for (int64_t h = 0; h < heads; ++h) skip.data()[h] += skip.data()[s * heads + h];
      }
      sum_parts(1, problem.value_heads, plan.slices, skip.data(), heads, plan.slices, 1,
                gradients.skip);
    }
  }

  void step(const OuterProductProblem& problem,
            std::span<const std::span<const ReplayStep>> sequences, const Matrix& out) override {
    const int64_t heads = problem.value_heads;
    const int64_t count = static_cast<int64_t>(sequences.size()) * heads;
    int64_t rows = 0;  // that the state of a head is multiplied by, in all sequences
    for (const std::span<const ReplayStep> steps : sequences) {
      for (const ReplayStep& step : steps) {
        rows += static_cast<int64_t>(step.tokens.size() + step.fold.rows.size());
      }
    }
    const int64_t work = rows * heads * problem.key_dim * problem.value_dim;
    const int64_t grain = std::max<int64_t>(1, kStepGrain * count / std::max<int64_t>(1, work));
    parallel_for(count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        (problem.channel_decay ? channel_step_task : step_task)(
            problem, sequences[static_cast<size_t>(i / heads)], i % heads, out);
      }
    });
  }
};

}  // namespace

std::unique_ptr<OuterProductStateKernels> make_cpu_outer_product_state_kernels() {
  return std::make_unique<CpuOuterProductStateKernels>();
}

}  // namespace pronghorn
