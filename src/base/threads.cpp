#include "base/threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/fork_count.h"

namespace pronghorn {
namespace {

// About 50 microseconds: longer than the serial gaps between two kernels of a small model.
constexpr int kSpinRounds = 2000;

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int available_processors() {
  if (const char* value = std::getenv("PRONGHORN_THREADS")) {
    const int threads = std::atoi(value);
    if (threads > 0) return std::min(threads, 1024);
  }
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

thread_local bool inside_parallel = false;

class ThreadPool {
 public:
  ThreadPool() : threads_(available_processors()) {}
  ~ThreadPool() { stop_workers(); }

  int threads() const { return threads_; }
  int64_t forks() const { return forks_.load(std::memory_order_relaxed); }

  void set_threads(int threads) {
    std::lock_guard<std::mutex> lock(run_mutex_);
    stop_workers();
    threads_ = std::max(1, threads);
  }

  void run(int64_t count, int64_t grain, detail::RangeFunction function, void* context) {
    // One job at a time; a second caller thread waits for its turn.
    std::lock_guard<std::mutex> run_lock(run_mutex_);
    start_workers();
    forks_.store(forks_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    count_ = count;
    grain_ = grain;
    function_ = function;
    context_ = context;
    error_ = nullptr;
    next_.store(0, std::memory_order_relaxed);
    ++generation_;
    gate_.store(generation_ << kGenerationShift, std::memory_order_seq_cst);  // open, nobody inside
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      { std::lock_guard<std::mutex> lock(sleep_mutex_); }
      wake_.notify_all();
    }
    work();
    // Whoever has not come in by now is not waited for: on a busy machine a worker may not run for
    // milliseconds, and the work is done without it.
    gate_.fetch_or(kClosed, std::memory_order_acq_rel);
    for (int spins = 0; (gate_.load(std::memory_order_acquire) & kInside) != 0; ++spins) {
      if (spins < kSpinRounds) {
        pause_briefly();
      } else {
        sched_yield();  // the one we wait for may need this processor
      }
    }
    if (error_) std::rethrow_exception(error_);
  }

 private:
  // The gate of the current job: its generation, whether it is closed, and how many workers are
  // inside.
  static constexpr int kGenerationShift = 16;
  static constexpr uint64_t kClosed = 1u << 15;
  static constexpr uint64_t kInside = kClosed - 1;

  void work() {
    inside_parallel = true;
    try {
      while (true) {
        const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
        if (begin >= count_) break;
        function_(context_, begin, std::min(count_, begin + grain_));
      }
    } catch (...) {
      std::lock_guard<std::mutex> lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
      next_.store(count_, std::memory_order_relaxed);
    }
    inside_parallel = false;
  }

  static bool newer(uint64_t gate, uint64_t seen) { return gate >> kGenerationShift != seen; }

  void worker_loop(uint64_t seen) {
    while (true) {
      int spins = 0;
      uint64_t gate = gate_.load(std::memory_order_acquire);
      while (!newer(gate, seen)) {
        if (++spins < kSpinRounds) {
          pause_briefly();
        } else {
          sleepers_.fetch_add(1, std::memory_order_seq_cst);
          std::unique_lock<std::mutex> lock(sleep_mutex_);
          wake_.wait(lock, [&] { return newer(gate_.load(std::memory_order_seq_cst), seen); });
          sleepers_.fetch_sub(1, std::memory_order_seq_cst);
        }
        gate = gate_.load(std::memory_order_acquire);
      }
      // Come in unless the job has been closed meanwhile.
      while ((gate & kClosed) == 0 &&
             !gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) {
      }
      seen = gate >> kGenerationShift;
      if ((gate & kClosed) != 0) {
        // Asked of the gate that `seen` now holds, which may be the one that says so.
        if (stopping_) return;
        continue;
      }
      work();
      gate_.fetch_sub(1, std::memory_order_release);
    }
  }

  void start_workers() {
    if (!workers_.empty() || threads_ == 1) return;
    stopping_ = false;
    const uint64_t seen = generation_;
    for (int i = 1; i < threads_; ++i) {
      workers_.emplace_back([this, seen] { worker_loop(seen); });
    }
  }

  void stop_workers() {
    if (workers_.empty()) return;
    stopping_ = true;
    {
      std::lock_guard<std::mutex> lock(sleep_mutex_);
      gate_.store(++generation_ << kGenerationShift | kClosed);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
  }

  int threads_;
  std::vector<std::thread> workers_;
  std::mutex run_mutex_, sleep_mutex_, error_mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> gate_{kClosed};
  uint64_t generation_ = 0;  // of the newest job
  std::atomic<int64_t> forks_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0, grain_ = 1;
  detail::RangeFunction function_ = nullptr;
  void* context_ = nullptr;
  std::exception_ptr error_;
  std::atomic<bool> stopping_{false};
};

ThreadPool& pool() {
  static ThreadPool instance;
  return instance;
}

}  // namespace

int64_t fork_count() { return pool().forks(); }

int thread_count() { return pool().threads(); }

void set_thread_count(int threads) { pool().set_threads(threads); }

void detail::run_parallel(int64_t count, int64_t grain, RangeFunction function, void* context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  if (inside_parallel || count <= grain || pool().threads() == 1) {
    for (int64_t begin = 0; begin < count; begin += grain) {
      function(context, begin, std::min(count, begin + grain));
    }
    return;
  }
  pool().run(count, grain, function, context);
}

}  // namespace pronghorn
