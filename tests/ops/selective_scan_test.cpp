// What the five laws (tests/laws) leave to the selective scan itself: gradients across chunks, bits
// that do not depend on cuts of any length, large trees, and errors.
#include "ops/selective_scan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "base/error.h"
#include "base/random.h"
#include "base/threads.h"
#include "support/steps.h"

namespace pronghorn {
namespace {

using testing_support::batch_of;

using Doubles = std::vector<double>;

enum Operand { kX, kDt, kBias, kA, kB, kC, kD, kOperands };

struct Problem {
  int64_t rows, channels, states;
  std::vector<Tensor> inputs;
};

// Operands with a row per token are column slices of something wider, as they are in a layer.
Problem problem(int64_t rows, int64_t channels, int64_t states) {
  Random random(7);
  const auto draw = [&](Shape shape, double low, double high) {
    const Tensor tensor = Tensor::empty(std::move(shape));
    for (float& value : tensor.values()) value = static_cast<float>(random.uniform(low, high));
    return tensor;
  };
  const auto slice = [&](int64_t width, double low, double high) {
    return draw({rows, width + 5}, low, high).column_slice(3, width);
  };
  return {rows,
          channels,
          states,
          {slice(channels, -1, 1), slice(channels, -3, 1), draw({channels}, -1, 0),
           draw({channels, states}, -1, 1), slice(states, -1, 1), slice(states, -1, 1),
           draw({channels}, -1, 1)}};
}

Tensor run(const Context& context, const std::vector<Tensor>& in, const Batch& batch) {
  return selective_scan(context, in[kX], in[kDt], in[kBias], in[kA], in[kB], in[kC], in[kD], batch,
                        {0, 0});
}

SequenceState fresh_state(const Problem& p) {
  auto layout = std::make_shared<StateLayout>();
  layout->layers = {{selective_scan_journal(p.channels, p.states)}};
  return SequenceState(layout);
}

// Rows [begin, begin + count) of a problem as one step of `state`.
Tensor step(const Problem& p, SequenceState& state, int64_t begin, int64_t count,
            std::vector<int32_t> parents = {}) {
  std::vector<Tensor> inputs = p.inputs;
  for (const Operand operand : {kX, kDt, kB, kC}) {
    inputs[operand] = inputs[operand].row_slice(begin, count);
  }
  Batch batch = batch_of({count});
  for (int32_t& position : batch.positions) position += static_cast<int32_t>(begin);
  batch.segments[0].state = &state;
  const bool chain = parents.empty();
  batch.segments[0].parents = std::move(parents);
  const Tensor y = run({}, inputs, batch);
  if (chain) state.advance(count);
  return y;
}

double at(const Tensor& tensor, int64_t row, int64_t column) { return tensor.row(row)[column]; }

// The recurrence and its gradients, token by token in float64: lambda is the gradient of h.
struct Naive {
  Doubles y;
  std::vector<Doubles> grads;
};

Naive naive(const Problem& p, const Batch& batch, const Tensor& dy) {
  const auto& in = p.inputs;
  Naive out;
  out.y.resize(static_cast<size_t>(p.rows * p.channels));
  for (const Tensor& input : in) out.grads.emplace_back(static_cast<size_t>(input.size()), 0.0);
  const auto add = [&](Operand operand, int64_t row, int64_t column, double value) {
    out.grads[operand][static_cast<size_t>(row * in[operand].columns() + column)] += value;
  };
  for (const Segment& segment : batch.segments) {
    for (int64_t c = 0; c < p.channels; ++c) {
      const auto length = static_cast<size_t>(segment.length);
      Doubles dts(length), dt_grads(length, 0.0);
      for (int64_t i = 0; i < segment.length; ++i) {
        const double raw = at(in[kDt], segment.first_row + i, c) + in[kBias].data()[c];
        dts[static_cast<size_t>(i)] = std::log1p(std::exp(raw));
      }
      for (int64_t n = 0; n < p.states; ++n) {
        const double A = -std::exp(at(in[kA], c, n));
        Doubles h(length + 1, 0.0);
        for (size_t i = 0; i < length; ++i) {
          const int64_t row = segment.first_row + static_cast<int64_t>(i);
          h[i + 1] = std::exp(dts[i] * A) * h[i] + dts[i] * at(in[kB], row, n) * at(in[kX], row, c);
          out.y[static_cast<size_t>(row * p.channels + c)] += at(in[kC], row, n) * h[i + 1];
        }
        double carry = 0;
        for (size_t i = length; i-- > 0;) {
          const int64_t row = segment.first_row + static_cast<int64_t>(i);
          const double g = at(dy, row, c), decay = std::exp(dts[i] * A), dt = dts[i];
          const double x = at(in[kX], row, c), B = at(in[kB], row, n);
          const double lambda = at(in[kC], row, n) * g + carry;
          add(kC, row, n, g * h[i + 1]);
          add(kB, row, n, lambda * dt * x);
          add(kX, row, c, lambda * dt * B);
          add(kA, c, n, lambda * dt * decay * h[i] * A);
          dt_grads[i] += lambda * (A * decay * h[i] + B * x);
          carry = lambda * decay;
        }
      }
      for (size_t i = 0; i < length; ++i) {
        const int64_t row = segment.first_row + static_cast<int64_t>(i);
        const double g = at(dy, row, c), x = at(in[kX], row, c), D = in[kD].data()[c];
        out.y[static_cast<size_t>(row * p.channels + c)] += D * x;
        add(kX, row, c, D * g);
        add(kD, 0, c, x * g);
        const double raw_grad = dt_grads[i] * (1 - std::exp(-dts[i]));  // softplus' = sigmoid
        add(kDt, row, c, raw_grad);
        add(kBias, 0, c, raw_grad);
      }
    }
  }
  return out;
}

void expect_close(const Tensor& actual, const Doubles& expected, double tolerance,
                  const std::string& what) {
  double largest = 0, error = 0;
  for (int64_t i = 0; i < actual.size(); ++i) {
    const double value = expected[static_cast<size_t>(i)];
    largest = std::max(largest, std::abs(value));
    error =
        std::max(error, std::abs(at(actual, i / actual.columns(), i % actual.columns()) - value));
  }
  EXPECT_LT(error, tolerance * largest) << what;
}

class SelectiveScanTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { set_cpu_instruction_set(GetParam()); }
  void TearDown() override {
    set_cpu_instruction_set(cpu_instruction_sets().back());
    set_thread_count(4);
  }
};

TEST_P(SelectiveScanTest, GradientsAcrossChunksAndGroups) {
  // Chunks of 32 tokens and groups of 64 channels: several of each, and ragged ones.
  const Problem p = problem(170, 150, 16);
  const Batch batch = batch_of({101, 0, 64, 5});
  Random random(3);
  const Tensor dy = Tensor::empty({p.rows, p.channels});
  for (float& value : dy.values()) value = static_cast<float>(random.uniform(-1, 1));
  const Naive expected = naive(p, batch, dy);

  std::vector<std::vector<float>> bits;
  for (const int threads : {1, 4}) {
    set_thread_count(threads);
    for (const Tensor& input : p.inputs) {
      input.clear_grad();
      input.set_requires_grad(true);
    }
    Tape tape;
    Context context;
    context.tape = &tape;
    const Tensor y = run(context, p.inputs, batch);
    y.give_grad(dy);
    tape.run_backward();
    // Float32 sums of 64 tokens' worth of memory; the gradients of parameters add up 170 rows.
    expect_close(y, expected.y, 2e-6, "y");
    std::vector<float> all;
    for (int i = 0; i < kOperands; ++i) {
      const Tensor grad = p.inputs[static_cast<size_t>(i)].grad().clone();
      expect_close(grad, expected.grads[static_cast<size_t>(i)], 1e-5, std::to_string(i));
      all.insert(all.end(), grad.values().begin(), grad.values().end());
    }
    bits.push_back(all);
  }
  EXPECT_EQ(bits[0], bits[1]) << "gradients depend on the number of threads";
}

TEST_P(SelectiveScanTest, AnyCutGivesTheSameBits) {
  for (const int64_t states : {16, 5}) {
    const Problem p = problem(150, 70, states);
    const Tensor whole = run({}, p.inputs, batch_of({150}));
    for (const std::vector<int64_t>& cuts : std::vector<std::vector<int64_t>>{
             {150}, {100, 1, 1, 48}, {1, 16, 17, 33, 83}, {48, 48, 54}}) {
      SequenceState state = fresh_state(p);
      int64_t row = 0;
      for (const int64_t count : cuts) {
        const Tensor y = step(p, state, row, count);
        for (int64_t i = 0; i < y.size(); ++i) {
          ASSERT_EQ(y.data()[i], whole.row(row)[i]) << "row " << row + i / p.channels;
        }
        row += count;
      }
      // After a long segment too, the last 16 tokens can be taken back.
      state.truncate(134);
      const Tensor again = step(p, state, 134, 16);
      for (int64_t i = 0; i < again.size(); ++i) {
        ASSERT_EQ(again.data()[i], whole.row(134)[i]) << "after truncation";
      }
    }
  }
}

TEST_P(SelectiveScanTest, LongAcceptedPathsFoldOnTheNextStep) {
  const Problem p = problem(64, 20, 16);
  const Tensor whole = run({}, p.inputs, batch_of({64}));
  SequenceState state = fresh_state(p);
  step(p, state, 0, 7);
  std::vector<int32_t> parents(50);
  std::iota(parents.begin(), parents.end(), -1);  // a chain given as a tree
  const Tensor nodes = step(p, state, 7, 50, parents);
  for (int64_t i = 0; i < nodes.size(); ++i) ASSERT_EQ(nodes.data()[i], whole.row(7)[i]);
  std::vector<int32_t> path(45);
  std::iota(path.begin(), path.end(), 0);
  state.commit(path);
  const Tensor y = step(p, state, 52, 12);
  for (int64_t i = 0; i < y.size(); ++i) ASSERT_EQ(y.data()[i], whole.row(52)[i]);
}

INSTANTIATE_TEST_SUITE_P(All, SelectiveScanTest, testing::ValuesIn(cpu_instruction_sets()),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// Rates that were made before, under whatever instruction set, change no bits.
TEST(SelectiveScan, WithKnownRatesIsTheSame) {
  const Problem p = problem(90, 70, 5);
  const Batch batch = batch_of({60, 30});
  const Tensor rates = selective_scan_rates(p.inputs[kA]);
  const std::string before = cpu_instruction_set();
  for (const std::string& set : cpu_instruction_sets()) {
    set_cpu_instruction_set(set);
    const std::vector<Tensor>& in = p.inputs;
    const Tensor known = selective_scan({}, in[kX], in[kDt], in[kBias], in[kA], in[kB], in[kC],
                                        in[kD], batch, {}, rates);
    const Tensor made = run({}, in, batch);
    EXPECT_TRUE(std::ranges::equal(known.values(), made.values())) << set;
  }
  set_cpu_instruction_set(before);
  EXPECT_THROW(
      selective_scan({}, p.inputs[kX], p.inputs[kDt], p.inputs[kBias], p.inputs[kA], p.inputs[kB],
                     p.inputs[kC], p.inputs[kD], batch, {}, Tensor::zeros({7})),
      Error);
}

TEST(SelectiveScan, ExtremeStepsStayFinite) {
  Problem p = problem(40, 16, 16);
  p.inputs[kDt].fill(80);  // dt = 80, decays underflow
  p.inputs[kA].fill(5);    // A = -148
  const Tensor y = run({}, p.inputs, batch_of({40}));
  for (const float value : y.values()) EXPECT_TRUE(std::isfinite(value));
  p.inputs[kDt].fill(-100);  // dt = 0: nothing is written, nothing forgotten
  const Tensor skip = run({}, p.inputs, batch_of({40}));
  for (int64_t i = 0; i < 40; ++i) {
    for (int64_t c = 0; c < 16; ++c) {
      EXPECT_NEAR(skip.row(i)[c], p.inputs[kD].data()[c] * p.inputs[kX].row(i)[c], 1e-6);
    }
  }
}

TEST(SelectiveScan, RejectsWrongShapesAndGradientsThroughStates) {
  Problem p = problem(8, 16, 4);
  std::vector<Tensor> wrong = p.inputs;
  wrong[kB] = wrong[kB].column_slice(0, 3);
  EXPECT_THROW(run({}, wrong, batch_of({8})), Error);
  EXPECT_THROW(run({}, p.inputs, batch_of({7})), Error);

  SequenceState state = fresh_state(p);
  Batch batch = batch_of({8});
  batch.segments[0].parents = {0, 0, 0, 0, 0, 0, 0, 0};
  EXPECT_THROW(run({}, p.inputs, batch), Error) << "a row that is its own parent";
  batch.segments[0].parents.clear();
  batch.segments[0].state = &state;
  p.inputs[kX].set_requires_grad(true);
  Tape tape;
  Context context;
  context.tape = &tape;
  EXPECT_THROW(run(context, p.inputs, batch), Error);
  EXPECT_EQ(state.journal(0, 0).length(), 0) << "a refused call must leave the state alone";
}

}  // namespace
}  // namespace pronghorn
