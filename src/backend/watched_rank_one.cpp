// Watched states whose transition is diagonal plus rank one, and what RWKV computes around them.
#include "backend/watched_kernels.h"

namespace pronghorn {
namespace {

class WatchedDiagonalPlusRankOne final : public DiagonalPlusRankOneKernels {
 public:
  WatchedDiagonalPlusRankOne(DiagonalPlusRankOneKernels& kernels, KernelWatcher& watcher)
      : kernels_(kernels), watcher_(watcher) {}

  void forward(const RankOneProblem& problem, std::span<const RankOneSegment> segments,
               const Matrix& out, const RankOneSaved& saved) override {
    int64_t rows = 0;
    for (const RankOneSegment& segment : segments) rows += segment.length;
    const Watched watched(watcher_, state("rank_one_forward", problem, rows, 1));
    kernels_.forward(problem, segments, out, saved);
  }
  void backward(const RankOneProblem& problem, std::span<const RankOneSegment> segments,
                const ConstMatrix& out_grad, const RankOneSaved& saved,
                const RankOneGradients& gradients) override {
    int64_t rows = 0;
    for (const RankOneSegment& segment : segments) rows += segment.length;
    const Watched watched(watcher_, state("rank_one_backward", problem, rows, 2));
    kernels_.backward(problem, segments, out_grad, saved, gradients);
  }
  void step(const RankOneProblem& problem, std::span<const std::span<const ReplayStep>> sequences,
            const Matrix& out) override {
    int64_t rows = 0;
    double anchors = 0;
    for (const std::span<const ReplayStep> steps : sequences) {
      for (const ReplayStep& each : steps) {
        rows += std::ssize(each.tokens);
        anchors += (each.anchor() != nullptr ? 1 : 0) + (each.fold.to != nullptr ? 1 : 0);
      }
    }
    KernelCall call = state("rank_one_step", problem, rows, 1);
    call.bytes +=
        kNumber * anchors * as_double(problem.heads * problem.key_dim * problem.value_dim);
    const Watched watched(watcher_, call);
    kernels_.step(problem, sequences, out);
  }

 private:
  // Per number of the state and row: decay 1, what the key held 2, writes 4, read 2. Bytes are
  // those of the rows.
  static KernelCall state(const char* kernel, const RankOneProblem& problem, int64_t rows,
                          double passes) {
    const double numbers = as_double(problem.heads * problem.key_dim * problem.value_dim);
    const double widths = as_double(problem.heads * (5 * problem.key_dim + 2 * problem.value_dim));
    return {.kernel = kernel,
            .kind = "recurrence",
            .operations = passes * 9 * as_double(rows) * numbers,
            .bytes = passes * kNumber * as_double(rows) * widths};
  }

  DiagonalPlusRankOneKernels& kernels_;
  KernelWatcher& watcher_;
};

class WatchedRwkv final : public RwkvKernels {
 public:
  WatchedRwkv(RwkvKernels& kernels, KernelWatcher& watcher)
      : kernels_(kernels), watcher_(watcher) {}

  void token_shift(const TokenShift& shift, std::span<const Matrix> y) override {
    const Watched watched(watcher_,
                          call("token_shift", shift.extent, 2 + as_double(std::ssize(y))));
    kernels_.token_shift(shift, y);
  }
  void token_shift_backward(const TokenShift& shift, std::span<const ConstMatrix> dy,
                            const int32_t* after, const Matrix& dx,
                            std::span<const GradVector> dmixes) override {
    const Watched watched(
        watcher_, call("token_shift_backward", shift.extent, 3 + as_double(std::ssize(dy))));
    kernels_.token_shift_backward(shift, dy, after, dx, dmixes);
  }
  void rwkv7_keys(const Rwkv7Keys& keys, const Rwkv7KeysResult& to) override {
    const Watched watched(watcher_, call("rwkv7_keys", keys.extent, 5));
    kernels_.rwkv7_keys(keys, to);
  }
  void rwkv7_keys_backward(const Rwkv7Keys& keys, const Rwkv7KeysResultGradients& from,
                           const Rwkv7KeysGradients& to) override {
    const Watched watched(watcher_, call("rwkv7_keys_backward", keys.extent, 7));
    kernels_.rwkv7_keys_backward(keys, from, to);
  }
  void rwkv7_output(const Rwkv7Output& output, const Matrix& y) override {
    const Watched watched(watcher_, call("rwkv7_output", output.extent, 6));
    kernels_.rwkv7_output(output, y);
  }
  void rwkv7_output_backward(const Rwkv7Output& output, ConstMatrix dy,
                             const Rwkv7OutputGradients& to) override {
    const Watched watched(watcher_, call("rwkv7_output_backward", output.extent, 11));
    kernels_.rwkv7_output_backward(output, dy, to);
  }
  void interpolate(Extent extent, ConstMatrix from, ConstMatrix to, ConstMatrix share,
                   Matrix y) override {
    const Watched watched(watcher_, call("interpolate", extent, 4));
    kernels_.interpolate(extent, from, to, share, y);
  }
  void interpolate_backward(Extent extent, ConstMatrix from, ConstMatrix to, ConstMatrix share,
                            ConstMatrix dy, Matrix dfrom, Matrix dto, Matrix dshare) override {
    const Watched watched(watcher_, call("interpolate_backward", extent, 7));
    kernels_.interpolate_backward(extent, from, to, share, dy, dfrom, dto, dshare);
  }

 private:
  // matrices: that many of the extent are read or written.
  static KernelCall call(const char* kernel, Extent extent, double matrices) {
    return {.kernel = kernel,
            .kind = "element-wise",
            .bytes = kNumber * matrices * as_double(extent.rows * extent.columns)};
  }

  RwkvKernels& kernels_;
  KernelWatcher& watcher_;
};

}  // namespace

std::unique_ptr<DiagonalPlusRankOneKernels> make_watched_diagonal_plus_rank_one(
    DiagonalPlusRankOneKernels& kernels, KernelWatcher& watcher) {
  return std::make_unique<WatchedDiagonalPlusRankOne>(kernels, watcher);
}

std::unique_ptr<RwkvKernels> make_watched_rwkv(RwkvKernels& kernels, KernelWatcher& watcher) {
  return std::make_unique<WatchedRwkv>(kernels, watcher);
}

}  // namespace pronghorn
