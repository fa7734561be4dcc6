// The seam of layers, on a test-only feed-forward (test_layers.h): carried tensors and losses, with
// and without recomputation, in spans and in training. The laws of its state are checked with those
// of all other models.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "ops/cross_entropy.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "support/steps.h"
#include "support/tiny_models.h"
#include "train/tasks.h"
#include "train/trainer.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::model_config;
using testing_support::random_tokens;
using testing_support::relative_difference;

// With "loss": 2 the layers' losses are of the size of the model's.
constexpr const char* kBody =
    R"("pattern": "3t", "blocks": {"t": {"mixer": {"type": "attention", "heads": 2},
       "ffn": {"type": "test_shift", "size": 20, "loss": 2}}})";
constexpr const char* kSpan =
    R"("pattern": "t(2t)t", "subsample": {"keep": 0.6},
       "blocks": {"t": {"mixer": {"type": "attention", "heads": 2},
       "ffn": {"type": "test_shift", "size": 20, "loss": 2}}})";

constexpr int64_t kLength = 20, kSegments = 2;

struct Outcome {
  double loss = 0, layer_losses = 0;  // the latter weighted
  int64_t count = 0;                  // of layer losses
  std::vector<float> gradients;       // of all parameters, one after another
};

enum class Losses { with, without };

Outcome run_step(const Model& model, Losses losses) {
  constexpr int64_t kTokens = kLength * kSegments;
  const auto tokens = random_tokens(kTokens, 61, 1), targets = random_tokens(kTokens, 61, 2);
  for (const Parameter& parameter : model.parameters()) parameter.value.clear_grad();
  Tape tape;
  const Context context{&tape, Precision::f32};
  const Batch batch = fresh_segments(tokens, kLength);
  Outcome outcome;
  ForwardObserver observer;
  if (losses == Losses::with) {
    observer.on_loss = [&](const LayerLoss& loss) {
      EXPECT_EQ(loss.name, "size");
      EXPECT_GT(*loss.value.data(), 0);
      outcome.layer_losses += loss.weight * double{*loss.value.data()};
      outcome.count += 1;
      loss.value.give_grad(Tensor::full({1}, static_cast<float>(loss.weight)));
    };
  }
  const Tensor hidden = model.forward(context, batch, observer);
  outcome.loss = model.cross_entropy(context, hidden, targets, 1.0 / kTokens, 0).nll / kTokens;
  tape.run_backward();
  for (const Parameter& parameter : model.parameters()) {
    const Tensor gradient = parameter.value.grad().clone();
    outcome.gradients.insert(outcome.gradients.end(), gradient.values().begin(),
                             gradient.values().end());
  }
  return outcome;
}

// All parameters are moved by +-h with random signs; the step and the tolerance are those of
// model_gradient_test.cpp.
TEST(Carry, GradientsPassThroughCarriedTensorsAndLosses) {
  constexpr double kStep = 2.5e-4, kRelative = 0.03, kNoise = 1e-3;
  const Model model(model_config(kBody), 5);
  const Outcome with = run_step(model, Losses::with), without = run_step(model, Losses::without);
  EXPECT_EQ(with.count, 3);
  EXPECT_EQ(without.count, 0);
  EXPECT_EQ(with.loss, without.loss);
  Random random(6, "signs");
  std::vector<float> signs;
  double analytic = 0, plain = 0, squares = 0;
  for (size_t i = 0; i < with.gradients.size(); ++i) {
    signs.push_back(random.uniform() < 0.5 ? -1.0f : 1.0f);
    analytic += double{with.gradients[i]} * double{signs[i]};
    plain += double{without.gradients[i]} * double{signs[i]};
    squares += double{with.gradients[i]} * double{with.gradients[i]};
  }
  std::vector<std::vector<float>> before;
  for (const Parameter& parameter : model.parameters()) {
    before.emplace_back(parameter.value.values().begin(), parameter.value.values().end());
  }
  const auto loss_at = [&](double distance) {
    size_t at = 0;
    for (size_t p = 0; p < before.size(); ++p) {
      const Tensor& value = model.parameters()[p].value;
      for (size_t i = 0; i < before[p].size(); ++i, ++at) {
        value.values()[i] = before[p][i] + static_cast<float>(distance) * signs[at];
      }
      value.bump_version();
    }
    const Outcome moved = run_step(model, Losses::with);
    return moved.loss + moved.layer_losses;
  };
  const double h = kStep;
  const double numeric =
      (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h);
  const double tolerance = kRelative * std::sqrt(squares) + kNoise;
  EXPECT_NEAR(numeric, analytic, tolerance);
  EXPECT_GT(std::abs(analytic - plain), 2 * tolerance) << "the losses do not matter here";
}

