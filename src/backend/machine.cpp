#include "backend/machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "backend/cpu/ceilings.h"
#include "backend/cpu/cpu_features.h"
#include "base/threads.h"
#include "tensor/storage.h"

namespace pronghorn {
namespace {

using Clock = std::chrono::steady_clock;

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  std::string line;
  while (std::getline(info, line)) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

// The best rate of `run`, which does one repetition and returns its amount, within `seconds`.
template <typename Run>
double best_rate(double seconds, Run run) {
  double best = 0;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  do {
    const auto start = Clock::now();
    const double amount = run();
    const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, amount / elapsed);
  } while (Clock::now() < end);
  return best;
}

// The best rate of a loop on all threads, in 1e9 operations a second.
double best_gflops(double seconds, double (*loop)(int64_t), int64_t steps) {
  const int threads = thread_count();
  return 1e-9 * best_rate(seconds, [&] {
           std::atomic<int64_t> operations{0};
           parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
             for (int64_t i = begin; i < end; ++i) operations += static_cast<int64_t>(loop(steps));
           });
           return static_cast<double>(operations);
         });
}

double best_read_rate(double seconds) {
  constexpr size_t kBytes = size_t{1} << 29;  // several times any third cache
  constexpr int64_t kTask = 1 << 22;          // numbers: 16 MB, eight streams of a huge page each
  const Storage storage(kBytes);
  const auto* data = reinterpret_cast<const float*>(storage.data());
  constexpr auto kTasks = static_cast<int64_t>(kBytes / sizeof(float)) / kTask;
  parallel_for(kTasks, 1, [&](int64_t begin, int64_t end) {
    std::memset(storage.data() + static_cast<size_t>(begin * kTask) * sizeof(float), 0,
                static_cast<size_t>((end - begin) * kTask) * sizeof(float));
  });
  std::atomic<int> sum{0};
  return 1e-9 * best_rate(seconds, [&] {
           parallel_for(kTasks, 1, [&](int64_t begin, int64_t end) {
             for (int64_t i = begin; i < end; ++i) {
               sum += static_cast<int>(read_streams(data + i * kTask, kTask));
             }
           });
           return static_cast<double>(kBytes);
         });
}

double nanoseconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double, std::nano>(end - begin).count();
}

// The shortest fork and the shortest join of many.
void measure_forks(double seconds, MachineCeilings& machine) {
  const int threads = thread_count();
  if (threads == 1) return;
  // Longer than a fork takes: who has not come by then is not there, and that round says nothing.
  constexpr double kPatience = 20000;
  double fork = 0, join = 0;
  struct alignas(64) Piece {
    Clock::time_point begin, end;
  };
  std::vector<Piece> pieces(static_cast<size_t>(threads));
  const auto later = [](Clock::time_point Piece::*time) {
    return [time](const Piece& a, const Piece& b) { return a.*time < b.*time; };
  };
  const auto stop = Clock::now() + std::chrono::duration<double>(seconds);
  while (Clock::now() < stop) {
    std::atomic<int> here{0};
    const auto start = Clock::now();
    parallel_for(threads, 1, [&](int64_t first, int64_t) {
      Piece& piece = pieces[static_cast<size_t>(first)];
      piece.begin = Clock::now();
      ++here;
      // Nobody takes a second piece before all have one.
      while (here < threads && nanoseconds_between(piece.begin, Clock::now()) < kPatience) {
      }
      piece.end = Clock::now();
    });
    const auto end = Clock::now();
    const auto begun = std::ranges::max_element(pieces, later(&Piece::begin))->begin;
    const auto done = std::ranges::max_element(pieces, later(&Piece::end))->end;
    const double forked = nanoseconds_between(start, begun),
                 joined = nanoseconds_between(done, end);
    if (forked >= kPatience) continue;
    fork = fork == 0 ? forked : std::min(fork, forked);
    join = join == 0 ? joined : std::min(join, joined);
  }
  machine.fork_nanoseconds = fork;
  machine.join_nanoseconds = join;
}

}  // namespace

MachineCeilings measure_machine(double seconds) {
  MachineCeilings machine;
  machine.cpu = cpu_name();
  machine.instruction_set = cpu_instruction_set();
  machine.cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  machine.threads = thread_count();
  // Steps for some 300 microseconds, far above a fork and join.
  constexpr int64_t kVectorSteps = 1 << 16, kTileSteps = 1 << 14;
  machine.f32_gflops = best_gflops(seconds / 4, run_multiply_adds_f32, kVectorSteps);
  if (cpu_features().amx) {
    machine.bf16_gflops = best_gflops(seconds / 4, run_multiply_adds_amx, kTileSteps);
  } else if (cpu_features().bf16) {
    machine.bf16_gflops = best_gflops(seconds / 4, run_multiply_adds_bf16, kVectorSteps);
  } else {
    machine.bf16_gflops = machine.f32_gflops;
  }
  machine.int8_gops = best_gflops(seconds / 4,
                                  cpu_features().amx    ? run_multiply_adds_amx_int8
                                  : cpu_features().vnni ? run_multiply_adds_vnni
                                                        : run_multiply_adds_int8,
                                  cpu_features().amx ? kTileSteps : kVectorSteps);
  machine.read_gigabytes_per_second = best_read_rate(seconds / 4);
  release_cached_memory();
  measure_forks(seconds / 20, machine);
  return machine;
}

}  // namespace pronghorn
