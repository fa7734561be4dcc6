// Spans of a mixture of depths: which rows enter, what comes back, what the predictor learns from.
#include <gmock/gmock.h>

#include <numeric>

#include "base/error.h"
#include "layers/subsample.h"
#include "support/model_runs.h"
#include "support/steps.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::model_config;
using testing_support::random_tokens;

using Predictor = SubsampleConfig::Predictor;

constexpr int64_t kWidth = 19, kRows = 22;

SubsampleConfig config_of(Predictor predictor, bool score_norm = false) {
  SubsampleConfig config;
  config.kind = SubsampleConfig::Kind::mixture_of_depths;
  config.keep = {0.25};
  config.score_norm = score_norm;
  config.predictor = predictor;
  config.predictor_size = 5;
  config.predictor_loss = 0.5;
  return config;
}

// A span of its own, and what goes into it.
struct Fixture {
  explicit Fixture(const SubsampleConfig& config, uint64_t seed = 2)
      : span(config, {}, kWidth, 0.5, ParameterScope(store, "span"), StateScope(0, journals)) {
    Random random(seed, "rows");
    std::vector<float> values;
    for (int64_t i = 0; i < kRows * kWidth; ++i) values.push_back(float(random.normal()));
    x = Tensor::from(values, {kRows, kWidth});
    for (const Parameter& parameter : store.all()) {
      if (!parameter.name.ends_with("bias")) continue;
      for (float& value : parameter.value.values()) value = float(random.uniform(-0.3, 0.3));
    }
  }

  const Tensor& parameter(const std::string& name) const {
    for (const Parameter& candidate : store.all()) {
      if (candidate.name == "span." + name) return candidate.value;
    }
    throw Error(name, "is no parameter");
  }

  // W x + b of a row in float64.
  static std::vector<double> product(const Tensor& w, const std::vector<double>& x) {
    std::vector<double> y;
    for (int64_t o = 0; o < w.rows(); ++o) {
      double sum = 0;
      for (int64_t i = 0; i < w.columns(); ++i) {
        sum += double{w.row(o)[i]} * x[static_cast<size_t>(i)];
      }
      y.push_back(sum);
    }
    return y;
  }

  std::vector<double> row(int64_t i) const {
    std::vector<double> values(x.row(i), x.row(i) + kWidth);
    if (!score_norm) return values;
    const double squares =
        std::inner_product(values.begin(), values.end(), values.begin(), 0.0) / kWidth;
    for (double& value : values) value /= std::sqrt(squares + 1e-5);
    return values;
  }

  double router(int64_t i) const { return product(parameter("score.weight"), row(i))[0]; }

  double classifier(int64_t i) const {
    std::vector<double> inside = product(parameter("predictor.up_proj.weight"), row(i));
    for (size_t k = 0; k < inside.size(); ++k) {
      inside[k] += double{parameter("predictor.up_proj.bias").data()[k]};
      inside[k] /= 1 + std::exp(-inside[k]);
    }
    return product(parameter("predictor.down_proj.weight"), inside)[0] +
           double{*parameter("predictor.down_proj.bias").data()};
  }

  // Whether a small step changes no choice of training: ceil(0.25 * 22) rows.
  bool chooses_clearly() const {
    std::vector<double> scores;
    for (int64_t i = 0; i < kRows; ++i) scores.push_back(router(i));
    std::ranges::sort(scores, std::greater<>());
    return scores[5] - scores[6] > 0.05;
  }

  ParameterStore store{3, true};
  std::vector<JournalShape> journals;
  Subsample span;
  Tensor x;
  bool score_norm = false;
};

