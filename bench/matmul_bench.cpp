// Products with weights in the shapes of models of 5M and 20M parameters, as fractions of what the
// machine can do. Rates are those of the best repetition, since other programs can only slow one
// down.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/machine.h"
#include "base/random.h"

namespace pronghorn {
namespace {

const MachineCeilings& machine() {
  static const MachineCeilings ceilings = measure_machine(1.5);
  return ceilings;
}

Tensor random_tensor(Shape shape) {
  Random random(1);
  const Tensor tensor = Tensor::empty(std::move(shape));
  for (float& value : tensor.values()) value = static_cast<float>(random.uniform(-1, 1));
  return tensor;
}

enum class Pass { forward, input, weight };

void run(benchmark::State& state, Pass pass, Precision precision, int64_t rows, int64_t out,
         int64_t in) {
  const Tensor x = random_tensor({rows, in}), y = random_tensor({rows, out});
  const Tensor gradient = random_tensor({out, in});
  const Weight weight(random_tensor({out, in}));
  MatmulKernels& kernels = backend().matmul();
  double best = 1e9;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    if (pass == Pass::forward) {
      kernels.linear_forward(weight, x.data(), in, rows, nullptr, y.data(), out, precision,
                             rows <= 16);
    } else if (pass == Pass::input) {
      kernels.linear_backward_input(weight, y.data(), out, rows, x.data(), in, false, precision);
    } else {
      kernels.linear_backward_weight(y.data(), out, x.data(), in, rows, out, in, gradient.data(),
                                     in, false, precision);
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::min(best, elapsed.count());
  }
  const bool bf16 = precision == Precision::bf16;
  const double gflops = 2e-9 * static_cast<double>(rows * out * in) / best;
  state.counters["best_us"] = best * 1e6;
  state.counters["GFLOP/s"] = gflops;
  state.counters["of_peak"] = gflops / (bf16 ? machine().bf16_gflops : machine().f32_gflops);
}

struct Size {
  int64_t rows, out, in;
};

void register_all() {
  const std::vector<Size> training = {{4096, 1536, 384}, {4096, 384, 1536}, {4096, 384, 384},
                                      {4096, 256, 256},  {4096, 1024, 256}, {4096, 256, 688},
                                      {4096, 4096, 256}, {4096, 8, 256},    {512, 1536, 384}};
  const std::vector<Size> decoding = {{1, 256, 256},   {1, 1536, 384}, {1, 384, 1536},
                                      {1, 4096, 256},  {1, 8, 256},    {4, 1536, 384},
                                      {16, 1536, 384}, {64, 1536, 384}};
  const auto add = [](const char* name, Pass pass, Precision precision, const Size& size) {
    const char* type = precision == Precision::bf16 ? "bf16" : "f32";
    const std::string label = std::string(name) + "/" + type + "/" + std::to_string(size.rows) +
                              "x" + std::to_string(size.out) + "x" + std::to_string(size.in);
    benchmark::RegisterBenchmark(label.c_str(), [=](benchmark::State& state) {
      run(state, pass, precision, size.rows, size.out, size.in);
    })->UseRealTime();
  };
  for (const Precision precision : {Precision::bf16, Precision::f32}) {
    for (const Size& size : training) {
      add("forward", Pass::forward, precision, size);
      add("backward_input", Pass::input, precision, size);
      add("backward_weight", Pass::weight, precision, size);
    }
    for (const Size& size : decoding) add("forward", Pass::forward, precision, size);
  }
}

}  // namespace
}  // namespace pronghorn

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const pronghorn::MachineCeilings& machine = pronghorn::machine();
  benchmark::AddCustomContext("machine", machine.cpu + ", " + machine.instruction_set);
  benchmark::AddCustomContext("f32 GFLOP/s", std::to_string(machine.f32_gflops));
  benchmark::AddCustomContext("bf16 GFLOP/s", std::to_string(machine.bf16_gflops));
  benchmark::AddCustomContext("read GB/s", std::to_string(machine.read_gigabytes_per_second));
  pronghorn::register_all();
  benchmark::RunSpecifiedBenchmarks();
}
