// How the work of the scans is shared out over threads, and sums over what the tasks computed.
#include "backend/scan.h"

#include <algorithm>
#include <utility>

#include "backend/cpu/scan_tasks.h"
#include "backend/segment_runs.h"
#include "base/threads.h"
#include "tensor/storage.h"

namespace pronghorn {
namespace {

using cpu_scan::kGroup;

// State elements x tokens worth a task of their own: about as long as a fork and join.
constexpr int64_t kTaskWork = 1 << 13;

float* floats(const Storage& storage) { return reinterpret_cast<float*>(storage.data()); }

Storage scratch_of(int64_t count) {
  return Storage(static_cast<size_t>(std::max<int64_t>(1, count)) * sizeof(float));
}

int64_t group_count(const SelectiveScan& scan) { return (scan.channels + kGroup - 1) / kGroup; }

int64_t grain_of(int64_t work) {
  return std::max<int64_t>(1, kTaskWork / std::max<int64_t>(1, work));
}

// Decay rates of every group, one after another: group_count() * state_size * kGroup floats. Made
// anew by each call: nothing here knows when training changes A_log.
void decay_rates(const SelectiveScan& scan, float* rates) {
  const int64_t size = scan.state_size * kGroup;
  parallel_for(group_count(scan), grain_of(size), [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      const int64_t channel = group * kGroup;
      cpu_scan::decay_rates(scan.A_log, channel, std::min(kGroup, scan.channels - channel),
                            scan.state_size, rates + group * size);
    }
  });
}

// Writes or adds rows x columns sums of `parts` matrices that lie part_stride apart, added in
// order.
template <typename At>
void write_sums(const Matrix& to, int64_t rows, int64_t columns, int64_t parts, const At& at) {
  if (to.data == nullptr) return;
  const int64_t grain = grain_of(columns * parts);
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        float sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += at(part, row, column);
        float& target = to.data[row * to.stride + column];
        target = to.accumulate ? target + sum : sum;
      }
    }
  });
}

class CpuScanKernels final : public ScanKernels {
 public:
  void selective_forward(const SelectiveScan& scan, std::span<const ScanSegment> segments, float* y,
                         int64_t y_stride) override {
    const int64_t groups = group_count(scan), size = scan.state_size * kGroup;
    const Storage rates = scratch_of(groups * size);
    decay_rates(scan, floats(rates));
    const SegmentRuns<ScanSegment> runs(segments);
    int64_t rows = 0;
    for (const ScanSegment& segment : segments) rows += segment.length;
    const int64_t grain = grain_of(size * rows / std::max<int64_t>(1, runs.count()));
    parallel_for(groups * runs.count(), grain, [&](int64_t begin, int64_t end) {
      const Storage state = scratch_of(size);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task % groups;
        runs.for_each(task / groups, false, [&](int64_t segment) {
          cpu_scan::forward(scan, segments[static_cast<size_t>(segment)], group * kGroup,
                            floats(rates) + group * size, floats(state), y, y_stride);
        });
      }
    });
  }

  void selective_replay(const SelectiveScan& scan, std::span<const float* const> rows, bool fresh,
                        float* state) override {
    const int64_t groups = group_count(scan), size = scan.state_size * kGroup;
    const Storage rates = scratch_of(groups * size);
    decay_rates(scan, floats(rates));
    const int64_t grain = grain_of(size * static_cast<int64_t>(rows.size()));
    parallel_for(groups, grain, [&](int64_t begin, int64_t end) {
      const Storage storage = scratch_of(size);
      for (int64_t group = begin; group < end; ++group) {
        cpu_scan::replay(scan, rows, group * kGroup, floats(rates) + group * size, fresh,
                         floats(storage), state);
      }
    });
  }

  void selective_backward(const SelectiveScan& scan, std::span<const ScanSegment> segments,
                          const ConstMatrix& dy, const SelectiveScanGradients& gradients) override {
    const int64_t groups = group_count(scan), states = scan.state_size, size = states * kGroup;
    const auto count = static_cast<int64_t>(segments.size());
    int64_t rows = 0;
    for (const ScanSegment& segment : segments) {
      rows = std::max(rows, segment.first_row + segment.length);
    }
    const Storage rates = scratch_of(groups * size);
    decay_rates(scan, floats(rates));
    const Storage B_sums = scratch_of(groups * rows * states);
    const Storage C_sums = scratch_of(groups * rows * states);
    const int64_t parameter_size = (states + 2) * kGroup;
    const Storage parameter_sums = scratch_of(count * groups * parameter_size);
    const SegmentRuns<ScanSegment> runs(segments);
    const int64_t grain = grain_of(4 * size * rows / std::max<int64_t>(1, runs.count()));
    parallel_for(groups * runs.count(), grain, [&](int64_t begin, int64_t end) {
      const Storage scratch = scratch_of(cpu_scan::backward_scratch(states));
      const auto run_segment = [&](int64_t segment, int64_t group) {
        cpu_scan::BackwardTask task{};
        task.scan = &scan;
        task.segment = &segments[static_cast<size_t>(segment)];
        task.dy = dy;
        task.gradients = &gradients;
        task.channel = group * kGroup;
        task.count = std::min(kGroup, scan.channels - task.channel);
        task.rates = floats(rates) + group * size;
        task.scratch = floats(scratch);
        task.B_sums = floats(B_sums) + group * rows * states;
        task.C_sums = floats(C_sums) + group * rows * states;
        task.parameter_sums = floats(parameter_sums) + (segment * groups + group) * parameter_size;
        cpu_scan::backward(task);
      };
      for (int64_t index = begin; index < end; ++index) {
        runs.for_each(index / groups, true,
                      [&](int64_t segment) { run_segment(segment, index % groups); });
      }
    });
    // Sums over channels and segments in a fixed order, whoever computed the parts.
    for (const auto& [sums, to] :
         {std::pair{&B_sums, &gradients.B}, std::pair{&C_sums, &gradients.C}}) {
      write_sums(*to, rows, states, groups,
                 [&, sums = sums](int64_t group, int64_t row, int64_t n) {
                   return floats(*sums)[(group * rows + row) * states + n];
                 });
    }
    const auto parameter = [&](int64_t segment, int64_t channel, int64_t n) {
      return floats(parameter_sums)[(segment * groups + channel / kGroup) * parameter_size +
                                    n * kGroup + channel % kGroup];
    };
    write_sums(gradients.A_log, scan.channels, states, count,
               [&](int64_t segment, int64_t channel, int64_t n) {
                 // dA / dA_log = A; the rates are A log2(e).
                 const float rate =
                     floats(rates)[channel / kGroup * size + n * kGroup + channel % kGroup];
                 return parameter(segment, channel, n) * rate * 0.693147180559945309f;
               });
    write_sums(gradients.dt_bias, 1, scan.channels, count,
               [&](int64_t segment, int64_t, int64_t channel) {
                 return parameter(segment, channel, states);
               });
    write_sums(gradients.D, 1, scan.channels, count,
               [&](int64_t segment, int64_t, int64_t channel) {
                 return parameter(segment, channel, states + 1);
               });
  }
};

}  // namespace

std::unique_ptr<ScanKernels> make_cpu_scan_kernels() { return std::make_unique<CpuScanKernels>(); }

}  // namespace pronghorn
