#include "backend/cpu/ceilings.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/ceilings.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#if HWY_ONCE
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "backend/cpu/amx_tiles.h"
#include "base/error.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

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

#undef PRONGHORN_BYTE_PRODUCTS
#if HWY_TARGET <= HWY_AVX3
#define PRONGHORN_BYTE_PRODUCTS(op) _mm512_##op
#elif HWY_TARGET == HWY_AVX2
#define PRONGHORN_BYTE_PRODUCTS(op) _mm256_##op
#elif HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
#define PRONGHORN_BYTE_PRODUCTS(op) _mm_##op
#endif

// As kernels without VNNI do: pairs in 16 bits, of which neighbours are added in 32.
double MultiplyAddsInt8([[maybe_unused]] int64_t steps) {
#ifdef PRONGHORN_BYTE_PRODUCTS
  constexpr int kSums = 8;
  using IntTag = hn::ScalableTag<int32_t>;
  const IntTag d;
  auto left = hn::Set(d, 0x03020100), right = hn::Set(d, 0x01020301), ones = hn::Set(d, 0x10001);
  hn::Vec<IntTag> sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = hn::Set(d, i);
  for (int64_t step = 0; step < steps; ++step) {
    // The compiler may not know that each step is the same.
    asm volatile("" : "+x"(left.raw));
    for (int i = 0; i < kSums; ++i) {
      const auto pairs = PRONGHORN_BYTE_PRODUCTS(maddubs_epi16)(left.raw, right.raw);
      sums[i] =
          hn::Add(sums[i], hn::Vec<IntTag>{PRONGHORN_BYTE_PRODUCTS(madd_epi16)(pairs, ones.raw)});
      asm volatile("" : "+x"(left.raw));
    }
  }
  for (int i = 1; i < kSums; ++i) sums[0] = hn::Add(sums[0], sums[i]);
  if (hn::GetLane(hn::SumOfLanes(d, sums[0])) == 1) return 0;
  return 2.0 * kSums * 4 * static_cast<double>(hn::Lanes(d)) * static_cast<double>(steps);
#else
  return MultiplyAdds(steps);
#endif
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

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(MultiplyAdds);
HWY_EXPORT(MultiplyAddsInt8);
HWY_EXPORT(ReadStreams);

double run_multiply_adds_f32(int64_t steps) { return HWY_DYNAMIC_DISPATCH(MultiplyAdds)(steps); }
double run_multiply_adds_int8(int64_t steps) {
  return HWY_DYNAMIC_DISPATCH(MultiplyAddsInt8)(steps);
}

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

__attribute__((target("avx512f,avx512vnni"))) double run_multiply_adds_vnni(int64_t steps) {
  constexpr int kSums = 12;
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_epi32(i);
  for (int64_t step = 0; step < steps; ++step) {
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], ones, ones);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = _mm512_xor_si512(sums[0], sums[i]);
  if (_mm_cvtsi128_si32(_mm512_castsi512_si128(sums[0])) == -1) return 0;  // keeps the loop
  return 2.0 * kSums * 64 * static_cast<double>(steps);
}

namespace {

// Four independent products a step, of full tiles.
template <typename Products>
double run_tiles(int64_t steps, double operations, Products products) {
  amx::Configuration configuration;
  for (int tile = 0; tile < 8; ++tile) configuration.set(tile, amx::kTileRows, amx::kTileBytes);
  configuration.load();
  for (int64_t step = 0; step < steps; ++step) products();
  amx::release();
  return 4 * operations * static_cast<double>(steps);
}

}  // namespace

double run_multiply_adds_amx(int64_t steps) {
  return run_tiles(steps, 2.0 * 16 * 16 * 32, [] {
    amx::multiply_bf16<0, 4, 6>();
    amx::multiply_bf16<1, 4, 7>();
    amx::multiply_bf16<2, 5, 6>();
    amx::multiply_bf16<3, 5, 7>();
  });
}

double run_multiply_adds_amx_int8(int64_t steps) {
  return run_tiles(steps, 2.0 * 16 * 16 * 64, [] {
    amx::multiply_int8<0, 4, 6>();
    amx::multiply_int8<1, 4, 7>();
    amx::multiply_int8<2, 5, 6>();
    amx::multiply_int8<3, 5, 7>();
  });
}
#else
double run_multiply_adds_bf16(int64_t) { throw Error("machine", "no bf16 instructions here"); }
double run_multiply_adds_vnni(int64_t) { throw Error("machine", "no VNNI here"); }
double run_multiply_adds_amx(int64_t) { throw Error("machine", "no AMX here"); }
double run_multiply_adds_amx_int8(int64_t) { throw Error("machine", "no AMX here"); }
#endif

}  // namespace pronghorn
#endif
