// Scans: orders of rows, their sum, and Mamba's blocks for images against loops in float64.
#include "layers/scans.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "layers/both_ways.h"
#include "layers/fields.h"
#include "layers/toolbox.h"
#include "support/errors.h"
#include "support/one_mixer.h"

namespace pronghorn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::error_of;
using testing_support::expect_reference;
using testing_support::NumbersByName;
using testing_support::OneMixer;

using Doubles = std::vector<double>;

// Grids of these heights and widths, one after another, in raster order.
Batch grids(const std::vector<std::pair<int, int>>& sizes) {
  Batch batch;
  for (const auto& [height, width] : sizes) {
    batch.segments.push_back({nullptr, batch.rows(), height * width, Mask::full});
    for (int i = 0; i < height * width; ++i) {
      batch.positions.push_back(i);
      batch.coordinates.push_back(i / width);
      batch.coordinates.push_back(i % width);
    }
  }
  return batch;
}

std::vector<int> order_of(const Batch& batch, const ScanPass& pass) {
  const ScannedRows rows(batch, pass);
  std::vector<float> numbers(static_cast<size_t>(batch.rows()));
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i);
  const Tensor x = Tensor::from(numbers, {batch.rows(), 1});
  const Tensor entered = rows.enter({}, x);
  EXPECT_EQ(rows.leave({}, entered).read(), x.read());
  std::vector<int> order;
  for (const float number : entered.read()) order.push_back(static_cast<int>(number));
  return order;
}

// A text and its copy with noise, of two tokens and one, in blocks of two.
TEST(Scans, BlocksAreReadOneByOneFromTheirEnds) {
  Batch batch;
  batch.segments.push_back({nullptr, 0, 6, Mask::two_copies, {}, 2});
  batch.positions = {4, 5, 6, 4, 5, 6};
  const auto passes = scan_passes(Scan::both);
  EXPECT_THAT(order_of(batch, passes[0]), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(order_of(batch, passes[1]), ElementsAre(1, 0, 2, 4, 3, 5));
  const ScannedRows there(batch, passes[0]), back(batch, passes[1]);
  std::vector<int64_t> lengths, after;
  for (const Segment& segment : there.batch().segments()) {
    lengths.push_back(segment.length);
    after.push_back(segment.after);
  }
  EXPECT_THAT(lengths, ElementsAre(2, 1, 2, 1));
  EXPECT_THAT(after, ElementsAre(-1, 0, -1, 0));
  EXPECT_THAT(back.batch().positions(), ElementsAre(0, 1, 0, 0, 1, 0));
  for (const Segment& segment : back.batch().segments()) EXPECT_EQ(segment.after, -1);
  // Without noise the blocks are one sequence from its beginning.
  batch.segments[0] = {nullptr, 0, 3, Mask::blocks, {}, 2};
  batch.positions = {4, 5, 6};
  EXPECT_EQ(ScannedRows(batch, passes[0]).batch().segments().size(), 1u);
  EXPECT_THAT(order_of(batch, passes[1]), ElementsAre(1, 0, 2));
}

TEST(Scans, PassesGoAlongRowsAndColumns) {
  const Batch batch = grids({{2, 3}, {2, 2}});
  const auto passes = scan_passes(Scan::cross);
  ASSERT_EQ(passes.size(), 4u);
  EXPECT_THAT(order_of(batch, passes[0]), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9));
  EXPECT_THAT(order_of(batch, passes[1]), ElementsAre(5, 4, 3, 2, 1, 0, 9, 8, 7, 6));
  EXPECT_THAT(order_of(batch, passes[2]), ElementsAre(0, 3, 1, 4, 2, 5, 6, 8, 7, 9));
  EXPECT_THAT(order_of(batch, passes[3]), ElementsAre(5, 2, 4, 1, 3, 0, 9, 7, 8, 6));
  EXPECT_EQ(scan_passes(Scan::both).size(), 2u);
  EXPECT_EQ(scan_passes(Scan::raster).size(), 1u);
  EXPECT_TRUE(scan_passes(Scan::none).empty());
  const ScannedRows columns(batch, passes[2]);
  EXPECT_THAT(columns.batch().coordinates().first(6), ElementsAre(0, 0, 1, 0, 0, 1));
  for (const Segment& segment : columns.batch().segments()) {
    EXPECT_EQ(segment.mask, Mask::causal);
  }
}

TEST(Scans, RefuseWhatHasNoPlaces) {
  Batch batch = grids({{2, 2}});
  batch.coordinates.clear();
  const auto passes = scan_passes(Scan::cross);
  EXPECT_EQ(error_of([&] { ScannedRows(batch, passes[1]); }), "no error");
  EXPECT_THAT(error_of([&] { ScannedRows(batch, passes[2]); }), HasSubstr("0 coordinates"));
}

