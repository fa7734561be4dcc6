// The selective scan and the short convolution of Mamba in its own shapes: nanoseconds a state
// element and token (scan) or a channel and token (convolution), and microseconds a decoded token.
// Times are those of the best repetition, since other programs can only slow one down.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/threads.h"
#include "ops/selective_scan.h"
#include "ops/short_convolution.h"

namespace pronghorn {
namespace {

constexpr int64_t kStates = 16, kTaps = 4;

struct Size {
  int64_t batch, tokens, channels;
  int64_t rows() const { return batch * tokens; }
};

enum class Pass { forward, backward, decode };

Tensor random_tensor(Shape shape, double low, double high) {
  Random random(1);
  const Tensor tensor = Tensor::empty(std::move(shape));
  for (float& value : tensor.values()) value = static_cast<float>(random.uniform(low, high));
  return tensor;
}

// An operator over `size` with all its inputs.
struct Scan {
  explicit Scan(const Size& size)
      : inputs{random_tensor({size.rows(), size.channels}, -1, 1),
               random_tensor({size.rows(), size.channels}, -3, 2),
               random_tensor({size.channels}, -4, -2),
               random_tensor({size.channels, kStates}, 0, 2.8),
               random_tensor({size.rows(), kStates}, -1, 1),
               random_tensor({size.rows(), kStates}, -1, 1),
               random_tensor({size.channels}, -1, 1)} {}
  Tensor run(const Context& context, const Batch& batch) const {
    return selective_scan(context, inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], inputs[5],
                          inputs[6], batch, {0, 0});
  }
  static JournalShape journal(int64_t channels) {
    return selective_scan_journal(channels, kStates);
  }
  static constexpr int64_t kElements = kStates;  // a channel and token
  std::vector<Tensor> inputs;
};

struct Convolution {
  explicit Convolution(const Size& size)
      : inputs{random_tensor({size.rows(), size.channels}, -1, 1),
               random_tensor({size.channels, kTaps}, -1, 1),
               random_tensor({size.channels}, -1, 1)} {}
  Tensor run(const Context& context, const Batch& batch) const {
    return short_convolution(context, inputs[0], inputs[1], inputs[2], true, batch, {0, 0});
  }
  static JournalShape journal(int64_t channels) {
    return short_convolution_journal(channels, kTaps);
  }
  static constexpr int64_t kElements = 1;
  std::vector<Tensor> inputs;
};

Batch batch_of(const Size& size) {
  Batch batch;
  for (int64_t i = 0; i < size.batch; ++i) {
    Segment segment;
    segment.first_row = i * size.tokens;
    segment.length = size.tokens;
    batch.segments.push_back(segment);
    for (int64_t t = 0; t < size.tokens; ++t) batch.positions.push_back(static_cast<int32_t>(t));
  }
  return batch;
}

template <typename Operator>
void run(benchmark::State& state, Pass pass, Size size, int threads) {
  const int before = thread_count();
  set_thread_count(threads);
  const Operator subject(size);
  Batch batch = batch_of(size);
  const auto layout = std::make_shared<StateLayout>();
  layout->layers = {{Operator::journal(size.channels)}};
  std::vector<SequenceState> states(static_cast<size_t>(size.batch), SequenceState(layout));
  if (pass == Pass::decode) {
    for (size_t i = 0; i < states.size(); ++i) batch.segments[i].state = &states[i];
  }
  const Tensor gradient = random_tensor({size.rows(), size.channels}, -1, 1);
  double best = std::numeric_limits<double>::max();
  // A decode step is too short to be timed alone, and only one in 16 folds.
  const int repeats = pass == Pass::decode ? 64 : 1;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; ++i) {
      Tape tape;
      Context context;
      if (pass == Pass::backward) {
        context.tape = &tape;
        for (const Tensor& input : subject.inputs) {
          input.clear_grad();
          input.set_requires_grad(true);
        }
      }
      const Tensor y = subject.run(context, batch);
      if (pass == Pass::backward) {
        y.give_grad(gradient);
        tape.run_backward();
      }
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::min(best, elapsed.count() / repeats);
  }
  state.counters["best_us"] = best * 1e6;
  state.counters["ns_element"] =
      best * 1e9 / static_cast<double>(size.rows() * size.channels * Operator::kElements);
  set_thread_count(before);
}

template <typename Operator>
void register_operator(const std::string& name) {
  const std::vector<Size> training = {{8, 512, 512}, {1, 4096, 512}, {1, 4096, 1536}};
  const std::vector<Size> decoding = {{1, 1, 512}, {1, 1, 1536}, {16, 1, 512}};
  const auto add = [&](const char* label, Pass pass, const Size& size, int threads) {
    const std::string full = name + "/" + label + "/" + std::to_string(size.batch) + "x" +
                             std::to_string(size.tokens) + "x" + std::to_string(size.channels) +
                             "/threads:" + std::to_string(threads);
    benchmark::RegisterBenchmark(
        full.c_str(), [=](benchmark::State& state) { run<Operator>(state, pass, size, threads); });
  };
  for (const int threads : {1, 4}) {
    for (const Size& size : training) {
      add("forward", Pass::forward, size, threads);
      add("forward_backward", Pass::backward, size, threads);
    }
    for (const Size& size : decoding) add("decode", Pass::decode, size, threads);
  }
}

}  // namespace
}  // namespace pronghorn

int main(int argc, char** argv) {
  pronghorn::register_operator<pronghorn::Scan>("selective_scan");
  pronghorn::register_operator<pronghorn::Convolution>("short_convolution");
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
