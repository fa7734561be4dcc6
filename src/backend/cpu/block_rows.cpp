// Activations rounded to 8 bits, for every instruction set that Highway builds.
#include "backend/cpu/block_panels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/block_rows.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <array>
#include <limits>

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using Tag = hn::CappedTag<float, static_cast<size_t>(kPanel)>;
using IntTag = hn::RebindToSigned<Tag>;
using Vector = hn::Vec<Tag>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag()));

// 32 numbers. A scale that is not a number says that one of them is none.
HWY_INLINE float QuantiseUnit(const float* HWY_RESTRICT x, int8_t* HWY_RESTRICT codes) {
  constexpr float kMost = 127;
  const Tag d;
  Vector most = hn::Zero(d), faults = hn::Zero(d);
  for (int64_t k = 0; k < kUnitTerms; k += kLanes) {
    const Vector numbers = hn::LoadU(d, x + k);
    most = hn::Max(most, hn::Abs(numbers));
    faults = hn::MulAdd(numbers, hn::Zero(d), faults);
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(d, most));
  const float fault = hn::GetLane(hn::SumOfLanes(d, faults));
  // Below this the reciprocal is not finite, and the numbers are nothing beside others.
  const bool usable = largest > std::numeric_limits<float>::min() && fault == 0;
  const float inverse = usable ? kMost / largest : 0;
  alignas(64) std::array<int32_t, kUnitTerms> rounded;
  const Vector factor = hn::Set(d, inverse);
  for (int64_t k = 0; k < kUnitTerms; k += kLanes) {
    const Vector numbers = hn::Mul(hn::LoadU(d, x + k), factor);
    hn::StoreU(hn::NearestInt(numbers), IntTag(), rounded.data() + k);
  }
  for (size_t k = 0; k < kUnitTerms; ++k) codes[k] = static_cast<int8_t>(rounded[k]);
  return usable ? largest / kMost : fault * largest;
}

void QuantiseTiles(ConstMatrix x, int offset, const QuantisedRows& to, int64_t begin, int64_t end) {
  const int64_t parts = to.halves ? 2 : 1, each = kUnitTerms / parts;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t rows = to.tile_rows(t);
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = x.row(t * kRowTile + i);
      for (int64_t u = 0; u < to.units; ++u) {
        const int64_t place = t * kRowTile * to.units + u * rows + i;
        const int64_t first_part = (t * kRowTile * to.units + u * rows) * parts + i;
        int8_t* codes = to.codes + place * kUnitTerms;
        const float scale = QuantiseUnit(from + u * kUnitTerms, codes);
        to.scales[place] = scale;
        for (int64_t part = 0; part < parts; ++part) {
          int32_t sum = 0;
          for (int64_t k = 0; k < each; ++k) sum += codes[part * each + k];
          to.corrections[first_part + part * rows] = -offset * sum;
          to.sums[first_part + part * rows] = scale * static_cast<float>(sum);
        }
      }
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(QuantiseTiles);
void quantise_tiles(ConstMatrix x, int offset, const QuantisedRows& to, int64_t begin,
                    int64_t end) {
  HWY_DYNAMIC_DISPATCH(QuantiseTiles)(x, offset, to, begin, end);
}

}  // namespace pronghorn
#endif