// As model_gradient_test.cpp compares recomputed gradients, here with the losses of layers, and
// with a span in which a carried tensor loses rows.
TEST(Carry, RecomputedBlocksCarryTheSame) {
  for (const char* body : {kBody, kSpan}) {
    ModelConfig config = model_config(body);
    const Model plain(config, 8);
    config.recompute = true;
    const Model recomputing(config, 8);
    const Outcome expected = run_step(plain, Losses::with);
    const Outcome actual = run_step(recomputing, Losses::with);
    // The first forward of a recomputed block has no tape, and so its products may be rounded by
    // other kernels.
    EXPECT_NEAR(actual.loss, expected.loss, 1e-6 * expected.loss);
    EXPECT_NEAR(actual.layer_losses, expected.layer_losses, 1e-6 * expected.layer_losses);
    EXPECT_EQ(actual.count, expected.count);
    EXPECT_LE(relative_difference(actual.gradients, expected.gradients), 1e-5) << body;
    const Outcome without = run_step(plain, Losses::without);
    EXPECT_GT(relative_difference(without.gradients, expected.gradients), 0.05)
        << "the losses do not matter here";
  }
}

TEST(Carry, SaysWhatIsMissingOrMisshapen) {
  Carry carry(3);
  EXPECT_THAT(error_of([&] { carry.at("first_hidden"); }),
              testing::AllOf(HasSubstr("first_hidden"), HasSubstr("no layer before")));
  EXPECT_THAT(error_of([&] {
                carry.set("first_hidden", Tensor::zeros({4, 2}));
              }),
              HasSubstr("4 rows are carried in a batch of 3"));
  EXPECT_THAT(error_of([&] { carry.add_loss("size", Tensor::zeros({2}), 1); }),
              HasSubstr("2 numbers"));
  EXPECT_EQ(carry.find("first_hidden"), nullptr);
  carry.set("first_hidden", Tensor::zeros({3, 2}));
  carry.set("first_hidden", Tensor::full({3, 1}, 2));
  EXPECT_EQ(carry.at("first_hidden").columns(), 1);
  carry.add_loss("size", Tensor::zeros({1}), 1);
  EXPECT_TRUE(carry.losses().empty()) << "nobody wants losses";
  // Heads for multi-token prediction come after the last block, and nothing is carried to them.
  ModelConfig config = model_config(kBody);
  config.mtp.heads = 1;
  const Model model(config, 1);
  const auto tokens = random_tokens(4, 61, 3);
  const Batch batch = fresh_segments(tokens, 4);
  const Tensor hidden = model.forward({}, batch);
  EXPECT_THAT(error_of([&] { model.mtp_forward({}, 0, hidden, batch); }),
              HasSubstr("first_hidden"));
}

// A span takes along the rows that enter it, and their gradients come back; what is set inside ends
// there, losses do not.
TEST(Carry, SpansTakeTheirRowsAlong) {
  Tape tape;
  const Context context{&tape, Precision::f32};
  Carry carry(3, {.losses = true});
  const Tensor x = Tensor::from(std::vector<float>{1, 2, 3, 4, 5, 6}, {3, 2});
  x.set_requires_grad(true);
  carry.set("x", x);
  const std::vector<int32_t> rows = {0, 2};
  Carry inner = carry.select(context, rows);
  const Tensor& selected = inner.at("x");
  EXPECT_EQ(std::vector<float>(selected.values().begin(), selected.values().end()),
            (std::vector<float>{1, 2, 5, 6}));
  selected.give_grad(Tensor::from(std::vector<float>{10, 20, 30, 40}, {2, 2}));
  inner.set("y", Tensor::zeros({2, 1}));
  inner.add_loss("size", Tensor::full({1}, 7), 0.5);
  carry.take(inner);
  EXPECT_EQ(carry.find("y"), nullptr);
  ASSERT_EQ(carry.losses().size(), 1u);
  EXPECT_EQ(*carry.losses()[0].value.data(), 7);
  tape.run_backward();
  EXPECT_EQ(std::vector<float>(x.grad().values().begin(), x.grad().values().end()),
            (std::vector<float>{10, 20, 0, 0, 30, 40}));
}

// The last that was lent under a number counts; what is lent outside a span is not there inside.
TEST(Carry, LendsKeysUnderNumbers) {
  Carry carry(2);
  EXPECT_THAT(error_of([&] { carry.borrow(1); }), HasSubstr("no layer before this one"));
  const auto lent = [](int64_t number, float value, int64_t layer) {
    return LentKeys{number, Tensor::full({2, 3}, value), Tensor::full({2, 4}, value), {layer, 0}};
  };
  carry.lend(lent(1, 5, 0));
  carry.lend(lent(2, 6, 1));
  carry.lend(lent(1, 7, 2));
  EXPECT_EQ(carry.lent().size(), 2u);
  EXPECT_EQ(*carry.borrow(1).keys.data(), 7);
  EXPECT_EQ(carry.borrow(1).slot.layer, 2);
  EXPECT_EQ(*carry.borrow(2).values.data(), 6);
  const std::vector<int32_t> rows = {1};
  const Carry inner = carry.select({}, rows);
  EXPECT_THROW(inner.borrow(1), Error);
}

