// Tokens per second of outer-product states: training (forward and backward), prompts, decoding.
#include <benchmark/benchmark.h>

#include <cmath>
#include <memory>

#include "backend/outer_product_state.h"
#include "base/random.h"
#include "base/threads.h"
#include "ops/outer_product_state.h"

namespace pronghorn {
namespace {

OuterProductStateOptions shape(int64_t kind) {
  OuterProductStateOptions options;
  if (kind == 0) {  // Mamba-2
    options.value_heads = 8;
  } else {  // Gated DeltaNet
    options.value_heads = options.key_heads = 4;
    options.value_dim = 128;
    options.delta_rule = true;
  }
  return options;
}

Tensor draw(Random& random, int64_t rows, int64_t columns, double low, double high) {
  Tensor tensor = Tensor::empty({rows, columns});
  for (float& value : tensor.values()) value = static_cast<float>(random.uniform(low, high));
  return tensor;
}

OuterProductStateInputs draw_inputs(const OuterProductStateOptions& o, int64_t rows) {
  Random random(1, "bench");
  const double k = 1 / std::sqrt(static_cast<double>(o.key_dim));
  OuterProductStateInputs in;
  in.q = draw(random, rows, o.key_heads * o.key_dim, -1, 1);
  in.k = draw(random, rows, o.key_heads * o.key_dim, -k, k);
  in.v = draw(random, rows, o.value_heads * o.value_dim, -1, 1);
  in.log_decay = draw(random, rows, o.value_heads, -0.1, 0);
  in.beta = draw(random, rows, o.value_heads, 0, 1);
  return in;
}

Batch make_batch(int64_t segments, int64_t length, SequenceState* state) {
  Batch batch;
  for (int64_t s = 0; s < segments; ++s) {
    Segment segment;
    segment.state = state;
    segment.first_row = s * length;
    segment.length = length;
    batch.segments.push_back(segment);
    for (int64_t i = 0; i < length; ++i) batch.positions.push_back(static_cast<int32_t>(i));
  }
  return batch;
}

// Multiply-adds of one training token, masked halves not counted: those on states (forward 2 or
// with the delta rule 3, backward 5 or 6 times the size of S) and those within chunks.
double training_flops(const OuterProductStateOptions& o) {
  const auto states = static_cast<double>(o.key_dim * o.value_dim);
  const double half = kOuterProductChunk / 2.0, values = half * static_cast<double>(o.value_dim);
  const double own = (o.delta_rule ? 9 : 7) * states + (o.delta_rule ? 6 : 3) * values;
  const double shared = (o.delta_rule ? 8 : 4) * half * static_cast<double>(o.key_dim);
  return 2 * (own * static_cast<double>(o.value_heads) + shared * static_cast<double>(o.key_heads));
}

void report(benchmark::State& bench, int64_t tokens) {
  bench.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(tokens * static_cast<int64_t>(bench.iterations())),
                         benchmark::Counter::kIsRate);
}

// Arguments: kind, segments, tokens each, threads.
void training(benchmark::State& bench) {
  set_thread_count(static_cast<int>(bench.range(3)));
  const OuterProductStateOptions options = shape(bench.range(0));
  const int64_t rows = bench.range(1) * bench.range(2);
  const OuterProductStateInputs in = draw_inputs(options, rows);
  for (const Tensor& t : {in.q, in.k, in.v, in.log_decay, in.beta}) t.set_requires_grad(true);
  const Batch batch = make_batch(bench.range(1), bench.range(2), nullptr);
  const Tensor gradient = Tensor::full({rows, options.value_heads * options.value_dim}, 0.5f);
  for (auto unused : bench) {
    (void)unused;
    Tape tape;
    const Tensor out = outer_product_state({&tape}, in, options, batch, {});
    out.give_grad(gradient);
    tape.run_backward();
    for (const Tensor& t : {in.q, in.k, in.v, in.log_decay, in.beta}) t.clear_grad();
  }
  report(bench, rows);
  bench.counters["GFLOP/s"] = benchmark::Counter(
      training_flops(options) *
          static_cast<double>(rows * static_cast<int64_t>(bench.iterations())) / 1e9,
      benchmark::Counter::kIsRate);
}
BENCHMARK(training)
    ->Args({0, 8, 512, 1})
    ->Args({0, 8, 512, 4})
    ->Args({1, 8, 512, 1})
    ->Args({1, 8, 512, 4})
    ->Args({1, 1, 4096, 4})
    ->UseRealTime();

SequenceState fresh_state(const OuterProductStateOptions& options) {
  auto layout = std::make_shared<StateLayout>();
  layout->layers = {{outer_product_state_journal(options)}};
  return SequenceState(layout);
}

void prompt(benchmark::State& bench) {
  set_thread_count(static_cast<int>(bench.range(2)));
  const OuterProductStateOptions options = shape(bench.range(0));
  const OuterProductStateInputs in = draw_inputs(options, bench.range(1));
  for (auto unused : bench) {
    (void)unused;
    SequenceState state = fresh_state(options);
    const Batch batch = make_batch(1, bench.range(1), &state);
    benchmark::DoNotOptimize(outer_product_state({}, in, options, batch, {}).data());
  }
  report(bench, bench.range(1));
}
BENCHMARK(prompt)->Args({0, 2048, 4})->Args({1, 2048, 4})->UseRealTime();

// Arguments: kind, tokens a step, threads.
void decode(benchmark::State& bench) {
  set_thread_count(static_cast<int>(bench.range(2)));
  const OuterProductStateOptions options = shape(bench.range(0));
  const OuterProductStateInputs in = draw_inputs(options, bench.range(1));
  SequenceState state = fresh_state(options);
  const Batch batch = make_batch(1, bench.range(1), &state);
  for (auto unused : bench) {
    (void)unused;
    benchmark::DoNotOptimize(outer_product_state({}, in, options, batch, {}).data());
  }
  report(bench, bench.range(1));
}
BENCHMARK(decode)
    ->Args({0, 1, 1})
    ->Args({0, 8, 1})
    ->Args({1, 1, 1})
    ->Args({1, 1, 4})
    ->Args({1, 16, 1})
    ->UseRealTime();

}  // namespace
}  // namespace pronghorn

BENCHMARK_MAIN();
