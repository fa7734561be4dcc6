// Recurrences that are special cases of one another, computed by different kernels or in different
// forms of one: outputs, gradients and steps agree to rounding.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "base/random.h"
#include "ops/diagonal_plus_rank_one.h"
#include "ops/diagonal_scan.h"
#include "ops/gates.h"
#include "ops/log_linear_state.h"
#include "ops/outer_product_state.h"
#include "ops/pointwise.h"
#include "ops/selective_scan.h"
#include "support/steps.h"

namespace pronghorn {
namespace {

using testing_support::batch_of;

constexpr int64_t kHeads = 2, kKeys = 16, kColumns = 24;

// What the forms are written in, one row per token. `k` are units.
struct Leaves {
  Tensor q, k;          // [rows, kHeads kKeys]
  Tensor v;             // [rows, kHeads kColumns]
  Tensor log_decay;     // [rows, kHeads]
  Tensor log_channels;  // [rows, kHeads kKeys]
  Tensor beta;          // [rows, kHeads], from 0 to 2

  std::vector<Tensor> all() const { return {q, k, v, log_decay, log_channels, beta}; }
  Leaves slice(int64_t first, int64_t rows) const {
    const auto cut = [&](const Tensor& t) { return t.row_slice(first, rows); };
    return {cut(q), cut(k), cut(v), cut(log_decay), cut(log_channels), cut(beta)};
  }
};

Leaves draw_leaves(int64_t rows) {
  Random random(11);
  const auto draw = [&](int64_t columns, double low, double high) {
    Tensor tensor = Tensor::empty({rows, columns});
    for (float& value : tensor.values()) value = static_cast<float>(random.uniform(low, high));
    return tensor;
  };
  Leaves leaves{draw(kHeads * kKeys, -1, 1),    draw(kHeads * kKeys, -1, 1),
                draw(kHeads * kColumns, -1, 1), draw(kHeads, -0.3, 0),
                draw(kHeads * kKeys, -0.3, 0),  draw(kHeads, 0, 2)};
  leaves.k = l2_normalize({}, leaves.k, kKeys, 1e-12f);
  return leaves;
}

// One way to compute a recurrence. Its journals are those of layer 0, in their order.
struct Form {
  std::string name;
  std::vector<JournalShape> journals;
  std::function<Tensor(const Context&, const Leaves&, const CheckedBatch&)> run;
};

OuterProductStateOptions options_of(bool delta_rule, bool channels) {
  return {.value_heads = kHeads,
          .key_heads = kHeads,
          .key_dim = kKeys,
          .value_dim = kColumns,
          .query_scale = 0.25f,
          .delta_rule = delta_rule,
          .channel_decay = channels};
}

// The value of each head for all of its `group` columns.
Tensor for_columns(const Context& context, const Tensor& heads, int64_t group) {
  const Tensor ones = Tensor::full({heads.rows(), heads.columns() * group}, 1);
  return scale_groups(context, ones, heads, group);
}

// Gates of a form: none, one per head, that for every channel, or one per channel.
enum class Gate { none, head, equal_channels, channels };

// Linear attention and the delta rule, with any gate.
Form outer_product(bool delta_rule, Gate gate, bool beta = true) {
  const bool channels = gate == Gate::equal_channels || gate == Gate::channels;
  const OuterProductStateOptions options = options_of(delta_rule, channels);
  return {"outer_product_state",
          {outer_product_state_journal(options)},
          [=](const Context& context, const Leaves& in, const CheckedBatch& batch) {
            OuterProductStateInputs inputs{in.q, in.k, in.v, {}, {}, {}};
            if (beta) inputs.beta = in.beta;
            if (gate == Gate::head) inputs.log_decay = in.log_decay;
            if (gate == Gate::channels) inputs.log_decay = in.log_channels;
            if (gate == Gate::equal_channels) {
              inputs.log_decay = for_columns(context, in.log_decay, kKeys);
            }
            return outer_product_state(context, inputs, options, batch, {0, 0});
          }};
}

// The same as a transition that is diagonal plus rank one: a = w k, b = -beta k; without the delta
// rule both are zeros.
Form rank_one(bool delta_rule, Gate gate) {
  const DiagonalPlusRankOneOptions options{
      .heads = kHeads, .key_dim = kKeys, .value_dim = kColumns, .query_scale = 0.25f};
  return {"diagonal_plus_rank_one",
          {diagonal_plus_rank_one_journal(options)},
          [=](const Context& context, const Leaves& in, const CheckedBatch& batch) {
            DiagonalPlusRankOneInputs inputs;
            inputs.q = in.q;
            inputs.log_decay = gate == Gate::channels ? in.log_channels
                               : gate == Gate::none   ? Tensor::zeros(in.log_channels.shape())
                                                      : for_columns(context, in.log_decay, kKeys);
            inputs.k = scale_groups(context, in.k, in.beta, kKeys);
            inputs.v = in.v;
            inputs.a = Tensor::zeros(in.k.shape());
            inputs.b = inputs.a;
            if (delta_rule) {
              const Tensor decay = activate(context, inputs.log_decay, Activation::exp);
              inputs.a = multiply(context, decay, in.k);
              inputs.b = scale(context, inputs.k, -1);
            }
            return diagonal_plus_rank_one(context, inputs, options, batch, {0, 0});
          }};
}

// Log-linear attention whose levels weigh alike.
Form log_linear(bool delta_rule) {
  const LogLinearOptions options{.state = options_of(delta_rule, false), .levels = 5, .bucket = 2};
  return {"log_linear_state", log_linear_state_journals(options),
          [=](const Context& context, const Leaves& in, const CheckedBatch& batch) {
            const OuterProductStateInputs inputs{in.q, in.k, in.v, in.log_decay, in.beta, {}};
            const Tensor weights = Tensor::full({in.q.rows(), options.levels * kHeads}, 1);
            std::vector<JournalSlot> slots;
            for (int64_t level = 0; level < options.levels; ++level) slots.push_back({0, level});
            return log_linear_state(context, inputs, weights, options, batch, slots);
          }};
}

std::vector<double> doubles(const Tensor& tensor) {
  const PooledVector<float> values = tensor.read();
  return {values.begin(), values.end()};
}

void expect_near(const std::vector<double>& a, const std::vector<double>& b, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  double largest = 0, difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max({largest, std::abs(a[i]), std::abs(b[i])});
    const double apart = std::abs(a[i] - b[i]);
    difference = std::isnan(apart) ? INFINITY : std::max(difference, apart);
  }
  EXPECT_GT(largest, 0) << what;
  EXPECT_LE(difference, tolerance * largest) << what;
}

// Outputs, and then the gradients of the leaves; of those that a form does not read, zeros.
std::vector<std::vector<double>> trained(const Form& form, const Leaves& leaves,
                                         const std::vector<int64_t>& lengths) {
  for (const Tensor& leaf : leaves.all()) {
    leaf.set_requires_grad(true);
    leaf.clear_grad();
  }
  Tape tape;
  const Tensor out = form.run({&tape}, leaves, batch_of(lengths));
  Tensor weights = Tensor::empty(out.shape());
  Random random(3, "weights");
  for (float& value : weights.values()) value = static_cast<float>(random.uniform(-1, 1));
  out.give_grad(weights);
  tape.run_backward();
  std::vector<std::vector<double>> results = {doubles(out)};
  for (const Tensor& leaf : leaves.all()) {
    results.push_back(leaf.has_grad() ? doubles(leaf.grad())
                                      : std::vector<double>(static_cast<size_t>(leaf.size())));
  }
  return results;
}

// A sequence that is read in steps, by its state.
std::vector<double> stepped(const Form& form, const Leaves& leaves,
                            const std::vector<int64_t>& steps) {
  auto layout = std::make_shared<StateLayout>();
  layout->layers = {form.journals};
  SequenceState state(layout);
  std::vector<double> all;
  int64_t first = 0;
  for (const int64_t length : steps) {
    Batch batch = batch_of({length});
    for (int32_t& position : batch.positions) position += static_cast<int32_t>(first);
    batch.segments[0].state = &state;
    const std::vector<double> out = doubles(form.run({}, leaves.slice(first, length), batch));
    all.insert(all.end(), out.begin(), out.end());
    state.advance(length);
    first += length;
  }
  return all;
}

// Both sums have a few hundred terms in f32, as in outer_product_state_test.cpp, in other orders;
// gradients are sums of such sums.
constexpr double kTolerance = 4e-5, kGradientTolerance = 1e-4;

void expect_same(const Form& a, const Form& b) {
  const std::vector<int64_t> lengths = {150, 9, 64}, steps = {1, 16, 5, 30, 1, 11};
  const Leaves leaves = draw_leaves(223);
  const std::string before = cpu_instruction_set();
  for (const std::string& set : cpu_instruction_sets()) {
    set_cpu_instruction_set(set);
    const std::string pair = a.name + " and " + b.name + ", " + set;
    const auto one = trained(a, leaves, lengths), two = trained(b, leaves, lengths);
    expect_near(one[0], two[0], kTolerance, pair + ", outputs");
    const char* names[] = {"q", "k", "v", "log_decay", "log_channels", "beta"};
    for (size_t i = 1; i < one.size(); ++i) {
      // What neither reads has no gradient.
      const auto zeros = [](const std::vector<double>& values) {
        return std::ranges::all_of(values, [](double value) { return value == 0; });
      };
      if (zeros(one[i]) && zeros(two[i])) continue;
      expect_near(one[i], two[i], kGradientTolerance, pair + ", gradient of " + names[i - 1]);
    }
    expect_near(stepped(a, leaves, steps), stepped(b, leaves, steps), kTolerance, pair + ", steps");
  }
  set_cpu_instruction_set(before);
}

TEST(Reductions, GlaWithAScalarGateIsTheFormOfMamba2) {
  expect_same(outer_product(false, Gate::equal_channels), outer_product(false, Gate::head));
}

TEST(Reductions, KdaWithEqualGatesIsGatedDeltaNet) {
  expect_same(outer_product(true, Gate::equal_channels), outer_product(true, Gate::head));
}

TEST(Reductions, RankOneTransitionsContainEveryGatedForm) {
  for (const bool delta_rule : {false, true}) {
    for (const Gate gate : {Gate::none, Gate::head, Gate::channels}) {
      SCOPED_TRACE(testing::Message()
                   << "delta rule " << delta_rule << ", gate " << static_cast<int>(gate));
      expect_same(rank_one(delta_rule, gate), outer_product(delta_rule, gate));
    }
  }
}

TEST(Reductions, LogLinearAttentionWithEqualWeightsIsItsState) {
  expect_same(log_linear(false), outer_product(false, Gate::head));
  expect_same(log_linear(true), outer_product(true, Gate::head));
}

// Gated DeltaNet that forgets nothing is DeltaNet, and with all of its strength it is DeltaNet
// without a strength.
TEST(Reductions, GatedDeltaNetWithoutForgettingIsDeltaNet) {
  Form open = outer_product(true, Gate::head);
  open.run = [run = open.run](const Context& context, const Leaves& in, const CheckedBatch& batch) {
    Leaves kept = in;
    kept.log_decay = Tensor::zeros(in.log_decay.shape());
    return run(context, kept, batch);
  };
  expect_same(open, outer_product(true, Gate::none));
  Form full = outer_product(true, Gate::none);
  full.run = [run = full.run](const Context& context, const Leaves& in, const CheckedBatch& batch) {
    Leaves strong = in;
    strong.beta = Tensor::full(in.beta.shape(), 1);
    return run(context, strong, batch);
  };
  expect_same(full, outer_product(true, Gate::none, false));
}

// With strength 1 and unit keys a key reads back what was last written for it, whatever the state
// held: the delta rule (arXiv 2406.06484, section 2.2).
TEST(Reductions, AUnitKeyReadsBackWhatWasWritten) {
  Leaves leaves = draw_leaves(100);
  leaves.q = leaves.k;
  leaves.beta = Tensor::full(leaves.beta.shape(), 1);
  for (const Gate gate : {Gate::none, Gate::head, Gate::channels}) {
    const Form form = outer_product(true, gate);
    Tensor values = Tensor::empty(leaves.v.shape());
    for (int64_t i = 0; i < values.rows(); ++i) {
      for (int64_t c = 0; c < values.columns(); ++c) {
        values.row(i)[c] = 0.25f * leaves.v.row(i)[c];  // as queries are scaled
      }
    }
    expect_near(doubles(form.run({}, leaves, batch_of({100}))), doubles(values), kTolerance,
                "values");
  }
}

// With strength 2 the transition of a unit key is a reflection, whose eigenvalue is -1: two of them
// leave the state as it was, one turns the sign of what the key held (arXiv 2411.12537).
TEST(Reductions, StrengthTwoIsAReflection) {
  constexpr int64_t kRows = 41;  // a write, and forty reflections that write nothing
  Leaves leaves = draw_leaves(kRows);
  for (int64_t i = 0; i < kRows; ++i) {
    std::copy_n(leaves.k.row(0), kHeads * kKeys, leaves.k.row(i));
    std::copy_n(leaves.k.row(0), kHeads * kKeys, leaves.q.row(i));
    if (i > 0) std::fill_n(leaves.v.row(i), kHeads * kColumns, 0.0f);
    std::fill_n(leaves.beta.row(i), kHeads, i == 0 ? 1.0f : 2.0f);
  }
  for (const Form& form : {outer_product(true, Gate::none), rank_one(true, Gate::none)}) {
    std::vector<double> expected;
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t c = 0; c < kHeads * kColumns; ++c) {
        const double value = 0.25 * static_cast<double>(leaves.v.row(0)[c]);
        expected.push_back(i % 2 == 0 ? value : -value);
      }
    }
    expect_near(doubles(form.run({}, leaves, batch_of({kRows}))), expected, kTolerance, form.name);
    expect_near(stepped(form, leaves, {1, 16, 1, 23}), expected, kTolerance, form.name + ", steps");
  }
}

