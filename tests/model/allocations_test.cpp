// Decoding asks the system for next to no memory once it is warm: what operators need comes from
// pools and from memory that the state already holds.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

#include "base/error.h"
#include "base/threads.h"
#include "model/model.h"
#include "tensor/pool.h"

namespace {
std::atomic<int64_t> allocations{0};
}  // namespace

// Counts every allocation of this program. Not inlined: g++ takes the pair of malloc and delete for
// a mistake.
[[gnu::noinline]] void* operator new(size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(bytes);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace pronghorn {
namespace {

// Allocations per token of the `count` tokens after the first 40, which are past the first fold.
double allocations_per_token(const std::string& config, int64_t count) {
  ModelConfig model_config =
      load_config(std::filesystem::path(PRONGHORN_SOURCE_DIR) / "configs" / (config + ".json"));
  model_config.vocab_size = 300;
  const Model model(model_config, 1);
  SequenceState state = model.new_state();
  Context context;
  context.precision = Precision::bf16;
  const auto step = [&](int32_t token) {
    const Tensor hidden = model.forward(context, continue_sequence(state, {&token, 1}));
    return model.logits(context, hidden).data()[0];
  };
  for (int32_t token = 0; token < 40; ++token) step(token);
  const int64_t before = allocations;
  for (int32_t token = 0; token < count; ++token) step(token);
  return static_cast<double>(allocations - before) / static_cast<double>(count);
}

struct Case {
  std::string config;
  double limit;
};

class Allocations : public testing::TestWithParam<Case> {};

TEST_P(Allocations, AreFewInDecoding) {
  if (!kReuseBlocks) GTEST_SKIP() << "pools are off where sanitizers look";
  const double per_token = allocations_per_token(GetParam().config, 128);
  RecordProperty("allocations_per_token", fmt::format("{:.2f}", per_token));
  EXPECT_LE(per_token, GetParam().limit);
}

// Four are the lists of the batch that the caller makes. Folds take part of one per layer, what
// RWKV-7 carries takes one; memories and spans still list their runs and rows.
INSTANTIATE_TEST_SUITE_P(Configs, Allocations,
                         testing::Values(Case{"transformer-1m", 5}, Case{"sliding-window-1m", 5},
                                         Case{"mamba-1m", 5}, Case{"mamba2-1m", 5},
                                         Case{"gated-deltanet-1m", 5}, Case{"rwkv7-1m", 6},
                                         Case{"hybrid-1m", 5}, Case{"titans-lmm-1m", 10},
                                         Case{"subllm-5m", 15}, Case{"ttt-linear-1m", 18},
                                         Case{"titans-mac-1m", 22}),
                         [](const auto& test) {
                           std::string name = test.param.config;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace pronghorn
