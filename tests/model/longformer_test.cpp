// Longformer both ways against a float64 loop: windows with gaps on both sides, and first tokens
// that see all by projections of their own (arXiv 2004.05150, section 3).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "base/random.h"
#include "layers/both_ways.h"
#include "support/errors.h"
#include "support/one_mixer.h"
#include "tensor/tape.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::error_of;
using testing_support::expect_reference;
using testing_support::kLayerTolerance;
using testing_support::NumbersByName;
using testing_support::OneMixer;
using Doubles = std::vector<double>;

constexpr int64_t kHidden = 6, kHeads = 4, kKvHeads = 2, kDim = 3;

struct Reference {
  int64_t window, first;
  std::vector<int64_t> dilations;

  // [rows, heads]: rows of x times the transposed matrix.
  static Doubles project(const Doubles& matrix, const Doubles& x) {
    Doubles out;
    for (auto row = x.begin(); row != x.end(); row += kHidden) {
      for (auto weights = matrix.begin(); weights != matrix.end(); weights += kHidden) {
        out.push_back(std::inner_product(row, row + kHidden, weights, 0.0));
      }
    }
    return out;
  }

  bool sees(int64_t i, int64_t j, int64_t dilation) const {
    const int64_t apart = std::abs(i - j);
    return i < first || j < first || (apart % dilation == 0 && apart / dilation < window);
  }

  // x: rows of texts of these lengths, one after another.
  Doubles run(const NumbersByName& p, const Doubles& x, const std::vector<int64_t>& lengths) const {
    const auto rows = std::ssize(x) / kHidden;
    Doubles seen(static_cast<size_t>(rows * kHeads * kDim));
    for (const bool global : {false, true}) {
      if (global && first == 0) continue;
      const std::string kind = global ? "_global_proj.weight" : "_proj.weight";
      const Doubles q = project(p.at("q" + kind), x), k = project(p.at("k" + kind), x),
                    v = project(p.at("v" + kind), x);
      int64_t begin = 0;
      for (const int64_t length : lengths) {
        for (int64_t i = 0; i < length; ++i) {
          if ((i < first) != global) continue;
          for (int64_t head = 0; head < kHeads; ++head) {
            const int64_t kv = head / (kHeads / kKvHeads);
            const double* query = &q[static_cast<size_t>(((begin + i) * kHeads + head) * kDim)];
            double* to = &seen[static_cast<size_t>(((begin + i) * kHeads + head) * kDim)];
            double total = 0;
            for (int64_t j = 0; j < length; ++j) {
              if (!sees(i, j, dilations[static_cast<size_t>(kv)])) continue;
              const auto key = static_cast<size_t>(((begin + j) * kKvHeads + kv) * kDim);
              const double share = std::exp(std::inner_product(query, query + kDim, &k[key], 0.0) /
                                            std::sqrt(static_cast<double>(kDim)));
              total += share;
              for (size_t c = 0; c < kDim; ++c) to[c] += share * v[key + c];
            }
            for (int64_t c = 0; c < kDim; ++c) to[c] /= total;
          }
        }
        begin += length;
      }
    }
    Doubles out;
    const Doubles& last = p.at("o_proj.weight");
    for (auto row = seen.begin(); row != seen.end(); row += kHeads * kDim) {
      for (auto weights = last.begin(); weights != last.end(); weights += kHeads * kDim) {
        out.push_back(std::inner_product(row, row + kHeads * kDim, weights, 0.0));
      }
    }
    return out;
  }
};

nlohmann::json config_of(const Reference& reference) {
  return {{"type", "longformer"},       {"heads", kHeads},
          {"kv_heads", kKvHeads},       {"head_dim", kDim},
          {"window", reference.window}, {"global", reference.first},
          {"both_ways", true},          {"dilations", reference.dilations}};
}

OneMixer layer_of(const Reference& reference) {
  LayerContext context;
  context.hidden_size = kHidden;
  context.initializer_range = 0.5;
  return {config_of(reference), context};
}

Batch texts(const std::vector<int64_t>& lengths, Mask mask) {
  Batch batch;
  for (const int64_t length : lengths) {
    batch.segments.push_back({nullptr, batch.rows(), length, mask});
    for (int64_t i = 0; i < length; ++i) batch.positions.push_back(static_cast<int32_t>(i));
  }
  return batch;
}

TEST(Longformer, BothWaysIsThatOfThePaper) {
  // One text is shorter than the first tokens; another longer than a tile.
  const std::vector<int64_t> lengths = {9, 2, 70};
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  for (const Reference& reference :
       {Reference{3, 2, {1, 2}}, Reference{2, 0, {3, 1}}, Reference{100, 3, {1, 1}}}) {
    SCOPED_TRACE(fmt::format("window {}, first {}", reference.window, reference.first));
    const OneMixer layer = layer_of(reference);
    EXPECT_TRUE(sees_both_ways(*layer.mixer));
    EXPECT_TRUE(layer.journals.empty());
    Random random(3, "numbers");
    std::vector<float> numbers, weights;
    for (int64_t i = 0; i < rows * kHidden; ++i) {
      numbers.push_back(static_cast<float>(random.uniform(-1, 1)));
      weights.push_back(static_cast<float>(random.uniform(-1, 1)));
    }
    const Batch batch = texts(lengths, Mask::full);
    const Doubles expected = expect_reference(
        layer, batch, numbers, weights, layer.numbers(),
        [&](const NumbersByName& p) { return reference.run(p, p.at("x"), lengths); }, 5e-5, 5);
    // Without a tape, too.
    const CheckedBatch checked(batch);
    const Context plain;
    Carry carry(rows, {});
    const auto read =
        layer.mixer->forward({plain, checked, carry}, Tensor::from(numbers, {rows, kHidden}))
            .read();
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(read[i], expected[i], kLayerTolerance) << i;
    }
  }
}

TEST(Longformer, BothWaysIsForWholeTexts) {
  const OneMixer layer = layer_of({3, 1, {1, 1}});
  const Tensor x = Tensor::from(std::vector<float>(30, 1.0f), {5, kHidden});
  const Context plain;
  Carry carry(5, {});
  const Batch batch = texts({5}, Mask::causal);
  const CheckedBatch checked(batch);
  EXPECT_THAT(error_of([&] {
                layer.mixer->forward({plain, checked, carry}, x);
              }),
              HasSubstr("whole"));
}

}  // namespace
}  // namespace pronghorn
