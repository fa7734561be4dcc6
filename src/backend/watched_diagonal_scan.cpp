// Watched diagonal scans.
#include "backend/watched_kernels.h"

namespace pronghorn {
namespace {

constexpr char kRecurrence[] = "recurrence", kElements[] = "element-wise";

int64_t rows_of(std::span<const ScanSegment> segments) {
  int64_t rows = 0;
  for (const ScanSegment& segment : segments) rows += segment.length;
  return rows;
}

class WatchedDiagonalScan final : public DiagonalScanKernels {
 public:
  WatchedDiagonalScan(DiagonalScanKernels& kernels, KernelWatcher& watcher)
      : kernels_(kernels), watcher_(watcher) {}

  void forward(const DiagonalScan& scan, std::span<const ScanSegment> segments,
               const Matrix& h) override {
    const Watched watched(watcher_, scanned("diagonal_forward", scan, rows_of(segments), 1));
    kernels_.forward(scan, segments, h);
  }
  void replay(const DiagonalScan& scan, std::span<const float* const> rows, bool fresh,
              float* state) override {
    const Watched watched(watcher_, scanned("diagonal_replay", scan, std::ssize(rows), 1));
    kernels_.replay(scan, rows, fresh, state);
  }
  void backward(const DiagonalScan& scan, std::span<const ScanSegment> segments,
                const ConstMatrix& h, const ConstMatrix& dh,
                const DiagonalScanGradients& gradients) override {
    const Watched watched(watcher_, scanned("diagonal_backward", scan, rows_of(segments), 2));
    kernels_.backward(scan, segments, h, dh, gradients);
  }
  void ssm_forward(const DiagonalSsm& scan, std::span<const ScanSegment> segments,
                   const Matrix& y) override {
    const Watched watched(watcher_, scanned("ssm_forward", scan, rows_of(segments), 1));
    kernels_.ssm_forward(scan, segments, y);
  }
  void ssm_replay(const DiagonalSsm& scan, std::span<const float* const> rows, bool fresh,
                  float* state) override {
    const Watched watched(watcher_, scanned("ssm_replay", scan, std::ssize(rows), 1));
    kernels_.ssm_replay(scan, rows, fresh, state);
  }
  void ssm_backward(const DiagonalSsm& scan, std::span<const ScanSegment> segments,
                    const ConstMatrix& dy, const DiagonalSsmGradients& gradients) override {
    const Watched watched(watcher_, scanned("ssm_backward", scan, rows_of(segments), 2));
    kernels_.ssm_backward(scan, segments, dy, gradients);
  }
  void rg_lru_gates(const RgLruGates& gates, const Matrix& log_a, const Matrix& x) override {
    const Watched watched(watcher_, gated("rg_lru_gates", gates, 5));
    kernels_.rg_lru_gates(gates, log_a, x);
  }
  void rg_lru_gates_backward(const RgLruGates& gates, const ConstMatrix& d_log_a,
                             const ConstMatrix& d_x, const RgLruGateGradients& gradients) override {
    const Watched watched(watcher_, gated("rg_lru_gates_backward", gates, 8));
    kernels_.rg_lru_gates_backward(gates, d_log_a, d_x, gradients);
  }

 private:
  // A product and a sum per channel.
  static KernelCall scanned(const char* kernel, const DiagonalScan& scan, int64_t rows,
                            double passes) {
    const double numbers = as_double(rows * scan.channels);
    return {.kernel = kernel,
            .kind = kRecurrence,
            .operations = passes * 2 * numbers,
            .bytes = passes * 3 * kNumber * numbers};
  }
  // A complex product, a sum and the real part of a product for each mode.
  static KernelCall scanned(const char* kernel, const DiagonalSsm& scan, int64_t rows,
                            double passes) {
    const double numbers = as_double(rows * scan.channels);
    return {.kernel = kernel,
            .kind = kRecurrence,
            .operations = passes * 12 * numbers * as_double(scan.modes),
            .bytes = passes * 2 * kNumber * numbers};
  }
  static KernelCall gated(const char* kernel, const RgLruGates& gates, double matrices) {
    return {.kernel = kernel,
            .kind = kElements,
            .bytes = kNumber * matrices * as_double(gates.rows * gates.channels)};
  }

  DiagonalScanKernels& kernels_;
  KernelWatcher& watcher_;
};

}  // namespace

std::unique_ptr<DiagonalScanKernels> make_watched_diagonal_scan(DiagonalScanKernels& kernels,
                                                                KernelWatcher& watcher) {
  return std::make_unique<WatchedDiagonalScan>(kernels, watcher);
}

}  // namespace pronghorn