// x + r f(x) for the rows that enter, f being what the span adds; the others stay.
void expect_result(const Fixture& f, const Context& context, const CheckedBatch& batch,
                   const Subsample::Span& span) {
  std::vector<float> made;
  for (const int32_t row : span.choice.selection.rows) {
    for (int64_t c = 0; c < kWidth; ++c) {
      made.push_back(2 * f.x.row(row)[c] + static_cast<float>(c));  // f(x) = x + c
    }
  }
  const auto selected = static_cast<int64_t>(span.choice.selection.rows.size());
  const Tensor out = f.span.leave(context, batch, span, Tensor::from(made, {selected, kWidth}));
  size_t next = 0;
  for (int64_t row = 0; row < kRows; ++row) {
    const bool entered = next < span.choice.selection.rows.size() &&
                         span.choice.selection.rows[next] == static_cast<int32_t>(row);
    next += entered;
    for (int64_t c = 0; c < kWidth; ++c) {
      const double x = double{f.x.row(row)[c]};
      const double expected = entered ? x + f.router(row) * (x + static_cast<double>(c)) : x;
      // A few roundings of f32 to numbers of some hundred.
      EXPECT_NEAR(double{out.row(row)[c]}, expected, 1e-4) << row << ", " << c;
    }
  }
}

class DepthsTest : public testing::TestWithParam<std::tuple<Predictor, bool>> {};

TEST_P(DepthsTest, TrainingTakesTheHighestOfEachSequenceAndWeighsByTheRouter) {
  Fixture f(config_of(std::get<0>(GetParam()), std::get<1>(GetParam())));
  f.score_norm = std::get<1>(GetParam());
  Tape tape;
  Context context;
  context.tape = &tape;
  const Batch batch = testing_support::batch_of({13, 9});
  const CheckedBatch checked(batch);
  Carry carry(kRows);
  const Subsample::Span span = f.span.enter({context, checked, carry}, f.x);
  // ceil(0.25 * 13) and ceil(0.25 * 9).
  ASSERT_THAT(span.choice.selection.counts, ElementsAre(4, 3));
  size_t at = 0;
  for (const auto& [first, length, kept] : {std::tuple(0, 13, 4), std::tuple(13, 9, 3)}) {
    std::vector<int32_t> ranked(static_cast<size_t>(length));
    std::iota(ranked.begin(), ranked.end(), first);
    std::ranges::sort(ranked, [&](int32_t a, int32_t b) { return f.router(a) > f.router(b); });
    std::sort(ranked.begin(), ranked.begin() + kept);
    for (int i = 0; i < kept; ++i) {
      EXPECT_EQ(span.choice.selection.rows[at++], ranked[static_cast<size_t>(i)]);
    }
  }
  expect_result(f, context, checked, span);
}

TEST_P(DepthsTest, InferenceAsksThePredictorOfEachRow) {
  const auto [predictor, score_norm] = GetParam();
  Fixture f(config_of(predictor, score_norm));
  f.score_norm = score_norm;
  const Batch batch = testing_support::batch_of({kRows});
  const CheckedBatch checked(batch);
  Carry carry(kRows);
  const Subsample::Span span = f.span.enter({{}, checked, carry}, f.x);
  std::vector<int32_t> expected;
  for (int32_t row = 0; row < kRows; ++row) {
    const double z = predictor == Predictor::router ? f.router(row) : f.classifier(row);
    ASSERT_GT(std::abs(z), 1e-4) << "a rounding would decide";
    if (z > 0) expected.push_back(row);
  }
  EXPECT_EQ(span.choice.selection.rows, expected);
  EXPECT_GT(expected.size(), 0u);
  EXPECT_LT(expected.size(), static_cast<size_t>(kRows));
  expect_result(f, {}, checked, span);
}

INSTANTIATE_TEST_SUITE_P(
    Predictors, DepthsTest,
    testing::Combine(testing::Values(Predictor::router, Predictor::classifier), testing::Bool()),
    [](const auto& test) {
      return std::string(std::get<0>(test.param) == Predictor::router ? "router" : "classifier") +
             (std::get<1>(test.param) ? "_norm" : "");
    });

