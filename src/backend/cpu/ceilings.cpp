#include "backend/cpu/ceilings.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/ceilings.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#if HWY_ONCE
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/error.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Tag = hn::ScalableTag<float>;

double MultiplyAdds(int64_t steps) {
  constexpr int kSums = 12;  // covers a latency of 6 cycles at 2 a cycle, and fits 16 registers
  const Tag d;
  const auto left = hn::Set(d, 0.5f), right = hn::Set(d, 0.25f);
  hn::Vec<Tag> sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = hn::Set(d, static_cast<float>(i));
  for (int64_t step = 0; step < steps; ++step) {
    for (int i = 0; i < kSums; ++i) sums[i] = hn::MulAdd(left, sums[i], right);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = hn::Add(sums[0], sums[i]);
  // Uses the sums, so that the loop is not dropped; none of them can be this large.
  if (hn::GetLane(hn::SumOfLanes(d, sums[0])) > 1e30f) return 0;
  return 2.0 * kSums * static_cast<double>(hn::Lanes(d)) * static_cast<double>(steps);
}

float ReadStreams(const float* data, int64_t count) {
  constexpr int kStreams = 8;
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t length = count / kStreams;
  hn::Vec<Tag> sums[kStreams];
  for (int s = 0; s < kStreams; ++s) sums[s] = hn::Zero(d);
  for (int64_t i = 0; i + lanes <= length; i += lanes) {
    for (int s = 0; s < kStreams; ++s) {
      sums[s] = hn::Add(sums[s], hn::LoadU(d, data + s * length + i));
    }
  }
  for (int s = 1; s < kStreams; ++s) sums[0] = hn::Add(sums[0], sums[s]);
  return hn::GetLane(hn::SumOfLanes(d, sums[0]));
}

}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(MultiplyAdds);
HWY_EXPORT(ReadStreams);

double run_multiply_adds_f32(int64_t steps) { return HWY_DYNAMIC_DISPATCH(MultiplyAdds)(steps); }

float read_streams(const float* data, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(ReadStreams)(data, count);
}

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bf16"))) double run_multiply_adds_bf16(int64_t steps) {
  constexpr int kSums = 12;
  const auto ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  __m512 sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t step = 0; step < steps; ++step) {
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], ones, ones);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  if (_mm512_cvtss_f32(sums[0]) > 1e30f) return 0;  // cannot be; keeps the loop
  return 2.0 * kSums * 32 * static_cast<double>(steps);
}
#else
double run_multiply_adds_bf16(int64_t) { throw Error("machine", "no bf16 instructions here"); }
#endif

}  // namespace pronghorn
#endif
