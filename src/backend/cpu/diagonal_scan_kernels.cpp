// How the work of diagonal scans is shared out over threads, and sums over what the tasks computed.
#include <algorithm>

#include "backend/cpu/diagonal_scan_tasks.h"
#include "backend/segment_runs.h"
#include "base/threads.h"
#include "tensor/storage.h"

namespace pronghorn {
namespace {

using cpu_diagonal_scan::Group;
using cpu_diagonal_scan::kGroup;

// Updates of a state element worth a task of their own: about as long as a fork and join. One of a
// complex mode costs as much as four of a real state.
constexpr int64_t kTaskWork = 1 << 14;
constexpr int64_t kModeWork = 4;

float* floats(const Storage& storage) { return reinterpret_cast<float*>(storage.data()); }

Storage scratch_of(int64_t count) {
  return Storage(static_cast<size_t>(std::max<int64_t>(1, count)) * sizeof(float));
}

int64_t group_count(int64_t channels) { return (channels + kGroup - 1) / kGroup; }

Group group_of(int64_t channels, int64_t index) {
  return {index * kGroup, std::min(kGroup, channels - index * kGroup)};
}

int64_t grain_of(int64_t work) {
  return std::max<int64_t>(1, kTaskWork / std::max<int64_t>(1, work));
}

// Tokens of all segments.
int64_t row_count(std::span<const ScanSegment> segments) {
  int64_t rows = 0;
  for (const ScanSegment& segment : segments) rows += segment.length;
  return rows;
}

// Calls body(segment, group) for all pairs, those of one run of segments and of the same group one
// after the other, if `backward` from the last to the first. work: of a token of a group.
// scratch_size: floats for a task, given as body's third argument; fourth: the index of the pair,
// segment after segment.
template <typename Body>
void for_tasks(int64_t channels, std::span<const ScanSegment> segments, bool backward, int64_t work,
               int64_t scratch_size, const Body& body) {
  const int64_t groups = group_count(channels);
  const SegmentRuns<ScanSegment> runs(segments);
  const int64_t rows = row_count(segments) / std::max<int64_t>(1, runs.count());  // of a run
  parallel_for(groups * runs.count(), grain_of(work * rows), [&](int64_t begin, int64_t end) {
    const Storage scratch = scratch_of(scratch_size);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task % groups;
      runs.for_each(task / groups, backward, [&](int64_t segment) {
        body(segments[static_cast<size_t>(segment)], group_of(channels, group), floats(scratch),
             segment * groups + group);
      });
    }
  });
}

// Writes or adds the sums of `parts` matrices [rows, columns], element by element in their order.
template <typename At>
void write_sums(const Matrix& to, int64_t rows, int64_t columns, int64_t parts, const At& at) {
  if (to.data == nullptr) return;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      float sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += at(part, row, column);
      float& target = to.row(row)[column];
      target = to.accumulate ? target + sum : sum;
    }
  }
}

class CpuDiagonalScanKernels final : public DiagonalScanKernels {
 public:
  void forward(const DiagonalScan& scan, std::span<const ScanSegment> segments,
               const Matrix& h) override {
    for_tasks(scan.channels, segments, false, kGroup, 0,
              [&](const ScanSegment& segment, Group group, float*, int64_t) {
                cpu_diagonal_scan::forward(scan, segment, group, h);
              });
  }