// A state of one row for each of its columns is a diagonal scan: HGRN2 with an expansion of 1 is
// HGRN.
TEST(Reductions, OneKeyColumnIsADiagonalScan) {
  constexpr int64_t kWidth = 12, kRows = 140;
  Random random(5);
  const auto draw = [&](double low, double high) {
    Tensor tensor = Tensor::empty({kRows, kWidth});
    for (float& value : tensor.values()) value = static_cast<float>(random.uniform(low, high));
    return tensor;
  };
  const Tensor log_decay = draw(-1, 0), x = draw(-1, 1), q = draw(-1, 1);
  const Tensor ones = Tensor::full({kRows, kWidth}, 1);
  const OuterProductStateOptions options{.value_heads = kWidth,
                                         .key_heads = kWidth,
                                         .key_dim = 1,
                                         .value_dim = 1,
                                         .channel_decay = true};
  const Batch batch = batch_of({100, 40});
  const Tensor state = outer_product_state({}, {q, ones, x, log_decay, {}, {}}, options, batch, {});
  const Tensor scan = multiply({}, q, diagonal_scan({}, log_decay, x, batch, {}));
  expect_near(doubles(state), doubles(scan), kTolerance, "states");
}

// Mamba whose decay is the same for all numbers of a channel is Mamba-2 with heads of one column.
TEST(Reductions, MambaWithOneDecayAChannelIsMamba2) {
  constexpr int64_t kWidth = 10, kStates = 8, kRows = 140;
  Random random(6);
  const auto draw = [&](int64_t columns, double low, double high) {
    Tensor tensor = Tensor::empty({kRows, columns});
    for (float& value : tensor.values()) value = static_cast<float>(random.uniform(low, high));
    return tensor;
  };
  const Tensor x = draw(kWidth, -1, 1), raw = draw(kWidth, -3, 1);
  const Tensor B = draw(kStates, -1, 1), C = draw(kStates, -1, 1);
  Tensor bias = Tensor::empty({kWidth}), D = Tensor::empty({kWidth});
  Tensor A_log = Tensor::empty({kWidth}), A_logs = Tensor::empty({kWidth, kStates});
  for (int64_t c = 0; c < kWidth; ++c) {
    bias.data()[c] = static_cast<float>(random.uniform(-1, 0));
    D.data()[c] = static_cast<float>(random.uniform(-1, 1));
    A_log.data()[c] = static_cast<float>(random.uniform(-1, 1));
    std::fill_n(A_logs.row(c), kStates, A_log.data()[c]);
  }
  const Batch batch = batch_of({100, 40});
  const Tensor mamba = selective_scan({}, x, raw, bias, A_logs, B, C, D, batch, {});
  const auto [dt, log_decay] = decay_gate({}, raw, bias, A_log, 0, 1e9f);
  const OuterProductStateOptions options{
      .value_heads = kWidth, .key_heads = 1, .key_dim = kStates, .value_dim = 1};
  const Tensor mamba2 = outer_product_state({}, {C, B, x, log_decay, dt, D}, options, batch, {});
  expect_near(doubles(mamba), doubles(mamba2), kTolerance, "outputs");
}