// What it is given, times a number.
class Multiplied final : public Mixer {
 public:
  explicit Multiplied(float factor) : factor_(factor) {}
  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    return scaled(input.context, x, factor_);
  }
  double sequence_cost(double) const override { return 1; }

 private:
  float factor_;
};

std::vector<std::unique_ptr<Mixer>> multiplied(const std::vector<float>& factors) {
  std::vector<std::unique_ptr<Mixer>> mixers;
  for (const float factor : factors) mixers.push_back(std::make_unique<Multiplied>(factor));
  return mixers;
}

// Cross-scan and cross-merge around an identity give four times what went in, to the bit, and so do
// gradients.
TEST(Scans, AnIdentityComesBackOnceAPass) {
  const CheckedBatch batch(grids({{3, 4}, {2, 5}}));
  std::vector<float> numbers;
  for (int i = 0; i < 22 * 3; ++i) numbers.push_back(static_cast<float>(i * i % 37));
  const Tensor x = Tensor::from(numbers, {22, 3});
  x.set_requires_grad(true);
  const auto expect = [&](Scan scan, const std::vector<float>& factors, float total) {
    const auto mixer = scanned(scan, multiplied(factors));
    EXPECT_TRUE(sees_both_ways(*mixer));
    EXPECT_TRUE(runs_both_ways(*mixer));
    Tape tape;
    Context context;
    context.tape = &tape;
    Carry carry(22, {});
    const Tensor y = mixer->forward({context, batch, carry}, x);
    for (size_t i = 0; i < numbers.size(); ++i) EXPECT_EQ(y.read()[i], total * numbers[i]);
    x.clear_grad();
    y.give_grad(Tensor::from(numbers, {22, 3}));
    tape.run_backward();
    for (size_t i = 0; i < numbers.size(); ++i) EXPECT_EQ(x.grad().read()[i], total * numbers[i]);
  };
  expect(Scan::raster, {1}, 1);
  expect(Scan::both, {1}, 2);
  expect(Scan::cross, {1}, 4);
  expect(Scan::cross, {1, 2, 4, 8}, 15);
  EXPECT_THAT(error_of([&] {
                scanned(Scan::cross, multiplied({1, 2}));
              }),
              HasSubstr("2 for 4 passes"));
}

double silu(double x) { return x / (1 + std::exp(-x)); }

// y = W x + b for each row.
Doubles product(const Doubles& x, int64_t rows, const Doubles& w, const Doubles& b = {}) {
  const int64_t in = std::ssize(x) / rows, out = std::ssize(w) / in;
  Doubles y;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < out; ++o) {
      double sum = b.empty() ? 0 : b[static_cast<size_t>(o)];
      for (int64_t i = 0; i < in; ++i) {
        sum += w[static_cast<size_t>(o * in + i)] * x[static_cast<size_t>(r * in + i)];
      }
      y.push_back(sum);
    }
  }
  return y;
}

// The layers as the papers have them: Vision Mamba, algorithm 1, and VMamba's SS2D, figure 3.
struct Reference {
  int64_t height, width, inner, state, rank, taps;
  bool cross, grid;

