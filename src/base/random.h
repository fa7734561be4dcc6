// Counter-based random numbers: a value is a pure function of (seed, stream, counter), so results
// never depend on threads, batches or the order of calls.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

namespace pronghorn {

// 64 random bits from a key and a counter: Philox 2x64 with ten rounds (Salmon et al., "Parallel
// random numbers: as easy as 1, 2, 3", SC 2011, section 3.3).
inline uint64_t philox(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  constexpr uint64_t kMultiplier = 0xD2B74407B1CE6E93ull;
  constexpr uint64_t kWeyl = 0x9E3779B97F4A7C15ull;
  uint64_t left = counter_low, right = counter_high;
  for (int round = 0; round < 10; ++round) {
    const auto product = static_cast<unsigned __int128>(left) * kMultiplier;
    left = static_cast<uint64_t>(product >> 64) ^ key ^ right;
    right = static_cast<uint64_t>(product);
    key += kWeyl;
  }
  return left;
}

// FNV-1a, to name a stream of random numbers after what it is for.
constexpr uint64_t stream_id(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return hash;
}

// In [0, 1), 53 bits.
inline double unit_interval(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1.0p-53; }

// A sequential view of one stream. Its whole state is `counter`, which may be saved and restored.
class Random {
 public:
  explicit Random(uint64_t seed, std::string_view stream = {})
      : seed_(seed), stream_(stream_id(stream)) {}

  uint64_t bits() { return philox(seed_, counter_++, stream_); }
  double uniform() { return unit_interval(bits()); }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  // In [0, bound), without bias worth the name for bounds far below 2^64.
  uint64_t below(uint64_t bound) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(bits()) * bound) >> 64);
  }
  // Standard normal (Box-Muller; one of the pair is used, so that the counter stays simple).
  double normal() {
    const double u = 1.0 - uniform();
    const double v = uniform();
    return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
  }

  uint64_t counter() const { return counter_; }
  void set_counter(uint64_t counter) { counter_ = counter; }

 private:
  uint64_t seed_, stream_, counter_ = 0;
};

}  // namespace pronghorn
