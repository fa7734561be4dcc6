#include "ops/outer_product_state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "backend/backend.h"
#include "backend/cpu/cpu_features.h"
#include "base/random.h"
#include "base/threads.h"
#include "laws/outer_product_state_reference.h"

namespace pronghorn {
namespace {

using laws::OuterProductValues;

struct Variant {
  std::string name;
  OuterProductStateOptions options;
  bool log_decay = true, beta = true, skip = false;
  double lowest_log_decay = -0.3, largest_beta = 1;
};

std::vector<Variant> variants() {
  return {
      {"mamba2", {4, 1, 32, 48, 1, false}, true, true, true},
      {"two_groups", {6, 2, 24, 17, 0.5f, false}, true, true, true},
      {"linear", {2, 2, 20, 40, 0.3f, false}, false, false, false},
      {"strong_decay", {2, 1, 16, 16, 1, false}, true, true, false, -100},
      {"gated_delta", {2, 2, 16, 32, 0.25f, true}, true, true, false},
      {"gated_delta_grouped", {4, 2, 19, 33, 1, true}, true, true, true, -0.05, 2},
      {"delta", {3, 3, 16, 64, 1, true}, false, true, false},
      {"delta_plain", {1, 1, 32, 128, 1, true}, false, false, false},
      {"gla", {2, 2, 32, 64, 0.5f, false, true}, true, false, false},
      {"kda", {2, 2, 16, 32, 0.25f, true, true}, true, true, false},
      {"kda_grouped", {4, 2, 19, 33, 1, true, true}, true, true, true, -2, 2},
      {"channels_strong_decay", {2, 1, 16, 16, 1, false, true}, true, true, true, -100},
      {"kda_strong_decay", {2, 1, 13, 64, 1, true, true}, true, true, false, -100},
      {"kda_strongest_decay", {1, 1, 13, 32, 1, true, true}, true, true, false, -1000},
  };
}

Tensor draw(Random& random, int64_t rows, int64_t columns, double low, double high) {
  Tensor tensor = Tensor::empty({rows, columns});
  for (float& value : tensor.values()) value = static_cast<float>(random.uniform(low, high));
  return tensor;
}

OuterProductStateInputs draw_inputs(const Variant& variant, int64_t rows, uint64_t seed = 1) {
  const OuterProductStateOptions& o = variant.options;
  Random random(seed, variant.name);
  // |k| <= 1 keeps the delta rule stable for beta up to 2.
  const double k = 1 / std::sqrt(static_cast<double>(o.key_dim));
  OuterProductStateInputs in;
  in.q = draw(random, rows, o.key_heads * o.key_dim, -1, 1);
  in.k = draw(random, rows, o.key_heads * o.key_dim, -k, k);
  in.v = draw(random, rows, o.value_heads * o.value_dim, -1, 1);
  if (variant.log_decay) {
    in.log_decay = draw(random, rows, o.value_heads * (o.channel_decay ? o.key_dim : 1),
                        variant.lowest_log_decay, 0);
    // Strong decays come and go, so that sums of them are large while others matter.
    if (variant.lowest_log_decay < -1) {
      for (float& g : in.log_decay.values()) {
        if (random.below(3) != 0) g *= 1e-4f;
        if (random.below(10) == 0) g = -100;
        if (random.below(10) == 0) g = 0;
      }
    }
  }
  if (variant.beta) in.beta = draw(random, rows, o.value_heads, 0, variant.largest_beta);
  if (variant.skip) {
    in.skip = draw(random, 1, o.value_heads, -1, 1).reshape({o.value_heads});
  }
  return in;
}

std::vector<double> doubles(const Tensor& tensor, int64_t first_row, int64_t rows) {
  std::vector<double> result;
  if (!tensor.defined()) return result;
  for (int64_t i = first_row; i < first_row + rows; ++i) {
    result.insert(result.end(), tensor.row(i), tensor.row(i) + tensor.columns());
  }
  return result;
}

OuterProductValues values_of(const OuterProductStateInputs& in, int64_t first, int64_t rows) {
  return {doubles(in.q, first, rows),    doubles(in.k, first, rows),
          doubles(in.v, first, rows),    doubles(in.log_decay, first, rows),
          doubles(in.beta, first, rows), doubles(in.skip, 0, 1)};
}

Batch make_batch(const std::vector<int64_t>& lengths, const std::vector<SequenceState*>& states) {
  Batch batch;
  for (size_t s = 0; s < lengths.size(); ++s) {
    Segment segment;
    segment.state = states.empty() ? nullptr : states[s];
    segment.first_row = batch.rows();
    segment.length = lengths[s];
    const int64_t past = segment.state != nullptr ? segment.state->length() : 0;
    for (int64_t i = 0; i < lengths[s]; ++i) {
      batch.positions.push_back(static_cast<int32_t>(past + i));
    }
    batch.segments.push_back(segment);
  }
  return batch;
}

SequenceState fresh_state(const Variant& variant) {
  auto layout = std::make_shared<StateLayout>();
  layout->layers = {{outer_product_state_journal(variant.options)}};
  return SequenceState(layout);
}

OuterProductStateInputs rows_of(const OuterProductStateInputs& in, int64_t first, int64_t rows) {
  const auto cut = [&](const Tensor& t) { return t.defined() ? t.row_slice(first, rows) : t; };
  return {cut(in.q), cut(in.k), cut(in.v), cut(in.log_decay), cut(in.beta), in.skip};
}

// Runs rows first ... first + length - 1 of `in` as the continuation of `state`.
std::vector<float> advance(const Variant& variant, const OuterProductStateInputs& in, int64_t first,
                           int64_t length, SequenceState& state) {
  const Batch batch = make_batch({length}, {&state});
  const Tensor out =
      outer_product_state({}, rows_of(in, first, length), variant.options, batch, {});
  state.advance(length);
  const auto values = out.values();
  return {values.begin(), values.end()};
}

double relative_error(const std::vector<double>& expected, const float* actual) {
  double largest = 1e-30, error = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    const double difference = std::abs(expected[i] - static_cast<double>(actual[i]));
    error = std::isnan(difference) ? INFINITY : std::max(error, difference);
  }
  return error / largest;
}

class OuterProductState : public ::testing::TestWithParam<Variant> {};

// f32 sums of up to a few hundred terms: about sqrt(300) roundings of 6e-8, times the growth of
// intermediate sums over the largest output.
constexpr double kTolerance = 2e-5;

TEST_P(OuterProductState, ChunksEqualTheRecurrence) {
  const std::vector<int64_t> lengths = {130, 1, 64, 0, 15, 200};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  const OuterProductStateInputs in = draw_inputs(GetParam(), rows);
  const Batch batch = make_batch(lengths, {});
  for (const std::string& set : cpu_instruction_sets()) {
    set_cpu_instruction_set(set);
    const Tensor out = outer_product_state({}, in, GetParam().options, batch, {});
    for (const Segment& s : batch.segments) {
      std::vector<double> state;
      const auto expected = laws::outer_product_reference(
          GetParam().options, values_of(in, s.first_row, s.length), s.length, state);
      EXPECT_LT(relative_error(expected, out.data() + s.first_row * out.columns()), kTolerance)
          << set << ", length " << s.length;
    }
  }
}

TEST_P(OuterProductState, GradientsEqualDifferencesOfTheRecurrence) {
  const std::vector<int64_t> lengths = {150, 9, 64};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  const OuterProductStateInputs in = draw_inputs(GetParam(), rows);
  const Batch batch = make_batch(lengths, {});
  const OuterProductStateOptions& options = GetParam().options;
  Random random(3, "gradient");
  const Tensor weights = draw(random, rows, options.value_heads * options.value_dim, -1, 1);
  const std::vector<const Tensor*> inputs = {&in.q,         &in.k,    &in.v,
                                             &in.log_decay, &in.beta, &in.skip};

  // The loss of the sequence that `row` belongs to, in float64, with one input value shifted.
  const auto loss = [&](size_t input, int64_t row, int64_t column, double shift) {
    double sum = 0;
    for (const Segment& s : batch.segments) {
      const bool mine = input == 5 || (row >= s.first_row && row < s.first_row + s.length);
      if (!mine) continue;
      OuterProductValues values = values_of(in, s.first_row, s.length);
      std::vector<double>* all[] = {&values.q,         &values.k,    &values.v,
                                    &values.log_decay, &values.beta, &values.skip};
      const int64_t local = input == 5 ? 0 : row - s.first_row;
      (*all[input])[static_cast<size_t>(local * inputs[input]->columns() + column)] += shift;
      std::vector<double> state;
      const auto out = laws::outer_product_reference(options, values, s.length, state);
      for (size_t i = 0; i < out.size(); ++i) {
        sum +=
            out[i] * static_cast<double>(
                         weights.data()[s.first_row * weights.columns() + static_cast<int64_t>(i)]);
      }
    }
    return sum;
  };

  struct Sample {
    size_t input;
    int64_t row, column;
    double expected;
  };
  std::vector<Sample> samples;
  for (size_t input = 0; input < inputs.size(); ++input) {
    if (!inputs[input]->defined()) continue;
    inputs[input]->set_requires_grad(true);
    for (int i = 0; i < 24; ++i) {
      Sample s{input, static_cast<int64_t>(random.below(static_cast<uint64_t>(rows))),
               static_cast<int64_t>(random.below(static_cast<uint64_t>(inputs[input]->columns()))),
               0};
      if (i < 4) s.row = std::array{int64_t{0}, int64_t{63}, int64_t{64}, int64_t{149}}[i];
      const double step = 1e-4;
      s.expected =
          (loss(input, s.row, s.column, step) - loss(input, s.row, s.column, -step)) / (2 * step);
      samples.push_back(s);
    }
  }

  for (const std::string& set : cpu_instruction_sets()) {
    set_cpu_instruction_set(set);
    std::vector<std::vector<float>> first;
    for (const int threads : {1, 3}) {
      set_thread_count(threads);
      for (const Tensor* t : inputs) t->clear_grad();
      Tape tape;
      const Tensor out = outer_product_state({&tape}, in, options, batch, {});
      out.give_grad(weights);
      tape.run_backward();
      std::vector<std::vector<float>> gradients;
      for (const Tensor* t : inputs) {
        if (!t->defined()) {
          gradients.emplace_back();
          continue;
        }
        const Tensor g = t->grad();
        gradients.emplace_back(g.values().begin(), g.values().end());
      }
      if (first.empty()) {
        first = gradients;
      } else {
        EXPECT_EQ(first, gradients) << "other bits with " << threads << " threads";
      }
    }
    for (const Sample& s : samples) {
      const std::vector<float>& g = first[s.input];
      float largest = 0;
      for (const float value : g) largest = std::max(largest, std::abs(value));
      const int64_t row = s.input == 5 ? 0 : s.row;
      const double actual = g[static_cast<size_t>(row * inputs[s.input]->columns() + s.column)];
      // Central differences with step 1e-4 are good to 1e-8; the rest is f32 rounding.
      EXPECT_NEAR(actual, s.expected, 5e-5 * static_cast<double>(largest))
          << set << ", input " << s.input << " [" << row << ", " << s.column << "]";
    }
  }
  set_thread_count(4);
}

TEST_P(OuterProductState, StepsHaveTheSameBitsHoweverCut) {
  const int64_t rows = 75;
  const OuterProductStateInputs in = draw_inputs(GetParam(), rows);
  std::vector<double> end;
  const auto expected =
      laws::outer_product_reference(GetParam().options, values_of(in, 0, rows), rows, end);
  for (const std::string& set : cpu_instruction_sets()) {
    set_cpu_instruction_set(set);
    SequenceState state = fresh_state(GetParam());
    std::vector<float> single;
    for (int64_t t = 0; t < rows; ++t) {
      const auto out = advance(GetParam(), in, t, 1, state);
      single.insert(single.end(), out.begin(), out.end());
    }
    EXPECT_LT(relative_error(expected, single.data()), kTolerance) << set;
    Random random(5, "cuts");
    for (int trial = 0; trial < 6; ++trial) {
      SequenceState other = fresh_state(GetParam());
      std::vector<float> all;
      for (int64_t t = 0; t < rows;) {
        const int64_t length = trial == 0 ? 16 : 1 + static_cast<int64_t>(random.below(16));
        const int64_t count = std::min(rows - t, length);
        const auto out = advance(GetParam(), in, t, count, other);
        all.insert(all.end(), out.begin(), out.end());
        t += count;
      }
      EXPECT_EQ(single, all) << set << ", trial " << trial;
    }
  }
}

TEST_P(OuterProductState, LongSegmentsContinueAndAreContinued) {
  const int64_t rows = 300;
  const OuterProductStateInputs in = draw_inputs(GetParam(), rows);
  std::vector<double> end;
  const auto expected =
      laws::outer_product_reference(GetParam().options, values_of(in, 0, rows), rows, end);
  for (const std::vector<int64_t>& cuts :
       {std::vector<int64_t>{300}, {5, 17, 100, 128, 50}, {16, 32, 200, 1, 51}, {13, 18, 269}}) {
    SequenceState state = fresh_state(GetParam());
    std::vector<float> all;
    int64_t first = 0;
    for (const int64_t length : cuts) {
      const auto out = advance(GetParam(), in, first, length, state);
      all.insert(all.end(), out.begin(), out.end());
      first += length;
    }
    EXPECT_LT(relative_error(expected, all.data()), kTolerance) << cuts.size() << " cuts";
    EXPECT_EQ(state.journal(0, 0).length(), rows);
    EXPECT_EQ(state.journal(0, 0).anchor_row(), rows / kExactStep * kExactStep);
  }
}

TEST_P(OuterProductState, TreePathsHaveTheBitsOfChains) {
  const OuterProductStateInputs in = draw_inputs(GetParam(), 80);
  // Two branches of 24 nodes that part at the third, and a leaf: paths cross two folds.
  std::vector<int32_t> parents = {-1, 0, 1};
  for (int i = 3; i < 45; ++i) parents.push_back(i < 5 ? 2 : i - 2);
  parents.push_back(0);
  parents.push_back(-1);
  const auto nodes = static_cast<int64_t>(parents.size());
  for (const int64_t past : {0, 11, 16, 30}) {
    SequenceState state = fresh_state(GetParam());
    if (past > 0) advance(GetParam(), in, 0, past, state);
    const SequenceState mark = state;
    Batch batch = make_batch({nodes}, {&state});
    batch.segments[0].parents = parents;
    const Tensor out =
        outer_product_state({}, rows_of(in, past, nodes), GetParam().options, batch, {});
    const int64_t width = out.columns();
    for (const int32_t leaf : {int32_t{44}, int32_t{43}, int32_t{45}, int32_t{46}}) {
      std::vector<int32_t> path;
      for (int32_t i = leaf; i >= 0; i = parents[static_cast<size_t>(i)]) path.push_back(i);
      std::reverse(path.begin(), path.end());
      SequenceState chain = mark;
      for (const int32_t node : path) {
        const auto single = advance(GetParam(), in, past + node, 1, chain);
        EXPECT_TRUE(std::equal(single.begin(), single.end(), out.data() + node * width))
            << "node " << node << " after " << past;
      }
      // The chosen path goes on as the chain does.
      SequenceState committed = state;
      committed.commit(path);
      EXPECT_EQ(advance(GetParam(), in, 70, 9, committed), advance(GetParam(), in, 70, 9, chain));
    }
  }
}

// One row of decays, the same for every token.
TEST(OuterProductStateRows, AConstantDecayIsOneRow) {
  for (const bool channels : {false, true}) {
    const Variant variant{"constant", {2, 2, 16, 24, 0.25f, false, channels}, true, false, false};
    const int64_t rows = 90;
    OuterProductStateInputs in = draw_inputs(variant, rows);
    const int64_t width = in.log_decay.columns();
    const std::vector<float> one(in.log_decay.row(0), in.log_decay.row(0) + width);
    for (int64_t i = 1; i < rows; ++i) std::copy(one.begin(), one.end(), in.log_decay.row(i));
    OuterProductStateInputs constant = in;
    constant.log_decay = Tensor::from(one, {1, width});
    const Batch batch = make_batch({rows}, {});
    const auto values = [&](const OuterProductStateInputs& inputs) {
      const Tensor out = outer_product_state({}, inputs, variant.options, batch, {});
      return std::vector<float>(out.values().begin(), out.values().end());
    };
    EXPECT_EQ(values(in), values(constant));
    SequenceState stepped = fresh_state(variant);
    SequenceState plain = fresh_state(variant);
    for (int64_t t = 0; t < 40; t += 8) {
      OuterProductStateInputs few = rows_of(in, t, 8);
      const Batch steps = make_batch({8}, {&stepped});
      few.log_decay = constant.log_decay;
      const Tensor out = outer_product_state({}, few, variant.options, steps, {});
      stepped.advance(8);
      const std::vector<float> got(out.values().begin(), out.values().end());
      EXPECT_EQ(got, advance(variant, in, t, 8, plain));
    }
  }
}

// The form in which a row is computed depends on no later row.
TEST(OuterProductStateRows, LaterDecaysChangeNoEarlierBits) {
  const Variant variant{"kda", {2, 2, 16, 32, 0.25f, true, true}, true, true, false, -1.5};
  const int64_t rows = 47;
  const OuterProductStateInputs in = draw_inputs(variant, rows);
  const Batch batch = make_batch({rows}, {});
  for (const std::string& set : cpu_instruction_sets()) {
    SCOPED_TRACE(set);
    set_cpu_instruction_set(set);
    const Tensor before = outer_product_state({}, in, variant.options, batch, {});
    OuterProductStateInputs other = in;
    other.log_decay =
        Tensor::from(std::vector<float>(in.log_decay.values().begin(), in.log_decay.values().end()),
                     in.log_decay.shape());
    for (int64_t c = 0; c < other.log_decay.columns(); ++c) other.log_decay.row(rows - 1)[c] = -100;
    const Tensor after = outer_product_state({}, other, variant.options, batch, {});
    const auto count = (rows - 1) * before.columns();
    EXPECT_TRUE(std::equal(before.data(), before.data() + count, after.data()));
  }
}

// Steps as well as chunks.
TEST(OuterProductStateRows, ANanDecayIsNotHidden) {
  for (const bool channels : {false, true}) {
    const Variant variant{"nan", {1, 1, 8, 8, 1, false, channels}, true, false, false};
    OuterProductStateInputs in = draw_inputs(variant, 20);
    for (float& g : in.log_decay.values()) g = std::numeric_limits<float>::quiet_NaN();
    for (const std::string& set : cpu_instruction_sets()) {
      SCOPED_TRACE(set);
      set_cpu_instruction_set(set);
      SequenceState state = fresh_state(variant);
      advance(variant, in, 0, 1, state);
      EXPECT_TRUE(std::isnan(advance(variant, in, 1, 1, state).front()));
      const Tensor all = outer_product_state({}, in, variant.options, make_batch({20}, {}), {});
      EXPECT_TRUE(std::isnan(all.row(19)[0]));
    }
  }
}

TEST_P(OuterProductState, RollsBackAcrossAFold) {
  const OuterProductStateInputs in = draw_inputs(GetParam(), 80);
  SequenceState state = fresh_state(GetParam());
  for (int64_t t = 0; t < 30; ++t) advance(GetParam(), in, t, 1, state);
  SequenceState mark = state;
  const auto expected = advance(GetParam(), in, 30, 10, mark);
  advance(GetParam(), in, 50, 5, state);
  state.truncate(30);
  EXPECT_EQ(advance(GetParam(), in, 30, 10, state), expected);
}

INSTANTIATE_TEST_SUITE_P(Variants, OuterProductState, ::testing::ValuesIn(variants()),
                         [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace pronghorn
