#include "ops/cross_entropy.h"

#include "base/error.h"
#include "ops/operator_check.h"

namespace pronghorn {
namespace {

// With 300 rows there are two chunks, the second a short one.
constexpr int64_t kRows = 300, kWidth = 9, kVocabulary = 53;

struct Loss {
  double nll = 0, z_loss = 0;
  int64_t count = 0, correct = 0;
  std::vector<double> dx, dw;  // of scale (nll + z_weight z_loss)
};

// Straight from the definition; the gradients by the chain rule over all logits.
Loss naive(const std::vector<double>& x, const std::vector<double>& w,
           const std::vector<int32_t>& targets, double scale, double z_weight, double cap) {
  Loss loss;
  loss.dx.resize(x.size());
  loss.dw.resize(w.size());
  for (size_t row = 0; row < targets.size(); ++row) {
    if (targets[row] < 0) continue;
    const auto target = static_cast<size_t>(targets[row]);
    std::vector<double> logits(kVocabulary), slopes(kVocabulary, 1);
    double z = 0;
    for (size_t v = 0; v < kVocabulary; ++v) {
      for (size_t c = 0; c < kWidth; ++c) logits[v] += x[row * kWidth + c] * w[v * kWidth + c];
      if (cap > 0) {
        const double t = std::tanh(logits[v] / cap);
        logits[v] = cap * t;
        slopes[v] = 1 - t * t;
      }
      z += std::exp(logits[v]);
    }
    const double log_z = std::log(z);
    loss.nll += log_z - logits[target];
    loss.z_loss += log_z * log_z;
    ++loss.count;
    loss.correct += *std::max_element(logits.begin(), logits.end()) == logits[target];
    for (size_t v = 0; v < kVocabulary; ++v) {
      const double p = std::exp(logits[v] - log_z);
      const double g = scale * slopes[v] * (p * (1 + 2 * z_weight * log_z) - (v == target ? 1 : 0));
      for (size_t c = 0; c < kWidth; ++c) {
        loss.dx[row * kWidth + c] += g * w[v * kWidth + c];
        loss.dw[v * kWidth + c] += g * x[row * kWidth + c];
      }
    }
  }
  return loss;
}

class CrossEntropyTest : public testing::Test {
 protected:
  CrossEntropyTest() {
    Random random(5);
    for (size_t i = 0; i < kRows; ++i) {
      targets_.push_back(i % 7 == 3 ? -1 : static_cast<int32_t>(random.below(kVocabulary)));
    }
    x_ = values_[0];
    w_ = values_[1];
  }

