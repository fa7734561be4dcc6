#include "base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

namespace pronghorn {
namespace {

class ThreadsTest : public testing::Test {
 protected:
  ~ThreadsTest() override { set_thread_count(before_); }
  const int before_ = thread_count();
};

TEST_F(ThreadsTest, EveryIndexRunsOnce) {
  for (const int threads : {1, 2, 4, 7}) {
    set_thread_count(threads);
    for (const int64_t count : {0, 1, 5, 64, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
      parallel_for(count, 3, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++runs[static_cast<size_t>(i)];
      });
      for (const auto& times : runs) ASSERT_EQ(times, 1);
    }
  }
}

TEST_F(ThreadsTest, TheFirstExceptionIsRethrownAndThePoolGoesOn) {
  set_thread_count(4);
  const auto fail = [](int64_t begin, int64_t) {
    if (begin >= 40) throw std::runtime_error("at 40");
  };
  EXPECT_THROW(parallel_for(100, 1, fail), std::runtime_error);
  std::atomic<int64_t> sum = 0;
  parallel_for(100, 1, [&](int64_t begin, int64_t) { sum += begin; });
  EXPECT_EQ(sum, 4950);
}

// A worker that comes to a job as it is closed may find the gate already holding the order to stop.
TEST_F(ThreadsTest, StopsRightBehindAJob) {
  std::atomic<int64_t> sum = 0;
  for (int i = 0; i < 3000; ++i) {
    set_thread_count(4);
    for (int job = 0; job < 3; ++job) {
      parallel_for(4, 1, [&](int64_t begin, int64_t) { sum += begin; });
    }
    set_thread_count(1);
  }
  EXPECT_EQ(sum, 3000 * 3 * 6);
}

}  // namespace
}  // namespace pronghorn
