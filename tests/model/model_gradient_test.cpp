// Gradients of whole models: against finite differences of the loss, with recomputed activations,
// and on any number of threads.
#include <gtest/gtest.h>

#include "ops/cross_entropy.h"
#include "support/machine.h"
#include "support/model_runs.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing_support::bit_difference;
using testing_support::chooses_experts;
using testing_support::chooses_keys;
using testing_support::InstructionSet;
using testing_support::model_config;
using testing_support::model_configs;
using testing_support::random_tokens;
using testing_support::relative_difference;
using testing_support::test_name;
using testing_support::Threads;

// Past a chunk of 64 tokens and blocks of 16.
constexpr int64_t kLength = 70;
constexpr int64_t kSegments = 2;

struct Step {
  double loss;  // mean over the tokens, nats
  std::vector<std::vector<float>> gradients;
};

enum class Form { inference, training };  // without and with a tape

// One training step on fixed tokens; without gradients the loss alone, of either form.
// What counts has no gradient of the loss, and an expert that was given no row has none. A
// classifier of depths learns from a loss of its own (mixture_of_depths_test.cpp), and so does an
// indexer (tests/ops/indexer_test.cpp).
bool may_lack_gradient(const Parameter& parameter) {
  return parameter.learning != Learning::loss || parameter.share < 1 ||
         parameter.name.find(".predictor.") != std::string::npos ||
         parameter.name.find(".indexer.") != std::string::npos;
}

Step train_step(const Model& model, bool with_gradients, Precision precision = Precision::f32,
                Form form = Form::training) {
  const auto count = kLength * kSegments;
  const auto tokens = random_tokens(count, model.config().vocab_size, 1);
  const auto targets = random_tokens(count, model.config().vocab_size, 2);
  Tape tape;
  const Context context{form == Form::training ? &tape : nullptr, precision};
  const Batch batch = fresh_segments(tokens, kLength);
  for (const Parameter& parameter : model.parameters()) parameter.value.clear_grad();
  const Tensor hidden = model.forward(context, batch);
  const CrossEntropy result =
      model.cross_entropy(context, hidden, targets, 1.0 / static_cast<double>(count), 0);
  Step step{result.nll / static_cast<double>(count), {}};
  if (!with_gradients) return step;
  tape.run_backward();
  for (const Parameter& parameter : model.parameters()) {
    EXPECT_TRUE(parameter.value.has_grad() || may_lack_gradient(parameter)) << parameter.name;
    if (!parameter.value.has_grad()) {
      step.gradients.emplace_back(static_cast<size_t>(parameter.size()));
      continue;
    }
    const Tensor gradient = parameter.value.grad().clone();
    step.gradients.emplace_back(gradient.values().begin(), gradient.values().end());
  }
  return step;
}

using Parameters = std::tuple<size_t, std::string>;

std::string parameters_name(const testing::TestParamInfo<Parameters>& info) {
  return test_name(model_configs()[std::get<0>(info.param)].first + "__" + std::get<1>(info.param));
}

class ModelGradientTest : public testing::TestWithParam<Parameters> {
 protected:
  const std::string& body() const { return model_configs()[std::get<0>(GetParam())].second; }
  InstructionSet instruction_set_{std::get<1>(GetParam())};
};

// On the best instruction set only, for time: the laws of operators do the same on each.
class FiniteDifferenceTest : public ModelGradientTest {};

// Each parameter tensor is moved by +-h in every element with random signs s; the derivative is
// then g.s, whose random part has the size of |g| however the error is distributed over elements.
//
// Step and tolerance: the fourth-order difference (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h errs
// by h^4 f'''''/30 and by the noise of the loss over h. Unit queries of short rows bend sharply:
// with h = 2e-3 their error was a quarter of |g|, with 2.5e-4 it is below the tolerance. The loss
// of 140 tokens in f32 has a noise of some 1e-7 (each token's error of about 1e-6, averaged), 4e-4
// in the derivative. A missing term or factor is of the size of |g|, which is 1e-2 to 2.
constexpr double kStep = 2.5e-4;
constexpr double kRelative = 0.03;
constexpr double kNoise = 1e-3;

// Where a step of the difference would change which rows enter a subsampled span, the loss jumps;
// where it carries a score across 0 or 1, the loss bends. True if all scores are far from both.
bool selects_clearly(const Model& model) {
  constexpr double kLeastGap = 0.05, kLeastKink = 0.004;
  // A rate chooses by position.
  if (model.config().subsample.kind == SubsampleConfig::Kind::zipformer) return true;
  const auto tokens = random_tokens(kLength * kSegments, model.config().vocab_size, 1);
  Tape tape;
  std::vector<SpanTrace> trace;
  ForwardObserver observer;
  observer.on_span = [&](const SpanTrace& span) { trace.push_back(span); };
  model.forward({&tape, Precision::f32}, fresh_segments(tokens, kLength), observer);
  for (const SpanTrace& span : trace) {
    const double keep = model.config().subsample.keep[static_cast<size_t>(span.span)];
    std::vector<std::vector<float>> scores(kSegments);
    for (size_t i = 0; i < span.rows.size(); ++i) {
      const double score = span.scores[i];
      if (std::min(std::abs(score), std::abs(score - 1)) < kLeastKink) return false;
      scores[static_cast<size_t>(span.rows[i] / kLength)].push_back(span.scores[i]);
    }
    for (std::vector<float>& segment : scores) {
      std::sort(segment.begin(), segment.end(), std::greater<>());
      const auto first_out =
          static_cast<size_t>(std::ceil(keep * static_cast<double>(segment.size()) - 1e-6));
      if (first_out < segment.size() &&
          double{segment[first_out - 1]} - double{segment[first_out]} < kLeastGap) {
        return false;
      }
    }
  }
  return true;
}

