// Speed of attention: training at several lengths, and single tokens after long contexts.
#include <benchmark/benchmark.h>

#include <random>

#include "ops/attention.h"

namespace pronghorn {
namespace {

Tensor random_tensor(int64_t rows, int64_t columns) {
  std::mt19937 engine(static_cast<uint32_t>(rows + columns));
  std::uniform_real_distribution<float> uniform(-1, 1);
  Tensor tensor = Tensor::empty({rows, columns});
  for (float& value : tensor.values()) value = uniform(engine);
  return tensor;
}

// One sequence of T tokens, causal, heads x 64. Counts multiply-adds of scores that are not masked:
// 2 products forward, 5 more backward.
void train(benchmark::State& state, bool backward) {
  const int64_t tokens = state.range(0);
  const AttentionOptions options{
      .heads = state.range(1), .kv_heads = state.range(2), .head_dim = 64};
  const int64_t width = options.heads * 64, kv_width = options.kv_heads * 64;
  const Tensor q = random_tensor(tokens, width), k = random_tensor(tokens, kv_width);
  const Tensor v = random_tensor(tokens, kv_width), gradient = random_tensor(tokens, width);
  Batch batch;
  for (int32_t i = 0; i < tokens; ++i) batch.positions.push_back(i);
  batch.segments = {{nullptr, 0, tokens, Mask::causal, {}}};
  for (auto _ : state) {
    for (const Tensor& tensor : {q, k, v}) tensor.set_requires_grad(true).clear_grad();
    Tape tape;
    const Tensor o = attention({&tape}, q, k, v, options, batch, {});
    benchmark::DoNotOptimize(o.data());
    if (!backward) continue;
    o.give_grad(gradient);
    tape.run_backward();
    benchmark::DoNotOptimize(q.grad().data());
  }
  const double scores = static_cast<double>(options.heads * tokens * (tokens + 1) / 2);
  const double flops = scores * 64 * 2 * (backward ? 7 : 2);
  state.counters["GFLOP/s"] =
      benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}
void BM_Forward(benchmark::State& state) { train(state, false); }
void BM_ForwardBackward(benchmark::State& state) { train(state, true); }
// T, heads, key-value heads
BENCHMARK(BM_Forward)
    ->Args({512, 6, 6})
    ->Args({1024, 6, 6})
    ->Args({2048, 6, 6})
    ->Args({8192, 6, 6})
    ->Args({1024, 8, 2})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK(BM_ForwardBackward)
    ->Args({512, 6, 6})
    ->Args({1024, 6, 6})
    ->Args({2048, 6, 6})
    ->Args({8192, 6, 6})
    ->Args({1024, 8, 2})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

// A step of few tokens after a context; the context grows by no more than the iterations add.
void BM_Decode(benchmark::State& state) {
  const int64_t context = state.range(0), tokens = state.range(3);
  const AttentionOptions options{
      .heads = state.range(1), .kv_heads = state.range(2), .head_dim = 64};
  const int64_t width = options.heads * 64, kv_width = options.kv_heads * 64;
  const auto layout = std::make_shared<StateLayout>();
  layout->layers = {{attention_journal(options)}};
  SequenceState sequence(layout);
  Journal& journal = sequence.journal(0, 0);
  const Tensor rows = random_tensor(1, 2 * kv_width);
  for (int32_t i = 0; i < context; ++i) {
    journal.append({&i, 1});
    std::copy_n(rows.data(), 2 * kv_width, journal.mutable_row(i));
  }
  const Tensor q = random_tensor(tokens, width), k = random_tensor(tokens, kv_width);
  const Tensor v = random_tensor(tokens, kv_width);
  Batch batch;
  for (int64_t i = 0; i < tokens; ++i) {
    batch.positions.push_back(static_cast<int32_t>(context + i));
  }
  for (auto _ : state) {
    batch.segments = {{&sequence, 0, tokens, Mask::causal, {}}};
    benchmark::DoNotOptimize(attention({}, q, k, v, options, batch, {}).data());
    sequence.journal(0, 0).truncate(context);
  }
  state.SetItemsProcessed(state.iterations() * tokens);
  state.counters["KV GB/s"] =
      benchmark::Counter(static_cast<double>(context * 2 * kv_width) * sizeof(float) * 1e-9,
                         benchmark::Counter::kIsIterationInvariantRate);
}
// context, heads, key-value heads, tokens of the step
BENCHMARK(BM_Decode)
    ->ArgsProduct({{512, 2048, 8192, 32768}, {8}, {1, 2, 8}, {1}})
    ->Args({8192, 8, 2, 4})
    ->Args({8192, 8, 2, 16})
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

}  // namespace
}  // namespace pronghorn

BENCHMARK_MAIN();
