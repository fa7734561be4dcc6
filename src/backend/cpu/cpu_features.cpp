#include "backend/cpu/cpu_features.h"

#include <hwy/targets.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

#include <algorithm>
#include <cstdlib>

#include "base/error.h"

namespace pronghorn {
namespace {

struct Level {
  std::string name;
  int64_t targets;  // Highway targets that it may use
  CpuFeatures features;
};

#if defined(__x86_64__)
bool has_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 5)) != 0;
}

bool has_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (c & (1u << 11)) != 0;
}

bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  const auto has = [d](unsigned bit) { return (d & (1u << bit)) != 0; };
  constexpr unsigned kBf16 = 22, kTile = 24, kInt8 = 25;
  if (!has(kBf16) || !has(kTile) || !has(kInt8)) return false;
  // Linux hands out the tile registers on request (Documentation/arch/x86/xstate.rst).
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool is_intel() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(0, &a, &b, &c, &d) != 0 && b == signature_INTEL_ebx;
}

// The last is what is used.
std::vector<Level> find_levels() {
  const int64_t have = hwy::SupportedTargets() & HWY_TARGETS;  // of those that are built
  std::vector<Level> levels;
  // The baseline target is always built: plain C++ where the compiler assumes no SIMD to speak of.
  const int64_t portable = HWY_STATIC_TARGET;
  levels.push_back({"portable", portable, {}});
  const int64_t sse4 = portable | HWY_SSSE3 | HWY_SSE4;
  if (have & HWY_SSE4) levels.push_back({"sse4", sse4, {}});
  if (have & HWY_AVX2) levels.push_back({"avx2", sse4 | HWY_AVX2, {}});
  if (have & HWY_AVX3) {
    const int64_t avx512 = sse4 | HWY_AVX2 | HWY_AVX3 | HWY_AVX3_DL;
    levels.push_back({"avx512", avx512, {}});
    const bool vnni = has_vnni(), bf16 = has_bf16(), amx = bf16 && has_amx();
    // Intel's cores multiply pairs of bf16 at half the rate of f32 outside of tiles.
    const bool slow_bf16 = bf16 && !amx && is_intel();
    const Level with_bf16{"avx512-bf16", avx512, {true, false, vnni}};
    if (slow_bf16) levels.push_back(with_bf16);
    if (vnni && (!bf16 || slow_bf16)) {
      levels.push_back({"avx512-vnni", avx512, {false, false, true}});
    }
    if (bf16 && !slow_bf16) levels.push_back(with_bf16);
    if (amx) levels.push_back({"amx", avx512, {true, true, vnni}});
  }
  return levels;
}
#else
std::vector<Level> find_levels() { return {{"native", ~int64_t{0}, {}}}; }
#endif

struct State {
  std::vector<Level> levels = find_levels();
  size_t active = levels.size() - 1;

  State() {
    if (const char* name = std::getenv("PRONGHORN_CPU")) activate(name);
  }

  void activate(const std::string& name) {
    const auto found = std::find_if(levels.begin(), levels.end(),
                                    [&](const Level& level) { return level.name == name; });
    if (found == levels.end()) {
      std::vector<std::string> names;
      for (const Level& level : levels) names.push_back(level.name);
      throw Error("PRONGHORN_CPU", fmt::format("no instruction set '{}' here", name),
                  fmt::format("choose from {}", fmt::join(names, ", ")));
    }
    active = static_cast<size_t>(found - levels.begin());
    hwy::SetSupportedTargetsForTest(found->targets & hwy::SupportedTargets());
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

State& state() {
  static State instance;
  return instance;
}

}  // namespace

const CpuFeatures& cpu_features() { return state().levels[state().active].features; }

std::vector<std::string> cpu_instruction_sets() {
  std::vector<std::string> names;
  for (const Level& level : state().levels) names.push_back(level.name);
  return names;
}

std::string cpu_instruction_set() { return state().levels[state().active].name; }

void set_cpu_instruction_set(const std::string& name) {
  hwy::SetSupportedTargetsForTest(0);  // see the whole machine again
  state().activate(name);
}

}  // namespace pronghorn