  Doubles run(const std::map<std::string, Doubles>& p, const Doubles& u) const {
    const int64_t rows = height * width;
    const Doubles xz = product(u, rows, p.at("in_proj.weight"));
    Doubles x, z, sum(static_cast<size_t>(rows * inner));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < inner; ++c) {
        x.push_back(xz[static_cast<size_t>(2 * r * inner + c)]);
        z.push_back(xz[static_cast<size_t>((2 * r + 1) * inner + c)]);
      }
    }
    if (grid) x = grid_convolved(p, x);
    for (const std::string pass : {"", "backward.", "columns.", "columns_backward."}) {
      if (!cross && pass.starts_with("columns")) continue;
      std::vector<int64_t> order;
      for (int64_t i = 0; i < rows; ++i) {
        order.push_back(pass.starts_with("columns") ? i % height * width + i / height : i);
      }
      if (pass.ends_with("backward.")) std::reverse(order.begin(), order.end());
      add_scan(p, pass, x, order, sum);
    }
    if (grid) {
      for (int64_t r = 0; r < rows; ++r) normalise(p, &sum[static_cast<size_t>(r * inner)]);
    }
    for (size_t i = 0; i < sum.size(); ++i) sum[i] *= silu(z[i]);
    return product(sum, rows, p.at("out_proj.weight"));
  }

  Doubles grid_convolved(const std::map<std::string, Doubles>& p, const Doubles& x) const {
    Doubles y = x;
    for (int64_t r = 0; r < height * width; ++r) {
      for (int64_t c = 0; c < inner; ++c) {
        double sum = p.at("conv2d.bias")[static_cast<size_t>(c)];
        for (int64_t dy = -1; dy <= 1; ++dy) {
          for (int64_t dx = -1; dx <= 1; ++dx) {
            const int64_t at_y = r / width + dy, at_x = r % width + dx;
            if (at_y < 0 || at_y >= height || at_x < 0 || at_x >= width) continue;
            sum += p.at("conv2d.weight")[static_cast<size_t>(c * 9 + (dy + 1) * 3 + dx + 1)] *
                   x[static_cast<size_t>((at_y * width + at_x) * inner + c)];
          }
        }
        y[static_cast<size_t>(r * inner + c)] = silu(sum);
      }
    }
    return y;
  }

  void add_scan(const std::map<std::string, Doubles>& p, const std::string& pass, const Doubles& x,
                const std::vector<int64_t>& order, Doubles& sum) const {
    const auto rows = std::ssize(order);
    Doubles s;
    for (const int64_t row : order) {
      for (int64_t c = 0; c < inner; ++c) s.push_back(x[static_cast<size_t>(row * inner + c)]);
    }
    if (!grid) {
      const Doubles raw = s;
      for (int64_t t = 0; t < rows; ++t) {
        for (int64_t c = 0; c < inner; ++c) {
          double value = p.at(pass + "conv1d.bias")[static_cast<size_t>(c)];
          for (int64_t back = 0; back < std::min(taps, t + 1); ++back) {
            value += p.at(pass + "conv1d.weight")[static_cast<size_t>(c * taps + taps - 1 - back)] *
                     raw[static_cast<size_t>((t - back) * inner + c)];
          }
          s[static_cast<size_t>(t * inner + c)] = silu(value);
        }
      }
    }
    const Doubles parts = product(s, rows, p.at(pass + "x_proj.weight"));
    const int64_t part = rank + 2 * state;
    Doubles h(static_cast<size_t>(inner * state));
    for (int64_t t = 0; t < rows; ++t) {
      const double* at = &parts[static_cast<size_t>(t * part)];
      const Doubles raw =
          product({at, at + rank}, 1, p.at(pass + "dt_proj.weight"), p.at(pass + "dt_proj.bias"));
      for (int64_t c = 0; c < inner; ++c) {
        const double dt = std::log1p(std::exp(raw[static_cast<size_t>(c)]));
        const double in = s[static_cast<size_t>(t * inner + c)];
        double y = p.at(pass + "D")[static_cast<size_t>(c)] * in;
        for (int64_t n = 0; n < state; ++n) {
          const auto index = static_cast<size_t>(c * state + n);
          const double A = -std::exp(p.at(pass + "A_log")[index]);
          h[index] = std::exp(dt * A) * h[index] + dt * at[rank + n] * in;
          y += at[rank + state + n] * h[index];
        }
        sum[static_cast<size_t>(order[static_cast<size_t>(t)] * inner + c)] += y;
      }
    }
  }

  void normalise(const std::map<std::string, Doubles>& p, double* row) const {
    double mean = 0, variance = 0;
    for (int64_t c = 0; c < inner; ++c) mean += row[c] / static_cast<double>(inner);
    for (int64_t c = 0; c < inner; ++c) {
      variance += (row[c] - mean) * (row[c] - mean) / static_cast<double>(inner);
    }
    for (int64_t c = 0; c < inner; ++c) {
      row[c] = (row[c] - mean) / std::sqrt(variance + 1e-5) *
                   p.at("out_norm.weight")[static_cast<size_t>(c)] +
               p.at("out_norm.bias")[static_cast<size_t>(c)];
    }
  }
};

TEST(Scans, MambaForImagesIsThatOfThePapers) {
  constexpr int64_t kHidden = 4, kRows = 12;
  for (const bool vmamba : {false, true}) {
    SCOPED_TRACE(vmamba ? "VMamba" : "Vision Mamba");
    const Reference reference{3, 4, 6, 3, 2, 3, vmamba, vmamba};
    nlohmann::json json = {{"type", "mamba"},
                           {"inner_size", 6},
                           {"state", 3},
                           {"time_step_rank", 2},
                           {"conv_kernel", 3}};
    if (vmamba) {
      json["convolution"] = "grid";
      json["scan_norm"] = true;
    }
    LayerContext layer;
    layer.hidden_size = kHidden;
    layer.initializer_range = 0.4;
    layer.scan = vmamba ? Scan::cross : Scan::both;
    const OneMixer mamba(json, layer);
    EXPECT_TRUE(sees_both_ways(*mamba.mixer));
    Random random(3);
    std::vector<float> numbers, weights;
    for (int64_t i = 0; i < kRows * kHidden; ++i) {
      numbers.push_back(static_cast<float>(random.uniform(-1, 1)));
      weights.push_back(static_cast<float>(random.uniform(-1, 1)));
    }
    expect_reference(
        mamba, grids({{3, 4}}), numbers, weights, mamba.numbers(),
        [&](const NumbersByName& p) { return reference.run(p, p.at("x")); }, 1e-5);
  }
}

}  // namespace
}  // namespace pronghorn