  const std::vector<check::Input> inputs_ = {{{kRows, kWidth}, -2, 2}, {{kVocabulary, kWidth}}};
  const check::Values values_ = check::draw(inputs_, 6);
  std::vector<double> x_, w_;
  std::vector<int32_t> targets_;
};

TEST_F(CrossEntropyTest, NaiveGradientIsThatOfTheNaiveLoss) {
  for (const double cap : {0.0, 2.0}) {
    const Loss loss = naive(x_, w_, targets_, 0.01, 1e-2, cap);
    const auto value = [&] {
      const Loss now = naive(x_, w_, targets_, 0.01, 1e-2, cap);
      return 0.01 * (now.nll + 1e-2 * now.z_loss);
    };
    constexpr double kStep = 1e-5;
    for (auto [numbers, gradient, index] : {std::tuple{&x_, &loss.dx, size_t{40}},
                                            {&x_, &loss.dx, size_t{2600}},
                                            {&w_, &loss.dw, size_t{7}},
                                            {&w_, &loss.dw, size_t{300}}}) {
      double& at = (*numbers)[index];
      const double middle = at;
      at = middle + kStep;
      const double up = value();
      at = middle - kStep;
      const double down = value();
      at = middle;
      EXPECT_NEAR((up - down) / (2 * kStep), (*gradient)[index], 1e-8);
    }
  }
}

TEST_F(CrossEntropyTest, MatchesNaiveFormOnEveryInstructionSet) {
  const int threads = thread_count();
  for (const std::string& set : cpu_instruction_sets()) {
    set_cpu_instruction_set(set);
    for (const auto& [z_weight, cap] : {std::pair(0.0, 0.0f), {1e-2, 0.0f}, {1e-2, 3.0f}}) {
      for (const bool strided : {false, true}) {
        SCOPED_TRACE(
            fmt::format("{} z {} cap {} {}", set, z_weight, cap, strided ? "strided" : ""));
        const Loss expected = naive(x_, w_, targets_, 0.01, z_weight, static_cast<double>(cap));
        std::vector<check::Values> gradients;
        std::vector<double> losses;
        for (const int number : {1, 4}) {
          set_thread_count(number);
          Tensor x = check::tensor_of(x_, {kRows, kWidth});
          if (strided) {
            const Tensor wide = Tensor::zeros({kRows, kWidth + 4});
            wide.column_slice(2, kWidth).copy_from(x);
            x = wide.column_slice(2, kWidth);
          }
          const Weight head(check::tensor_of(w_, {kVocabulary, kWidth}));
          x.set_requires_grad(true);
          head.trainable().set_requires_grad(true);
          Tape tape;
          const CrossEntropy loss =
              linear_cross_entropy({&tape}, x, head, targets_, 0.01, z_weight, cap);
          // Sums of 300 f32 losses, each exact to a few roundings of logits of up to 20.
          EXPECT_NEAR(loss.nll, expected.nll, 1e-6 * expected.nll);
          EXPECT_NEAR(loss.z_loss, expected.z_loss, 1e-6 * expected.z_loss);
          EXPECT_EQ(loss.count, expected.count);
          EXPECT_EQ(loss.correct, expected.correct);
          EXPECT_FALSE(x.has_grad());
          tape.run_backward();
          gradients.push_back({check::flatten(x.grad()), check::flatten(head.trainable().grad())});
          losses.push_back(loss.nll);
          check::expect_near(gradients.back(), {expected.dx, expected.dw}, 2e-6, "gradient");

          const CrossEntropy untaped =
              linear_cross_entropy({}, x, head, targets_, 0.01, z_weight, cap);
          EXPECT_NEAR(untaped.nll, loss.nll, 1e-6 * loss.nll);
        }
        EXPECT_EQ(gradients[0], gradients[1]);
        EXPECT_EQ(losses[0], losses[1]);
      }
    }
  }
  set_thread_count(threads);
}

TEST_F(CrossEntropyTest, HeadGradientAddsUp) {
  const Tensor x = check::tensor_of(x_, {kRows, kWidth});
  const Weight head(check::tensor_of(w_, {kVocabulary, kWidth}));
  head.trainable().set_requires_grad(true);
  for (int pass = 0; pass < 2; ++pass) {
    Tape tape;
    linear_cross_entropy({&tape}, x, head, targets_, 0.01, 0);
    tape.run_backward();
  }
  Loss expected = naive(x_, w_, targets_, 0.02, 0, 0);
  check::expect_near({check::flatten(head.trainable().grad())}, {expected.dw}, 2e-6, "gradient");
  EXPECT_FALSE(x.has_grad());
}

TEST_F(CrossEntropyTest, NoCountedRows) {
  const Tensor x = check::tensor_of(x_, {kRows, kWidth});
  const Weight head(check::tensor_of(w_, {kVocabulary, kWidth}));
  x.set_requires_grad(true);
  head.trainable().set_requires_grad(true);
  Tape tape;
  const std::vector<int32_t> none(kRows, -1);
  const CrossEntropy loss = linear_cross_entropy({&tape}, x, head, none, 1, 0);
  tape.run_backward();
  EXPECT_EQ(loss.count, 0);
  EXPECT_EQ(loss.nll, 0);
  for (const float value : x.grad().values()) EXPECT_EQ(value, 0);
  for (const float value : head.trainable().grad().values()) EXPECT_EQ(value, 0);
}

TEST_F(CrossEntropyTest, LargeLogitsStayFinite) {
  for (const std::string& set : cpu_instruction_sets()) {
    set_cpu_instruction_set(set);
    const Tensor x = Tensor::full({2, 1}, 1000.0f);
    const Weight head(Tensor::from(std::vector<float>{-5, 0, 7}, {3, 1}));
    x.set_requires_grad(true);
    Tape tape;
    const std::vector<int32_t> targets = {2, 0};
    const CrossEntropy loss = linear_cross_entropy({&tape}, x, head, targets, 1, 0);
    tape.run_backward();
    EXPECT_NEAR(loss.nll, 12000, 1e-3);
    EXPECT_EQ(loss.correct, 1);
    EXPECT_NEAR(x.grad().values()[0], 0, 1e-6);
    EXPECT_NEAR(x.grad().values()[1], 12, 1e-5);
  }
}

TEST_F(CrossEntropyTest, BadArgumentsThrow) {
  const Tensor x = Tensor::zeros({2, 3});
  const Weight head(Tensor::zeros({4, 3})), narrow(Tensor::zeros({4, 2}));
  const std::vector<int32_t> good = {0, 3}, beyond = {0, 4}, negative = {-2, 0}, few = {0};
  EXPECT_NO_THROW(linear_cross_entropy({}, x, head, good, 1, 0));
  EXPECT_THROW(linear_cross_entropy({}, x, narrow, good, 1, 0), Error);
  EXPECT_THROW(linear_cross_entropy({}, x, head, beyond, 1, 0), Error);
  EXPECT_THROW(linear_cross_entropy({}, x, head, negative, 1, 0), Error);
  EXPECT_THROW(linear_cross_entropy({}, x, head, few, 1, 0), Error);
}

}  // namespace
}  // namespace pronghorn
