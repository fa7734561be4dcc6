#include "base/log.h"

#include <gtest/gtest.h>

namespace pronghorn {
namespace {

TEST(Durations, ReadAsPeopleSayThem) {
  EXPECT_EQ(format_duration(0), "0.0s");
  EXPECT_EQ(format_duration(59.94), "59.9s");
  EXPECT_EQ(format_duration(59.96), "1m 00s");  // not 60.0s
  EXPECT_EQ(format_duration(200), "3m 20s");
  EXPECT_EQ(format_duration(3599.7), "1h 00m");
}

}  // namespace
}  // namespace pronghorn
