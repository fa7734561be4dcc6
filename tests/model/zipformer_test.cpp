// Spans at a fraction of the rate: both ends against loops in float64, and what is refused. The
// laws of whole models have such spans, too (tests/support/tiny_models.h).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "layers/subsample.h"
#include "support/errors.h"
#include "support/steps.h"
#include "support/tiny_models.h"
#include "tensor/sequence_state.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::batch_of;
using testing_support::error_of;
using testing_support::model_config;

constexpr int64_t kWidth = 19;

// A span of its own, with weights that are not those it starts with.
struct Fixture {
  explicit Fixture(int64_t rate, int64_t width = kWidth)
      : span(config_of(rate), {.width = width}, kWidth, 0.5, ParameterScope(store, "span"),
             StateScope(0, journals)) {
    Random random(4, "weights");
    for (const Parameter& parameter : store.all()) {
      PooledVector<float> values = parameter.value.read();
      for (float& value : values) value += float(random.uniform(-0.3, 0.3));
      parameter.value.write(values);
    }
  }

  static SubsampleConfig config_of(int64_t rate) {
    SubsampleConfig config;
    config.kind = SubsampleConfig::Kind::zipformer;
    config.rates = {rate};
    config.keep = {1 / static_cast<double>(rate)};
    return config;
  }

  PooledVector<float> numbers(const std::string& name) const {
    for (const Parameter& candidate : store.all()) {
      if (candidate.name == "span." + name) return candidate.value.read();
    }
    throw Error(name, "is no parameter");
  }

  ParameterStore store{3, true};
  std::vector<JournalShape> journals;
  Subsample span;
};

Tensor random_rows(int64_t rows) {
  Random random(2, "rows");
  std::vector<float> values;
  for (int64_t i = 0; i < rows * kWidth; ++i) values.push_back(float(random.normal()));
  return Tensor::from(values, {rows, kWidth});
}

// Checks both ends, the span giving 2 p + 1 for a row p that entered. width: of the span.
void expect_reference(int64_t rate, const Batch& batch, int64_t width = kWidth) {
  const bool all = batch.segments.front().mask == Mask::full;
  const Fixture f(rate, width);
  const Tensor x = random_rows(batch.rows());
  const CheckedBatch checked(batch);
  Carry carry(batch.rows());
  const Subsample::Span span = f.span.enter({{}, checked, carry}, x);
  ASSERT_EQ(span.inner.columns(), width);
  for (int64_t row = 0; row < span.inner.rows(); ++row) {
    for (int64_t c = kWidth; c < width; ++c) EXPECT_EQ(span.inner.row(row)[c], 0) << row;
  }
  const PooledVector<float> made = span.inner.read();
  std::vector<float> y;
  for (const float value : made) y.push_back(2 * value + 1);
  const Tensor out = f.span.leave({}, checked, span, Tensor::from(y, span.inner.shape()));

  const PooledVector<float> pool = f.numbers("pool.weight"), bypass = f.numbers("bypass_scale");
  std::vector<double> weights;
  double sum = 0;
  for (const float w : pool) sum += weights.emplace_back(std::exp(double{w}));
  size_t entered = 0;
  for (const Segment& segment : batch.segments) {
    const auto value = [&](int64_t row, int64_t c) {
      return row < 0 ? 0.0 : double{x.row(segment.first_row + row)[c]};
    };
    const auto pooled = [&](int64_t end, int64_t c) {
      double total = 0;
      for (int64_t j = 0; j < rate; ++j) {
        total += weights[static_cast<size_t>(j)] / sum * value(end - rate + 1 + j, c);
      }
      return total;
    };
    for (int64_t t = 0; t < segment.length; ++t) {
      const int64_t group = t / rate;
      const int64_t end =
          all ? std::min((group + 1) * rate, segment.length) - 1 : (t + 1) / rate * rate - 1;
      if (t == end) {
        const int32_t row = static_cast<int32_t>(segment.first_row + t);
        ASSERT_LT(entered, span.choice.selection.rows.size());
        EXPECT_EQ(span.choice.selection.rows[entered++], row);
      }
      for (int64_t c = 0; c < kWidth; ++c) {
        double expected = value(t, c);
        if (end >= 0 && c < width) {
          expected += double{bypass[static_cast<size_t>(c)]} * (2 * pooled(end, c) + 1 - expected);
        }
        // A dozen roundings of f32 to numbers of up to ten.
        EXPECT_NEAR(double{out.row(segment.first_row + t)[c]}, expected, 1e-5)
            << "rate " << rate << ", row " << t << " of " << segment.length;
      }
    }
  }
  EXPECT_EQ(entered, span.choice.selection.rows.size());
}