  void replay(const DiagonalScan& scan, std::span<const float* const> rows, bool fresh,
              float* state) override {
    const int64_t work = kGroup * static_cast<int64_t>(rows.size());
    parallel_for(group_count(scan.channels), grain_of(work), [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        cpu_diagonal_scan::replay(scan, rows, group_of(scan.channels, group), fresh, state);
      }
    });
  }

  void backward(const DiagonalScan& scan, std::span<const ScanSegment> segments,
                const ConstMatrix& h, const ConstMatrix& dh,
                const DiagonalScanGradients& gradients) override {
    const int64_t groups = group_count(scan.channels);
    const auto count = static_cast<int64_t>(segments.size());
    const Storage sums = scratch_of(scan.constant ? count * groups * kGroup : kGroup);
    for_tasks(scan.channels, segments, true, 2 * kGroup, 0,
              [&](const ScanSegment& segment, Group group, float*, int64_t task) {
                float* own = floats(sums) + (scan.constant ? task * kGroup : 0);
                cpu_diagonal_scan::backward(scan, segment, group, h, dh, gradients, own);
              });
    if (!scan.constant) return;
    write_sums(gradients.log_a, 1, scan.channels, count,
               [&](int64_t segment, int64_t, int64_t channel) {
                 return floats(sums)[segment * groups * kGroup + channel];
               });
  }

  void ssm_forward(const DiagonalSsm& scan, std::span<const ScanSegment> segments,
                   const Matrix& y) override {
    for_tasks(scan.channels, segments, false, kModeWork * scan.modes * kGroup,
              scan.state_rows() * kGroup,
              [&](const ScanSegment& segment, Group group, float* scratch, int64_t) {
                cpu_diagonal_scan::ssm_forward(scan, segment, group, scratch, y);
              });
  }

  void ssm_replay(const DiagonalSsm& scan, std::span<const float* const> rows, bool fresh,
                  float* state) override {
    const int64_t work = kModeWork * scan.modes * kGroup * static_cast<int64_t>(rows.size());
    parallel_for(group_count(scan.channels), grain_of(work), [&](int64_t begin, int64_t end) {
      const Storage scratch = scratch_of(scan.state_rows() * kGroup);
      for (int64_t group = begin; group < end; ++group) {
        cpu_diagonal_scan::ssm_replay(scan, rows, group_of(scan.channels, group), fresh,
                                      floats(scratch), state);
      }
    });
  }

  void ssm_backward(const DiagonalSsm& scan, std::span<const ScanSegment> segments,
                    const ConstMatrix& dy, const DiagonalSsmGradients& gradients) override {
    const int64_t groups = group_count(scan.channels), rows = scan.state_rows();
    const int64_t size = (2 * rows + 1) * kGroup;
    const auto count = static_cast<int64_t>(segments.size());
    const Storage sums = scratch_of(count * groups * size);
    for_tasks(scan.channels, segments, true, 4 * kModeWork * scan.modes * kGroup, 2 * rows * kGroup,
              [&](const ScanSegment& segment, Group group, float* scratch, int64_t task) {
                cpu_diagonal_scan::ssm_backward(scan, segment, group, dy, gradients.u, scratch,
                                                floats(sums) + task * size);
              });
    const auto write = [&](const Matrix& to, int64_t first, int64_t height) {
      write_sums(to, height, scan.channels, count,
                 [&](int64_t segment, int64_t row, int64_t channel) {
                   return floats(sums)[(segment * groups + channel / kGroup) * size +
                                       (first + row) * kGroup + channel % kGroup];
                 });
    };
    write(gradients.poles, 0, rows);
    write(gradients.reads, rows, rows);
    write(gradients.D, 2 * rows, 1);
  }

  void rg_lru_gates(const RgLruGates& gates, const Matrix& log_a, const Matrix& x) override {
    cpu_diagonal_scan::rg_lru_gates(gates, log_a, x);
  }

  void rg_lru_gates_backward(const RgLruGates& gates, const ConstMatrix& d_log_a,
                             const ConstMatrix& d_x, const RgLruGateGradients& gradients) override {
    cpu_diagonal_scan::rg_lru_gates_backward(gates, d_log_a, d_x, gradients);
  }
};

}  // namespace

std::unique_ptr<DiagonalScanKernels> make_cpu_diagonal_scan_kernels() {
  return std::make_unique<CpuDiagonalScanKernels>();
}

}  // namespace pronghorn