// A mode without an imaginary part is a moving average: MEGA's from S4D's kernel.
TEST(Reductions, ARealModeIsADiagonalScan) {
  constexpr int64_t kWidth = 20, kRows = 140;
  Random random(7);
  Tensor u = Tensor::empty({kRows, kWidth}), log_a = Tensor::empty({kWidth});
  for (float& value : u.values()) value = static_cast<float>(random.uniform(-1, 1));
  for (float& value : log_a.values()) value = static_cast<float>(random.uniform(-1, -0.01));
  Tensor poles = Tensor::zeros({2, kWidth}), reads = Tensor::zeros({2, kWidth});
  for (int64_t c = 0; c < kWidth; ++c) {
    poles.row(0)[c] = std::exp(log_a.data()[c]);
    reads.row(0)[c] = 0.5f;  // y is twice the real part
  }
  const Batch batch = batch_of({100, 40});
  const Tensor modes = diagonal_ssm({}, u, poles, reads, Tensor::zeros({kWidth}), batch, {});
  expect_near(doubles(modes), doubles(diagonal_scan({}, log_a, u, batch, {})), kTolerance, "h");
}

// Several updates of a token are as many tokens of one update.
TEST(Reductions, UpdatesOfATokenAreTokens) {
  constexpr int64_t kUpdates = 3, kTokens = 50;
  const Leaves leaves = draw_leaves(kUpdates * kTokens);
  for (const bool delta_rule : {false, true}) {
    OuterProductStateOptions options = options_of(delta_rule, false);
    const OuterProductStateInputs inputs{leaves.q,         leaves.k,    leaves.v,
                                         leaves.log_decay, leaves.beta, {}};
    const Tensor tokens =
        outer_product_state({}, inputs, options, batch_of({kUpdates * kTokens}), {});
    options.updates = kUpdates;
    const Tensor updates = outer_product_state({}, inputs, options, batch_of({kTokens}), {});
    expect_near(doubles(updates), doubles(tokens), kTolerance, "outputs");
  }
}

}  // namespace
}  // namespace pronghorn