TEST(Zipformer, RowsThatSeeEarlierOnesWaitForTheEndOfAGroup) {
  for (const int64_t rate : {2, 4, 8}) expect_reference(rate, batch_of({19, 3, 0, 8, 1}));
}

TEST(Zipformer, RowsThatSeeAllBelongToTheGroupThatTheyAreIn) {
  for (const int64_t rate : {2, 4, 8}) {
    Batch batch = batch_of({19, 3, 8, 1});
    for (Segment& segment : batch.segments) segment.mask = Mask::full;
    expect_reference(rate, batch);
  }
}

// Narrower, it changes the first columns alone; wider, it is given zeros and gives back what fits.
TEST(Zipformer, ASpanHasAWidthOfItsOwn) {
  for (const int64_t width : {int64_t{7}, kWidth + 5}) {
    for (const int64_t rate : {1, 2, 4}) {
      SCOPED_TRACE(fmt::format("rate {}, width {}", rate, width));
      expect_reference(rate, batch_of({19, 3, 0, 8, 1}), width);
      Batch batch = batch_of({19, 3, 8, 1});
      for (Segment& segment : batch.segments) segment.mask = Mask::full;
      expect_reference(rate, batch, width);
    }
  }
}

TEST(Zipformer, KindsOfBlocksHaveOneWidth) {
  const auto refusal = [](const std::string& pattern, const std::string& more) {
    return error_of([&] {
      model_config(fmt::format(
          R"("pattern": "{}", "subsample": {{"type": "zipformer", "rate": 2, "width": [12, 30]}},
             "blocks": {{"a": {{"mixer": {{"type": "mamba"}}}}, "b": {{"mixer": {{"type": "mamba"}}}},
                         "c": {{"mixer": {{"type": "mamba"}}}}}}{})",
          pattern, more));
    });
  };
  EXPECT_EQ(refusal("a(b)(c)a", ""), "no error");
  EXPECT_EQ(refusal("a(b(c)b)a", ""), "no error");
  EXPECT_THAT(refusal("a(b)(b)c", ""), HasSubstr("blocks.b: stands in rows of 12 and of 30"));
  EXPECT_THAT(refusal("a(b)(c)b", ""), HasSubstr("blocks.b: stands in rows of 12 and of 24"));
  EXPECT_THAT(refusal("a(b)(c)", R"(, "mtp": {"heads": 1})"),
              HasSubstr("'c' is of rows of 30 columns"));
  EXPECT_EQ(refusal("a(b)(c)", R"(, "mtp": {"heads": 1, "block": "a"})"), "no error");
  const ModelConfig config = model_config(
      R"x("pattern": "a(b)(c)", "subsample": {"type": "zipformer", "rate": [1, 2], "width": [12, 30]},
          "blocks": {"a": {"mixer": {"type": "mamba"}}, "b": {"mixer": {"type": "mamba"}},
                     "c": {"mixer": {"type": "mamba"}}})x");
  EXPECT_EQ(config.block_width('a'), 24);
  EXPECT_EQ(config.block_width('b'), 12);
  EXPECT_EQ(config.block_width('c'), 30);
  EXPECT_EQ(config.output_size(), 24);
  // What a layer derives from its width comes from that of its rows.
  EXPECT_EQ(config.blocks.at('b').mixers[0].at("inner_size"), 24);
  EXPECT_EQ(config.blocks.at('c').mixers[0].at("inner_size"), 60);
}

