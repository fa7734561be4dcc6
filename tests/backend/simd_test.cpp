#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "backend/cpu/scratch.h"
#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/simd_test.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// y = function number `which` of x, element by element, with partial vectors at the end.
void Apply(int which, const float* x, float* y, int64_t count) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < count; i += lanes) {
    const bool whole = i + lanes <= count;
    const auto rest = static_cast<size_t>(count - i);
    const FloatVector v = whole ? hn::LoadU(d, x + i) : LoadPartial(d, rest, x + i);
    FloatVector result = v;
    if (which == 0) result = Exp(d, v);
    if (which == 1) result = Log(d, v);
    if (which == 2) result = Sigmoid(d, v);
    if (which == 3) result = Softplus(d, v);
    if (which == 4) result = Tanh(d, v);
    if (whole) {
      hn::StoreU(result, d, y + i);
    } else {
      StorePartial(d, rest, result, y + i);
    }
  }
}

void Matmul(int64_t m, int64_t n, int64_t k, const float* a, const float* b, float* c,
            int64_t c_row) {
  SmallMatmul(m, n, k, a, k, 1, b, n, c, c_row, false);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(Apply);
HWY_EXPORT(Matmul);

namespace {

enum Function { kExp, kLog, kSigmoid, kSoftplus, kTanh };

std::vector<float> apply(Function which, const std::vector<float>& x) {
  std::vector<float> y(x.size() + 1, -77.0f);
  HWY_DYNAMIC_DISPATCH(Apply)(which, x.data(), y.data(), static_cast<int64_t>(x.size()));
  EXPECT_EQ(y.back(), -77.0f);  // nothing is written after the end
  y.pop_back();
  return y;
}

std::vector<float> range(float low, float high, int count) {
  std::vector<float> x;
  for (int i = 0; i < count; ++i) {
    x.push_back(low + (high - low) * static_cast<float>(i) / static_cast<float>(count - 1));
  }
  return x;
}

// Largest error, relative to |exact| + floor.
template <typename Exact>
double error_of(Function which, const std::vector<float>& x, double floor, Exact exact) {
  const std::vector<float> y = apply(which, x);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = exact(static_cast<double>(x[i]));
    const double error =
        std::abs(static_cast<double>(y[i]) - expected) / (std::abs(expected) + floor);
    if (!(error <= worst)) worst = std::isnan(error) ? 1e30 : error;
  }
  return worst;
}

// Two to four units in the last place of f32 (6e-8), which is what the polynomials promise.
constexpr double kRelative = 2.5e-7;

TEST(Simd, FunctionsAreAccurateOnEveryInstructionSet) {
  const double kTiny = 1e-37;  // below that f32 is not normal
  for (const std::string& set : cpu_instruction_sets()) {
    SCOPED_TRACE(set);
    set_cpu_instruction_set(set);
    EXPECT_LT(error_of(kExp, range(-87, 88, 20011), kTiny, [](double x) { return std::exp(x); }),
              kRelative);
    std::vector<float> positive;
    for (const float x : range(-86, 88, 20011)) positive.push_back(std::exp(x));
    EXPECT_LT(error_of(kLog, positive, 1e-9, [](double x) { return std::log(x); }), kRelative);
    EXPECT_LT(error_of(kLog, range(0.5f, 2.0f, 20011), 1e-9, [](double x) { return std::log(x); }),
              kRelative);
    EXPECT_LT(error_of(kSigmoid, range(-80, 80, 20011), kTiny,
                       [](double x) { return 1 / (1 + std::exp(-x)); }),
              2 * kRelative);
    EXPECT_LT(error_of(kSoftplus, range(-80, 100, 20011), kTiny,
                       [](double x) { return x > 50 ? x : std::log1p(std::exp(x)); }),
              2 * kRelative);
    EXPECT_LT(error_of(kTanh, range(-20, 20, 20011), 1, [](double x) { return std::tanh(x); }),
              kRelative);
  }
}

TEST(Simd, ExtremesOnEveryInstructionSet) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const std::string& set : cpu_instruction_sets()) {
    SCOPED_TRACE(set);
    set_cpu_instruction_set(set);
    const std::vector<float> x = {-infinity, -1e30f, -1e4f, -100, 100, 1e4f, 1e30f, infinity};
    for (const Function which : {kExp, kSigmoid, kTanh}) {
      for (const float y : apply(which, x)) EXPECT_TRUE(std::isfinite(y)) << which;
    }
    EXPECT_EQ(apply(kExp, {-100.0f})[0], 0.0f);
    EXPECT_EQ(apply(kExp, {-infinity})[0], 0.0f);
    EXPECT_GT(apply(kExp, {1e4f})[0], 2e38f);
    EXPECT_NEAR(apply(kSigmoid, {-1e4f})[0], 0.0f, 1e-37f);
    EXPECT_EQ(apply(kSigmoid, {1e4f})[0], 1.0f);
    EXPECT_EQ(apply(kSoftplus, {-100.0f})[0], 0.0f);
    EXPECT_EQ(apply(kSoftplus, {-infinity})[0], 0.0f);
    EXPECT_EQ(apply(kSoftplus, {1e4f})[0], 1e4f);
    EXPECT_EQ(apply(kSoftplus, {infinity})[0], infinity);
    EXPECT_EQ(apply(kTanh, {-1e4f})[0], -1.0f);
    EXPECT_EQ(apply(kTanh, {1e4f})[0], 1.0f);
    const std::vector<float> nan(19, std::numeric_limits<float>::quiet_NaN());
    for (const Function which : {kExp, kSigmoid, kSoftplus, kTanh}) {
      for (const float y : apply(which, nan)) EXPECT_TRUE(std::isnan(y)) << which;
    }
  }
}

