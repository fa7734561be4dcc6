// Transformer-XL's layer against a float64 loop of the paper's equations: scores by distances, and
// gradients that stop at the hidden states of earlier segments.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "base/random.h"
#include "layers/fields.h"
#include "layers/layers.h"
#include "support/slopes.h"
#include "tensor/tape.h"

namespace pronghorn {
namespace {

using testing_support::expect_slopes;

using Doubles = std::vector<double>;

constexpr int64_t kHidden = 6, kHeads = 2, kDim = 3, kWidth = 4, kRows = 11;

struct Reference {
  int64_t memory, segment;

  // x: the hidden states; old: the same where another segment sees them.
  Doubles run(const std::map<std::string, Doubles>& p, const Doubles& x, const Doubles& old) const {
    const auto project = [&](const char* name, const Doubles& from, int64_t row, int64_t column) {
      double sum = 0;
      for (int64_t c = 0; c < kHidden; ++c) {
        sum += p.at(name)[static_cast<size_t>(column * kHidden + c)] *
               from[static_cast<size_t>(row * kHidden + c)];
      }
      return sum;
    };
    Doubles seen(static_cast<size_t>(kRows * kHeads * kDim));
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t head = 0; head < kHeads; ++head) {
        const Doubles& r_proj = p.at("r_proj." + std::to_string(head) + ".weight");
        double total = 0;
        Doubles sum(kDim);
        for (int64_t j = std::max<int64_t>(0, i - memory); j <= i; ++j) {
          const bool same = segment == 0 || i / segment == j / segment;
          const Doubles& from = same ? x : old;
          double score = 0;
          for (int64_t c = 0; c < kDim; ++c) {
            const int64_t column = head * kDim + c;
            const double q = project("q_proj.weight", x, i, column);
            score += (q + p.at("u")[static_cast<size_t>(column)]) *
                     project("k_proj.weight", from, j, column);
            double place = 0;  // (W_r r)_c
            for (int64_t m = 0; m < kWidth / 2; ++m) {
              const double angle =
                  static_cast<double>(i - j) *
                  std::pow(10000.0, -2.0 * static_cast<double>(m) / static_cast<double>(kWidth));
              place += r_proj[static_cast<size_t>(m * kDim + c)] * std::cos(angle) -
                       r_proj[static_cast<size_t>((m + kWidth / 2) * kDim + c)] * std::sin(angle);
            }
            score += (q + p.at("v")[static_cast<size_t>(column)]) * place;
          }
          const double share = std::exp(score / std::sqrt(static_cast<double>(kDim)));
          total += share;
          for (int64_t c = 0; c < kDim; ++c) {
            sum[static_cast<size_t>(c)] +=
                share * project("v_proj.weight", from, j, head * kDim + c);
          }
        }
        for (int64_t c = 0; c < kDim; ++c) {
          seen[static_cast<size_t>((i * kHeads + head) * kDim + c)] =
              sum[static_cast<size_t>(c)] / total;
        }
      }
    }
    Doubles out;
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t row = 0; row < kHidden; ++row) {
        double sum = 0;
        for (int64_t c = 0; c < kHeads * kDim; ++c) {
          sum += p.at("o_proj.weight")[static_cast<size_t>(row * kHeads * kDim + c)] *
                 seen[static_cast<size_t>(i * kHeads * kDim + c)];
        }
        out.push_back(sum);
      }
    }
    return out;
  }
};

TEST(TransformerXl, IsThatOfThePaper) {
  // Memories shorter and longer than a segment, and no end of gradients.
  for (const Reference reference :
       {Reference{4, 3}, Reference{2, 5}, Reference{20, 4}, Reference{5, 0}}) {
    SCOPED_TRACE(fmt::format("memory {}, segment {}", reference.memory, reference.segment));
    const nlohmann::json json = {{"type", "transformer_xl"},
                                 {"heads", kHeads},
                                 {"memory", reference.memory},
                                 {"segment", reference.segment},
                                 {"position_width", kWidth}};
    LayerContext layer;
    layer.hidden_size = kHidden;
    layer.initializer_range = 0.5;
    ParameterStore store(5, true);
    std::vector<JournalShape> journals;
    const MixerType& type = find_mixer_type("transformer_xl", "test");
    const auto mixer = type.create(type.complete(ConfigReader(json, "test"), layer), layer,
                                   ParameterScope(store, ""), StateScope(0, journals));
    Random random(3, "numbers");
    const auto draw = [&](int64_t count) {
      std::vector<float> numbers;
      for (int64_t i = 0; i < count; ++i) {
        numbers.push_back(static_cast<float>(random.uniform(-1, 1)));
      }
      return numbers;
    };
    std::map<std::string, Doubles> p;
    for (const Parameter& parameter : store.all()) {
      if (parameter.name == "u" || parameter.name == "v") {
        parameter.value.copy_from(Tensor::from(draw(kHeads * kDim), {kHeads * kDim}));
      }
      const auto numbers = parameter.value.read();
      p[parameter.name] = Doubles(numbers.begin(), numbers.end());
    }
    const std::vector<float> numbers = draw(kRows * kHidden), weights = draw(kRows * kHidden);
    p["x"] = p["old"] = Doubles(numbers.begin(), numbers.end());

    Batch whole;
    whole.segments = {{nullptr, 0, kRows}};
    for (int32_t i = 0; i < kRows; ++i) whole.positions.push_back(i);
    const CheckedBatch batch(whole);
    const Tensor x = Tensor::from(numbers, {kRows, kHidden});
    x.set_requires_grad(true);
    Tape tape;
    Context context;
    context.tape = &tape;
    Carry carry(kRows, {});
    const Tensor y = mixer->forward({context, batch, carry}, x);
    const Doubles expected = reference.run(p, p["x"], p["old"]);
    // f32 sums of some dozen terms of size one.
    constexpr double kTolerance = 5e-6;
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(y.read()[i], expected[i], kTolerance);

    // With a state, a token at a time: a window.
    auto layout = std::make_shared<StateLayout>();
    layout->layers = {journals};
    SequenceState state(layout);
    const Context plain;
    for (int64_t i = 0; i < kRows; ++i) {
      Batch one;
      one.segments = {{&state, 0, 1}};
      one.positions = {static_cast<int32_t>(i)};
      Carry none(1, {});
      const CheckedBatch step(one);
      const Tensor row = mixer->forward({plain, step, none}, x.detach().row_slice(i, 1));
      state.advance(1);
      for (int64_t c = 0; c < kHidden; ++c) {
        EXPECT_NEAR(row.read()[static_cast<size_t>(c)],
                    expected[static_cast<size_t>(i * kHidden + c)], kTolerance);
      }
    }

    y.give_grad(Tensor::from(weights, y.shape()));
    tape.run_backward();
    const auto scalar = [&] {
      const Doubles values = reference.run(p, p["x"], p["old"]);
      double sum = 0;
      for (size_t i = 0; i < values.size(); ++i) sum += values[i] * double{weights[i]};
      return sum;
    };
    const auto expect_gradient = [&](const std::string& name, const Tensor& tensor) {
      expect_slopes(name, tensor, p.at(name), scalar, 3e-5);
    };
    expect_gradient("x", x);
    for (const Parameter& parameter : store.all()) expect_gradient(parameter.name, parameter.value);
  }
}

}  // namespace
}  // namespace pronghorn