TEST(Zipformer, WhatIsPooledAndHeldIsKeptOfASequence) {
  const Fixture f(4);
  ASSERT_EQ(f.journals.size(), 2u);
  EXPECT_EQ(f.journals[0].history, 3);
  auto layout = std::make_shared<StateLayout>();
  layout->layers = {f.journals};
  layout->layer_spans = {-1};
  layout->span_parents = {-1};
  const Tensor x = random_rows(23);
  const auto run = [&](std::vector<int64_t> steps) {
    SequenceState state(layout);
    std::vector<float> all;
    int64_t done = 0;
    for (const int64_t length : steps) {
      Batch batch = batch_of({length});
      for (int32_t& position : batch.positions) position += static_cast<int32_t>(done);
      batch.segments[0].state = &state;
      const CheckedBatch checked(batch);
      Carry carry(length);
      const Subsample::Span span = f.span.enter({{}, checked, carry}, x.row_slice(done, length));
      const PooledVector<float> out = f.span.leave({}, checked, span, span.inner).read();
      all.insert(all.end(), out.begin(), out.end());
      state.advance(length);
      done += length;
    }
    return all;
  };
  const std::vector<float> once = run({23});
  EXPECT_EQ(run(std::vector<int64_t>(23, 1)), once);
  EXPECT_EQ(run({5, 1, 3, 2, 12}), once);
}

TEST(Zipformer, RefusesPositionsThatAreLeftOut) {
  const Fixture f(2);
  const auto refusal = [&](const Batch& batch) {
    const CheckedBatch checked(batch);
    Carry carry(batch.rows());
    return error_of([&] { f.span.enter({{}, checked, carry}, random_rows(batch.rows())); });
  };
  Batch batch = batch_of({6});
  EXPECT_EQ(refusal(batch), "no error");
  batch.positions[5] = 7;
  EXPECT_THAT(refusal(batch), HasSubstr("7 follows 4"));
  for (int32_t& position : batch.positions) position += 3;
  EXPECT_THAT(refusal(batch), HasSubstr("begins at position 3"));
  batch = batch_of({6, 2});
  batch.segments[1].mask = Mask::full;
  EXPECT_THAT(refusal(batch), HasSubstr("different ways"));
}

TEST(Zipformer, ConfigurationsAreChecked) {
  const auto refusal = [](const std::string& pattern, const std::string& subsample) {
    return error_of([&] {
      model_config(fmt::format(
          R"("pattern": "{}", "subsample": {{"type": "zipformer", {}}},
             "blocks": {{"b": {{"mixer": {{"type": "mamba"}}}}}})",
          pattern, subsample));
    });
  };
  EXPECT_EQ(refusal("b(b)(b)", R"("rate": [2, 8], "bypass_steps": 3)"), "no error");
  EXPECT_EQ(refusal("b(b)(b)", R"("rate": 4)"), "no error");
  EXPECT_EQ(refusal("b(b)(b)", R"("rate": [1, 2], "width": 24)"), "no error");
  EXPECT_THAT(refusal("b(b)", R"("rate": 0)"), HasSubstr("rate"));
  EXPECT_THAT(refusal("b(b)", R"("rate": 2, "width": [24, 24])"), HasSubstr("2 widths for 1 span"));
  EXPECT_THAT(refusal("b(b)", R"("rate": 2, "width": [0])"), HasSubstr("whole number"));
  EXPECT_THAT(refusal("b(b)", R"("rate": [2, 2])"), HasSubstr("2 rates for 1 span"));
  EXPECT_THAT(refusal("b(b)", R"("rate": [1.5])"), HasSubstr("whole number"));
  EXPECT_THAT(refusal("b(b)", R"("rate": 2, "keep": 0.5)"), HasSubstr("keep"));
  EXPECT_THAT(refusal("((((b))))", R"("rate": 16)"), HasSubstr("together"));
  const ModelConfig config = model_config(
      R"x("pattern": "b(b)", "subsample": {"type": "zipformer", "rate": 4},
          "blocks": {"b": {"mixer": {"type": "mamba"}}})x");
  EXPECT_EQ(config.subsample.rates, std::vector<int64_t>{4});
  EXPECT_TRUE(config.subsample.widths.empty());
  const nlohmann::json written = write_pronghorn_config(config);
  EXPECT_EQ(write_pronghorn_config(read_pronghorn_config({written, "again"})), written);
}

}  // namespace
}  // namespace pronghorn