// A model without constants that start as 0 or 1, which hide mistakes.
Model random_model(const std::string& body, uint64_t seed) {
  Model model(model_config(body), seed);
  Random random(seed, "gradient");
  for (const Parameter& parameter : model.parameters()) {
    for (float& value : parameter.value.values()) {
      value += static_cast<float>(random.uniform(-0.2, 0.2));
    }
    parameter.value.bump_version();
  }
  return model;
}

TEST_P(FiniteDifferenceTest, EqualsTheGradient) {
  if (chooses_experts(model_config(body()))) {
    GTEST_SKIP() << "a step changes which experts some rows are given to, and the loss jumps: "
                    "tests/laws/experts_case.cpp has the gradient of a choice";
  }
  if (chooses_keys(model_config(body()), kLength)) {
    GTEST_SKIP() << "a step changes which keys some rows look at, and the loss jumps: "
                    "tests/laws/sparse_attention_case.cpp has the gradient of a choice";
  }
  constexpr uint64_t kSeeds = 2000;
  uint64_t seed = 11;
  while (seed < kSeeds && !selects_clearly(random_model(body(), seed))) ++seed;
  ASSERT_LT(seed, kSeeds);
  const Model model = random_model(body(), seed);
  Random random(3, "signs");
  // Half the step stays clear of the bends of subsampling.
  const double step_size = model.config().span_count() > 0 ? kStep / 2 : kStep;
  const Step step = train_step(model, true);
  ASSERT_EQ(step.gradients.size(), model.parameters().size());
  size_t sharp = 0, expected = 0;
  for (size_t p = 0; p < step.gradients.size(); ++p) {
    const Parameter& parameter = model.parameters()[p];
    const Tensor before = parameter.value.clone();
    const std::span<float> values = parameter.value.values();
    std::vector<float> signs(values.size());
    double analytic = 0, norm = 0;
    for (size_t i = 0; i < signs.size(); ++i) {
      signs[i] = random.uniform() < 0.5 ? -1.0f : 1.0f;
      const double gradient = step.gradients[p][i];
      analytic += gradient * double{signs[i]};
      norm += gradient * gradient;
    }
    norm = std::sqrt(norm);
    expected += !may_lack_gradient(parameter);
    const auto loss_at = [&](double distance) {
      for (size_t i = 0; i < values.size(); ++i) {
        values[i] = before.values()[i] + static_cast<float>(distance) * signs[i];
      }
      parameter.value.bump_version();
      return train_step(model, false).loss;
    };
    // Wide tensors are moved less, so that the whole change stays small.
    const double h = step_size / std::max(1.0, std::sqrt(static_cast<double>(signs.size())) / 16);
    const double numeric =
        (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h);
    parameter.value.copy_from(before);
    parameter.value.bump_version();
    const double tolerance = kRelative * norm + kNoise * kStep / h;
    EXPECT_NEAR(numeric, analytic, tolerance) << parameter.name << ", |g| = " << norm;
    sharp += tolerance < 0.2 * norm && !may_lack_gradient(parameter);
  }
  // The comparison says something for nearly all tensors.
  EXPECT_GE(10 * sharp, 8 * expected);
}

TEST_P(ModelGradientTest, IsTheSameOnAnyNumberOfThreads) {
  const Model model(model_config(body()), 12);
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    Step first;
    for (const int threads : {1, 2, 4}) {
      const Threads scope(threads);
      Step step = train_step(model, true, precision);
      if (threads == 1) {
        first = std::move(step);
        continue;
      }
      EXPECT_EQ(step.loss, first.loss);
      for (size_t p = 0; p < first.gradients.size(); ++p) {
        EXPECT_EQ(bit_difference(step.gradients[p], first.gradients[p]), "")
            << model.parameters()[p].name << ", " << threads << " threads";
      }
    }
  }
}

// Recomputing does the same operations again, but a block's gradients arrive at the residual stream
// in another order, so sums of three terms and more may round differently.
TEST_P(ModelGradientTest, IsTheSameWithRecomputedActivations) {
  ModelConfig config = model_config(body());
  const Model plain(config, 13);
  config.recompute = true;
  const Model recomputing(config, 13);
  const Step expected = train_step(plain, true), actual = train_step(recomputing, true);
  EXPECT_EQ(actual.loss, expected.loss);
  for (size_t p = 0; p < expected.gradients.size(); ++p) {
    if (actual.gradients[p] == expected.gradients[p]) continue;  // some are 0 here
    EXPECT_LE(relative_difference(actual.gradients[p], expected.gradients[p]), 1e-5)
        << plain.parameters()[p].name;
  }
}

// The training form agrees with the inference form on the loss.
TEST_P(ModelGradientTest, LossIsTheSameWithAndWithoutATape) {
  const Model model(model_config(body()), 14);
  if (model.config().span_count() > 0) {
    GTEST_SKIP() << "training keeps the highest scores, inference those above 0";
  }
  const double with = train_step(model, true).loss;
  const double without = train_step(model, false, Precision::f32, Form::inference).loss;
  EXPECT_NEAR(with, without, 1e-6 * with);
}

INSTANTIATE_TEST_SUITE_P(Models, FiniteDifferenceTest,
                         testing::Combine(testing::Range<size_t>(0, model_configs().size()),
                                          testing::Values(cpu_instruction_sets().back())),
                         parameters_name);
INSTANTIATE_TEST_SUITE_P(Models, ModelGradientTest,
                         testing::Combine(testing::Range<size_t>(0, model_configs().size()),
                                          testing::ValuesIn(cpu_instruction_sets())),
                         parameters_name);

}  // namespace
}  // namespace pronghorn