// With a carried tensor that loses rows at a span, steps are bit-identical however they are cut,
// also after a rollback.
TEST(Carry, SpansHoldTheSplitLaw) {
  const Model model(model_config(kSpan), 7);
  const auto text = random_tokens(50, 61, 1);
  const auto cut = [&](int64_t step) {
    SequenceState state = model.new_state();
    const SequenceState mark = state;
    testing_support::decode(model, state, random_tokens(20, 61, 2),
                            testing_support::equal_steps(20, 5));
    state = mark;
    return testing_support::decode(model, state, text, testing_support::equal_steps(50, step));
  };
  const std::vector<float> ones = cut(1);
  for (const int64_t step : {7, 16}) {
    EXPECT_EQ(testing_support::bit_difference(cut(step), ones), "") << step;
  }
}

TEST(Observer, SeesEachBlockAndEndsAForwardOutsideSpansOnly) {
  const Model model(model_config(kSpan), 9);
  const auto tokens = random_tokens(30, 61, 4);
  std::vector<std::pair<int64_t, int64_t>> seen;
  Tensor last;
  ForwardObserver observer;
  observer.on_block = [&](const BlockEnd& end) {
    seen.emplace_back(end.layers, end.span);
    last = end.hidden();
    return true;
  };
  const Tensor hidden = model.forward({}, fresh_segments(tokens, 30), observer);
  const std::vector<std::pair<int64_t, int64_t>> expected = {{1, -1}, {2, 0}, {3, 0}, {4, -1}};
  EXPECT_EQ(seen, expected);
  EXPECT_EQ(testing_support::bit_difference(last.values(), hidden.values()), "");
  observer.on_block = [](const BlockEnd& end) { return end.layers < 2; };
  EXPECT_THAT(error_of([&] { model.forward({}, fresh_segments(tokens, 30), observer); }),
              HasSubstr("subsampled span"));
  Tensor first;
  observer.on_block = [&](const BlockEnd& end) {
    first = end.hidden();
    return false;
  };
  const Tensor stopped = model.forward({}, fresh_segments(tokens, 30), observer);
  EXPECT_EQ(testing_support::bit_difference(stopped.values(), first.values()), "");
  EXPECT_NE(testing_support::bit_difference(stopped.values(), hidden.values()), "");
}

// Micro-batches of equal and unequal size: the loss is a mean over the rows of the whole step.
TEST(Carry, TrainingAddsTheLossesOfLayersAndLogsThem) {
  ModelConfig config = model_config(kBody);
  config.vocab_size = 64;
  const Model model(config, 10);
  TaskOptions options;
  options.name = "mqar";
  options.length = 32;
  options.vocab_size = 64;
  options.items = 2;
  options.seed = 1;
  const auto task = make_task(options);
  TrainConfig settings;
  settings.batch_tokens = 128;
  settings.clip = 0;
  const auto step = [&](int64_t micro) {
    settings.micro_batch_tokens = micro;
    TrainingState state(model);
    const StepResult result = train_step(model, settings, *task, state, 0);
    std::vector<float> moments;
    for (const Tensor& m : state.m) {
      moments.insert(moments.end(), m.values().begin(), m.values().end());
    }
    return std::pair{result, moments};
  };
  const auto [whole, gradient] = step(0);
  ASSERT_EQ(whole.layer_losses.count("size"), 1u);
  EXPECT_GT(whole.layer_losses.at("size"), 0);
  for (const int64_t micro : {32, 96}) {
    const auto [parts, moments] = step(micro);
    // Means of some thousand f32 numbers.
    EXPECT_NEAR(parts.layer_losses.at("size"), whole.layer_losses.at("size"),
                1e-5 * whole.layer_losses.at("size"));
    EXPECT_LE(relative_difference(moments, gradient), 1e-4) << micro;
  }

  const Folder folder;
  Model trained(config, 10);
  TrainRun run;
  run.config = settings;
  run.budget.steps = 5;
  run.directory = folder / "run";
  run.config.learning_rate = 0.01;
  train(trained, *task, nullptr, nullptr, run);
  const auto log = read_train_log(run.directory / "log.jsonl");
  ASSERT_EQ(log.size(), 5u);
  EXPECT_LT(log.back().layer_losses.at("size"), log.front().layer_losses.at("size"));
}

}  // namespace
}  // namespace pronghorn
