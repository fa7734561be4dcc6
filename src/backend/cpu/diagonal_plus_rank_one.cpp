#include "backend/diagonal_plus_rank_one.h"

#include <algorithm>

#include "backend/cpu/diagonal_plus_rank_one_tasks.h"
#include "backend/segment_runs.h"
#include "base/threads.h"

namespace pronghorn {
namespace {

// Tasks that a forward is cut into where it can be, a constant so that results do not depend on the
// number of threads. Slices of a head's values each compute its scores again, so there are few.
constexpr int64_t kWantedTasks = 8;
constexpr int64_t kNarrowestSlice = 32;  // columns: two of the widest vectors

// Multiply-adds below which a step is not worth a thread of its own.
constexpr int64_t kStepGrain = 1 << 16;

// Calls body(task) for all tasks; those of one run of segments and of the same columns one after
// the other, if `backward` from the last to the first. sliced: whether columns may be cut.
template <typename Body>
void run_tasks(const RankOneProblem& problem, std::span<const RankOneSegment> segments, bool sliced,
               bool backward, const Body& body) {
  const SegmentRuns<RankOneSegment> runs(segments);
  const int64_t count = runs.count();
  int64_t slices = 1;
  while (sliced && count * problem.heads * slices < kWantedTasks &&
         problem.value_dim % (2 * slices) == 0 &&
         problem.value_dim / (2 * slices) >= kNarrowestSlice) {
    slices *= 2;
  }
  const int64_t columns = problem.value_dim / slices, parts = problem.heads * slices;
  parallel_for(count * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i % parts;
      runs.for_each(i / parts, backward, [&](int64_t segment) {
        body(RankOneTask{&segments[static_cast<size_t>(segment)], part / slices,
                         part % slices * columns, columns});
      });
    }
  });
}

class CpuDiagonalPlusRankOneKernels final : public DiagonalPlusRankOneKernels {
 public:
  void forward(const RankOneProblem& problem, std::span<const RankOneSegment> segments,
               const Matrix& out, const RankOneSaved& saved) override {
    run_tasks(problem, segments, true, false,
              [&](const RankOneTask& task) { rank_one_forward_task(problem, task, out, saved); });
  }

  void backward(const RankOneProblem& problem, std::span<const RankOneSegment> segments,
                const ConstMatrix& out_grad, const RankOneSaved& saved,
                const RankOneGradients& gradients) override {
    run_tasks(problem, segments, false, true, [&](const RankOneTask& task) {
      rank_one_backward_task(problem, task, out_grad, saved, gradients);
    });
  }

  void step(const RankOneProblem& problem, std::span<const std::span<const ReplayStep>> sequences,
            const Matrix& out) override {
    const int64_t heads = problem.heads;
    const int64_t count = static_cast<int64_t>(sequences.size()) * heads;
    int64_t rows = 0;  // that the state of a head is multiplied by, in all sequences
    for (const std::span<const ReplayStep> steps : sequences) {
      for (const ReplayStep& step : steps) {
        rows += 2 * static_cast<int64_t>(step.tokens.size() + step.fold.rows.size());
      }
    }
    const int64_t work = rows * heads * problem.key_dim * problem.value_dim;
    const int64_t grain = std::max<int64_t>(1, kStepGrain * count / std::max<int64_t>(1, work));
    parallel_for(count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        rank_one_step_task(problem, sequences[static_cast<size_t>(i / heads)], i % heads, out);
      }
    });
  }
};

}  // namespace

std::unique_ptr<DiagonalPlusRankOneKernels> make_cpu_diagonal_plus_rank_one_kernels() {
  return std::make_unique<CpuDiagonalPlusRankOneKernels>();
}

}  // namespace pronghorn
