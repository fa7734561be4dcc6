// The tile registers of AMX: eight of up to 16 rows of 64 bytes. By inline assembly, so that the
// rest of a file may be compiled for any x86-64, and so that the compiler knows that memory is read
// and written. Only where cpu_features().amx.
#pragma once

#if defined(__x86_64__)

#include <algorithm>
#include <array>
#include <cstdint>

namespace pronghorn::amx {

constexpr int64_t kTileRows = 16, kTileBytes = 64;  // at most; bytes of a row

// The extents of the eight registers, as palette 1 has them (Intel SDM, LDTILECFG).
class Configuration {
 public:
  // Register `tile` is that many rows of that many bytes.
  void set(int tile, int64_t rows, int64_t bytes) {
    rows_[static_cast<size_t>(tile)] = static_cast<uint8_t>(rows);
    bytes_[static_cast<size_t>(tile)] = static_cast<uint16_t>(bytes);
  }
  // Every register becomes zero.
  void load() const { asm volatile("ldtilecfg %0" : : "m"(*this) : "memory"); }

 private:
  alignas(kTileBytes) uint8_t palette_ = 1;
  uint8_t start_row_ = 0;
  std::array<uint8_t, 14> reserved_{};
  std::array<uint16_t, 16> bytes_{};
  std::array<uint8_t, 16> rows_{};
};
static_assert(sizeof(Configuration) == kTileBytes);

// Gives the registers back: a thread that holds none is switched faster.
inline void release() { asm volatile("tilerelease" : : : "memory"); }

// Rows are `stride` bytes apart.
template <int kTile>
inline void load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// sums += left right, of bf16 in f32. Row k of `right` holds pairs 2k and 2k + 1 of each column.
template <int kSums, int kLeft, int kRight>
inline void multiply_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kLeft), "i"(kRight));
}
// The same of signed bytes in 32 bits, of which a row of `right` holds four of each column.
template <int kSums, int kLeft, int kRight>
inline void multiply_int8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kLeft), "i"(kRight));
}

}  // namespace pronghorn::amx

#endif