TEST(Simd, SmallMatmulTouchesOnlyItsResult) {
  constexpr int64_t kM = 15, kK = 7, kGap = 3;
  for (const std::string& set : cpu_instruction_sets()) {
    set_cpu_instruction_set(set);
    for (int64_t n = 1; n < 50; ++n) {
      SCOPED_TRACE(set + " " + std::to_string(n));
      std::vector<float> a(kM * kK), b(static_cast<size_t>(kK * n));
      for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i % 5) - 2;
      for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i % 7) - 3;
      std::vector<float> c(static_cast<size_t>(kM * (n + kGap)), -77.0f);
      HWY_DYNAMIC_DISPATCH(Matmul)(kM, n, kK, a.data(), b.data(), c.data(), n + kGap);
      for (int64_t i = 0; i < kM; ++i) {
        for (int64_t j = 0; j < n + kGap; ++j) {
          float expected = j < n ? 0.0f : -77.0f;
          for (int64_t p = 0; j < n && p < kK; ++p) {
            expected += a[static_cast<size_t>(i * kK + p)] * b[static_cast<size_t>(p * n + j)];
          }
          ASSERT_EQ(c[static_cast<size_t>(i * (n + kGap) + j)], expected);  // small integers
        }
      }
    }
  }
}

TEST(Scratch, KeepsPiecesApartAndTheBufferForTheNextTask) {
  const auto task = [] {
    Scratch scratch;
    std::vector<std::pair<float*, int64_t>> pieces;
    const auto take = [&pieces](Scratch& from, int64_t count) {
      pieces.push_back({from.take(count), count});
      std::fill_n(pieces.back().first, count, static_cast<float>(pieces.size()));
    };
    for (int64_t count = 1; count < 40000; count += count + 3) take(scratch, count);
    const size_t own = pieces.size();
    {
      Scratch inner;
      take(inner, 50000);
    }
    take(scratch, 70000);  // over what the inner task had
    for (size_t i = 0; i < pieces.size(); ++i) {
      if (i == own) continue;
      EXPECT_EQ(reinterpret_cast<uintptr_t>(pieces[i].first) % 64, 0U);
      for (int64_t j = 0; j < pieces[i].second; ++j) {
        ASSERT_EQ(pieces[i].first[j], static_cast<float>(i + 1));
      }
    }
  };
  task();
  task();  // its blocks become one
  const int64_t before = memory_use().bytes;
  reset_memory_peak();
  task();
  EXPECT_EQ(memory_use().peak, before);
}

}  // namespace
}  // namespace pronghorn
#endif  // HWY_ONCE
