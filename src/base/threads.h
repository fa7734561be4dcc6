// A pool of threads with a cheap fork and join: workers spin for a short while, then sleep.
#pragma once

#include <cstdint>
#include <type_traits>

namespace pronghorn {

// Number of threads that parallel_for uses, the calling one included. Starts as the number of
// processors available to the process, or PRONGHORN_THREADS if that is set.
int thread_count();

// Sets the number of threads (at least 1). Not to be called from inside parallel_for.
void set_thread_count(int threads);

namespace detail {
using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);
void run_parallel(int64_t count, int64_t grain, RangeFunction function, void* context);
}  // namespace detail

// Calls body(begin, end) on disjoint ranges that cover [0, count), each of `grain` indexes (the
// last may be shorter), from several threads; returns when all are done. The ranges do not depend
// on the number of threads, only who runs which does, so a body whose result depends on its range
// alone gives the same bits on any number of threads. Calls from inside a body run serially. The
// first exception a body throws is rethrown here.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  detail::run_parallel(
      count, grain,
      [](void* context, int64_t begin, int64_t end) {
        (*static_cast<Plain*>(context))(begin, end);
      },
      const_cast<std::remove_const_t<Plain>*>(&body));
}

}  // namespace pronghorn
