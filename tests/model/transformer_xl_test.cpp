// Transformer-XL's layer against a float64 loop of the paper's equations: scores by distances, and
// gradients that stop at the hidden states of earlier segments.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "base/random.h"
#include "support/one_mixer.h"
#include "tensor/tape.h"

namespace pronghorn {
namespace {

using testing_support::expect_reference;
using testing_support::kLayerTolerance;
using testing_support::NumbersByName;
using testing_support::OneMixer;

using Doubles = std::vector<double>;

constexpr int64_t kHidden = 6, kHeads = 2, kDim = 3, kWidth = 4, kRows = 11;

struct Reference {
  int64_t memory, segment;

  // x: the hidden states; old: the same where another segment sees them.
  Doubles run(const NumbersByName& p, const Doubles& x, const Doubles& old) const {
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
    LayerContext context;
    context.hidden_size = kHidden;
    context.initializer_range = 0.5;
    const OneMixer layer(json, context);
    Random random(3, "numbers");
    const auto draw = [&](int64_t count) {
      std::vector<float> numbers;
      for (int64_t i = 0; i < count; ++i) {
        numbers.push_back(static_cast<float>(random.uniform(-1, 1)));
      }
      return numbers;
    };
    for (const Parameter& parameter : layer.store.all()) {
      if (parameter.name == "u" || parameter.name == "v") {
        parameter.value.copy_from(Tensor::from(draw(kHeads * kDim), {kHeads * kDim}));
      }
    }
    const std::vector<float> numbers = draw(kRows * kHidden), weights = draw(kRows * kHidden);
    NumbersByName p = layer.numbers();
    p["old"] = Doubles(numbers.begin(), numbers.end());
    Batch whole;
    whole.segments = {{nullptr, 0, kRows}};
    for (int32_t i = 0; i < kRows; ++i) whole.positions.push_back(i);
    const Doubles expected = expect_reference(
        layer, whole, numbers, weights, p,
        [&](const NumbersByName& at) { return reference.run(at, at.at("x"), at.at("old")); }, 3e-5);

    // With a state, a token at a time: a window.
    auto layout = std::make_shared<StateLayout>();
    layout->layers = {layer.journals};
    SequenceState state(layout);
    const Tensor x = Tensor::from(numbers, {kRows, kHidden});
    const Context plain;
    for (int64_t i = 0; i < kRows; ++i) {
      Batch one;
      one.segments = {{&state, 0, 1}};
      one.positions = {static_cast<int32_t>(i)};
      Carry none(1, {});
      const CheckedBatch step(one);
      const Tensor row = layer.mixer->forward({plain, step, none}, x.row_slice(i, 1));
      state.advance(1);
      for (int64_t c = 0; c < kHidden; ++c) {
        EXPECT_NEAR(row.read()[static_cast<size_t>(c)],
                    expected[static_cast<size_t>(i * kHidden + c)], kLayerTolerance);
      }
    }
  }
}

}  // namespace
}  // namespace pronghorn