// The loss as a function of the router's or classifier's parameters.
double predictor_loss(const Fixture& f) {
  const Batch batch = testing_support::batch_of({kRows});
  const CheckedBatch checked(batch);
  Tape tape;
  Context context;
  context.tape = &tape;
  Carry carry(kRows, {.losses = true});
  f.span.enter({context, checked, carry}, f.x);
  EXPECT_EQ(carry.losses().size(), 1u);
  return double{*carry.losses()[0].value.data()};
}

void expect_learns(Predictor predictor, const std::vector<std::string>& learning) {
  uint64_t seed = 2;
  while (!Fixture(config_of(predictor), seed).chooses_clearly()) ++seed;
  Fixture f(config_of(predictor), seed);
  f.x.set_requires_grad(true);
  const Batch batch = testing_support::batch_of({kRows});
  const CheckedBatch checked(batch);
  Tape tape;
  Context context;
  context.tape = &tape;
  Carry carry(kRows, {.losses = true});
  f.span.enter({context, checked, carry}, f.x);
  ASSERT_EQ(carry.losses().size(), 1u);
  const LayerLoss loss = carry.losses()[0];
  EXPECT_EQ(loss.name, "predictor");
  EXPECT_EQ(loss.weight, 0.5);
  loss.value.give_grad(Tensor::full({1}, 1));
  tape.run_backward();
  const bool reaches_rows = predictor == Predictor::router;
  EXPECT_EQ(f.x.has_grad(), reaches_rows) << "a classifier teaches the rows nothing";
  std::vector<std::string> learned;
  for (const Parameter& parameter : f.store.all()) {
    if (!parameter.value.has_grad()) continue;
    learned.push_back(parameter.name);
    for (int64_t i = 0; i < parameter.size(); ++i) {
      float& value = parameter.value.data()[i];
      const float before = value;
      // Second order errs by h^2, the loss in f32 by 1e-7 / h.
      constexpr float kStep = 1e-3f;
      value = before + kStep;
      parameter.value.bump_version();
      const double up = predictor_loss(f);
      value = before - kStep;
      parameter.value.bump_version();
      const double down = predictor_loss(f);
      value = before;
      parameter.value.bump_version();
      EXPECT_NEAR((up - down) / (2 * double{kStep}), double{parameter.value.grad().data()[i]}, 2e-4)
          << parameter.name << " " << i;
    }
  }
  EXPECT_EQ(learned, learning);
}

TEST(Depths, TheClassifierLearnsAlone) {
  expect_learns(Predictor::classifier,
                {"span.predictor.up_proj.weight", "span.predictor.up_proj.bias",
                 "span.predictor.down_proj.weight", "span.predictor.down_proj.bias"});
}

TEST(Depths, TheRouterLearnsToPredictItself) {
  expect_learns(Predictor::router, {"span.score.weight"});
}

TEST(Depths, ConfigurationsAreChecked) {
  const std::string blocks =
      R"(, "blocks": {"b": {"mixer": {"type": "attention", "heads": 4}}}, "pattern": "b(b) ")";
  const auto problem = [&](const std::string& subsample) -> std::string {
    try {
      model_config(R"("subsample": {)" + subsample + "}" + blocks);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(problem(R"("type": "mixture_of_depths", "keep": 0.125)"), "");
  EXPECT_THAT(problem(R"("type": "mixture_of_depths")"), HasSubstr("keep"));
  EXPECT_THAT(problem(R"("type": "depths", "keep": 0.5)"), HasSubstr("mixture_of_depths"));
  EXPECT_THAT(problem(R"("type": "mixture_of_depths", "keep": 0.5, "score_bias": true)"),
              HasSubstr("score_bias"));
  EXPECT_THAT(problem(R"("keep": 0.5, "predictor": "router")"), HasSubstr("predictor"));
  EXPECT_THAT(problem(R"("type": "mixture_of_depths", "keep": 0.5, "predictor": "mlp")"),
              HasSubstr("classifier"));
  EXPECT_THAT(problem(R"("type": "mixture_of_depths", "keep": 0.5, "predictor": "router",
                         "predictor_size": 3)"),
              HasSubstr("predictor_size"));
}

}  // namespace
}  // namespace pronghorn
