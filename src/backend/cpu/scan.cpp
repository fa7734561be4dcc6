// How the work of the scans is shared out over threads, and sums over what the tasks computed.
#include "backend/scan.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
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

// Of every group, one after another. In f64, so that all instruction sets have the same.
void decay_rates(const ConstMatrix& A_log, int64_t channels, int64_t states, float* rates) {
  constexpr double kLeast = -125, kMost = 127;  // of exponents
  // e^a log2(e) = 2^(a log2(e) + log2(log2(e))).
  const double log2_e = std::numbers::log2e, shift = std::log2(log2_e);
  const int64_t size = states * kGroup, groups = (channels + kGroup - 1) / kGroup;
  constexpr int64_t kExponential = 8;  // takes about as long as so many updates of a state
  parallel_for(groups, grain_of(kExponential * size), [&](int64_t begin, int64_t end) {
    std::fill(rates + begin * size, rates + end * size, 0.0f);
    for (int64_t channel = begin * kGroup; channel < std::min(channels, end * kGroup); ++channel) {
      float* to = rates + channel / kGroup * size + channel % kGroup;
      for (int64_t n = 0; n < states; ++n) {
        const double exponent = static_cast<double>(A_log.row(channel)[n]) * log2_e + shift;
        to[n * kGroup] = static_cast<float>(-std::exp2(std::clamp(exponent, kLeast, kMost)));
      }
    }
  });
}

// The rates that a scan comes with, or its own.
class Rates {
 public:
  explicit Rates(const SelectiveScan& scan) : data_(scan.rates) {
    if (data_ != nullptr) return;
    const int64_t size = group_count(scan) * scan.state_size * kGroup;
    own_.emplace(static_cast<size_t>(size) * sizeof(float));
    decay_rates(scan.A_log, scan.channels, scan.state_size, floats(*own_));
    data_ = floats(*own_);
  }
  const float* data() const { return data_; }

 private:
  std::optional<Storage> own_;
  const float* data_;
};

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
  int64_t rates_size(int64_t channels, int64_t state_size) override {
    return (channels + kGroup - 1) / kGroup * state_size * kGroup;
  }

  void make_rates(const ConstMatrix& A_log, int64_t channels, int64_t state_size,
                  float* rates) override {
    decay_rates(A_log, channels, state_size, rates);
  }

  void selective_forward(const SelectiveScan& scan, std::span<const ScanSegment> segments, float* y,
                         int64_t y_stride) override {
    const int64_t groups = group_count(scan), size = scan.state_size * kGroup;
    const Rates rates(scan);
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
                            rates.data() + group * size, floats(state), y, y_stride);
        });
      }
    });
  }

  void selective_replay(const SelectiveScan& scan, std::span<const float* const> rows, bool fresh,
                        float* state) override {
    const int64_t groups = group_count(scan), size = scan.state_size * kGroup;
    const Rates rates(scan);
    const int64_t grain = grain_of(size * static_cast<int64_t>(rows.size()));
    parallel_for(groups, grain, [&](int64_t begin, int64_t end) {
      const Storage storage = scratch_of(size);
      for (int64_t group = begin; group < end; ++group) {
        cpu_scan::replay(scan, rows, group * kGroup, rates.data() + group * size, fresh,
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
    const Rates rates(scan);
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
        task.rates = rates.data() + group * size;
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
                     rates.data()[channel / kGroup * size + n * kGroup + channel % kGroup];
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
