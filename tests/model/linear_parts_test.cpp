#include "layers/linear_parts.h"

#include <gtest/gtest.h>

#include <cmath>

namespace pronghorn {
namespace {

TEST(LinearParts, RetentionDecaysArePublishedOnes) {
  const std::vector<float> logs = retention_log_decays(8);
  ASSERT_EQ(logs.size(), 8u);
  // gamma = 1 - 2^(-5 - head); f32 holds logarithms to 6e-8 of themselves.
  EXPECT_NEAR(std::exp(static_cast<double>(logs[0])), 1 - 1.0 / 32, 1e-8);
  EXPECT_NEAR(std::exp(static_cast<double>(logs[7])), 1 - 1.0 / 4096, 1e-8);
}

TEST(LinearParts, LightningDecaysArePublishedOnesAndNeverGrow) {
  // 8 heads: slopes 1/2, 1/4, ...; in the first of 5 layers times 1 + 1e-5.
  const std::vector<float> first = lightning_log_decays(8, 0, 5);
  for (size_t h = 0; h < first.size(); ++h) {
    EXPECT_NEAR(first[h] / (-std::exp2(-1.0 - static_cast<double>(h)) * (1 + 1e-5)), 1, 1e-6);
  }
  // In the last one next to nothing is left; a head for multi-token prediction, which stands after
  // it, has the same, and so has the only layer of a model the first one's.
  const std::vector<float> last = lightning_log_decays(8, 4, 5);
  EXPECT_GT(last[0], -1e-5);
  EXPECT_EQ(lightning_log_decays(8, 5, 5), last);
  EXPECT_NEAR(lightning_log_decays(8, 0, 1)[0], -0.5 * (1 + 1e-5), 1e-6);
  for (const int64_t depth : {1, 2, 12}) {
    for (int64_t layer = 0; layer <= depth; ++layer) {
      for (const float log : lightning_log_decays(3, layer, depth)) EXPECT_LE(log, 0);
    }
  }
}

}  // namespace
}  // namespace pronghorn
