#include "backend/matmul.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "base/random.h"
#include "base/threads.h"
#include "tensor/storage.h"

namespace pronghorn {
namespace {

std::vector<float> random_numbers(int64_t count, const char* stream) {
  Random random(7, stream);
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& number : numbers) number = static_cast<float>(random.uniform(-1, 1));
  return numbers;
}

double operand(float value, Precision precision) {
  return precision == Precision::bf16 ? from_bf16(to_bf16(value)) : value;
}

// c[m, n] = sum over p of a(i, p) b(p, j), and the same sum of magnitudes, in float64.
struct Reference {
  double value = 0, magnitude = 0;
  void add(float a, float b, Precision precision) {
    const double product = operand(a, precision) * operand(b, precision);
    value += product;
    magnitude += std::abs(product);
  }
};

// An f32 sum of `terms` products in any order errs by at most terms * 2^-24 of the sum of their
// magnitudes, plus a rounding of each product where there is no fused multiply-add.
double bound(const Reference& reference, int64_t terms) {
  return static_cast<double>(terms + 2) * 0x1.0p-24 * reference.magnitude + 1e-30;
}

struct Sizes {
  int64_t rows, out, in;
};

const std::vector<Sizes> kSizes = {{1, 1, 1},     {1, 16, 16},    {3, 8, 64},      {2, 17, 33},
                                   {5, 48, 31},   {9, 130, 7},    {16, 64, 128},   {23, 50, 301},
                                   {97, 40, 257}, {200, 16, 513}, {301, 100, 129}, {64, 1, 65},
                                   {33, 400, 1}};

struct RestoreMachine {
  std::string instruction_set = cpu_instruction_set();
  int threads = thread_count();
  ~RestoreMachine() {
    set_cpu_instruction_set(instruction_set);
    set_thread_count(threads);
  }
};

class MatmulTest : public testing::TestWithParam<std::tuple<std::string, Precision>> {
 protected:
  void SetUp() override { set_cpu_instruction_set(std::get<0>(GetParam())); }
  Precision precision() const { return std::get<1>(GetParam()); }

  RestoreMachine restore_;
  std::unique_ptr<MatmulKernels> kernels_ = make_cpu_matmul_kernels();
};

INSTANTIATE_TEST_SUITE_P(All, MatmulTest,
                         testing::Combine(testing::ValuesIn(cpu_instruction_sets()),
                                          testing::Values(Precision::f32, Precision::bf16)),
                         [](const auto& parameters) {
                           std::string name = std::get<0>(parameters.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name + (std::get<1>(parameters.param) == Precision::f32
                                              ? "_f32"
                                              : "_bf16");
                         });

constexpr float kGuard = 1234.5f;  // between rows, must survive

TEST_P(MatmulTest, ForwardEqualsFloat64) {
  for (const Sizes& size : kSizes) {
    const auto [rows, out, in] = size;
    const int64_t x_stride = in + 3, y_stride = out + 5;
    const auto x = random_numbers(rows * x_stride, "x"), bias = random_numbers(out, "bias");
    const Weight weight(Tensor::from(random_numbers(out * in, "weight"), {out, in}));
    for (const bool with_bias : {false, true}) {
      std::vector<float> y(static_cast<size_t>(rows * y_stride), kGuard);
      kernels_->linear_forward(weight, x.data(), x_stride, rows, with_bias ? bias.data() : nullptr,
                               y.data(), y_stride, precision(), true);
      for (int64_t i = 0; i < rows; ++i) {
        const float* row = y.data() + i * y_stride;
        for (int64_t j = 0; j < out; ++j) {
          Reference reference;
          for (int64_t p = 0; p < in; ++p) {
            reference.add(x[static_cast<size_t>(i * x_stride + p)], weight.value().row(j)[p],
                          precision());
          }
          if (with_bias) reference.add(bias[static_cast<size_t>(j)], 1, Precision::f32);
          ASSERT_NEAR(row[j], reference.value, bound(reference, in))
              << rows << "x" << out << "x" << in << " at " << i << ", " << j;
        }
        for (int64_t j = out; j < y_stride; ++j) ASSERT_EQ(row[j], kGuard);
      }
    }
  }
}

TEST_P(MatmulTest, BackwardInputEqualsFloat64) {
  for (const Sizes& size : kSizes) {
    const auto [rows, out, in] = size;
    const int64_t dy_stride = out + 1, dx_stride = in + 2;
    const auto dy = random_numbers(rows * dy_stride, "dy");
    const auto before = random_numbers(rows * dx_stride, "dx");
    const Weight weight(Tensor::from(random_numbers(out * in, "weight"), {out, in}));
    for (const bool accumulate : {false, true}) {
      std::vector<float> dx = before;
      kernels_->linear_backward_input(weight, dy.data(), dy_stride, rows, dx.data(), dx_stride,
                                      accumulate, precision());
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < in; ++j) {
          const auto at = static_cast<size_t>(i * dx_stride + j);
          Reference reference;
          for (int64_t p = 0; p < out; ++p) {
            reference.add(dy[static_cast<size_t>(i * dy_stride + p)], weight.value().row(p)[j],
                          precision());
          }
          if (accumulate) reference.add(before[at], 1, Precision::f32);
          ASSERT_NEAR(dx[at], reference.value, bound(reference, out))
              << rows << "x" << out << "x" << in << " at " << i << ", " << j;
        }
        for (int64_t j = in; j < dx_stride; ++j) {
          ASSERT_EQ(dx[static_cast<size_t>(i * dx_stride + j)],
                    before[static_cast<size_t>(i * dx_stride + j)]);
        }
      }
    }
  }
}

TEST_P(MatmulTest, BackwardWeightEqualsFloat64) {
  for (const Sizes& size : kSizes) {
    const auto [rows, out, in] = size;
    const int64_t dy_stride = out + 4, x_stride = in + 1, dw_stride = in + 7;
    const auto dy = random_numbers(rows * dy_stride, "dy"),
               x = random_numbers(rows * x_stride, "x");
    const auto before = random_numbers(out * dw_stride, "dw");
    for (const bool accumulate : {false, true}) {
      std::vector<float> dw = before;
      kernels_->linear_backward_weight(dy.data(), dy_stride, x.data(), x_stride, rows, out, in,
                                       dw.data(), dw_stride, accumulate, precision());
      for (int64_t i = 0; i < out; ++i) {
        for (int64_t j = 0; j < in; ++j) {
          const auto at = static_cast<size_t>(i * dw_stride + j);
          Reference reference;
          for (int64_t p = 0; p < rows; ++p) {
            reference.add(dy[static_cast<size_t>(p * dy_stride + i)],
                          x[static_cast<size_t>(p * x_stride + j)], precision());
          }
          if (accumulate) reference.add(before[at], 1, Precision::f32);
          ASSERT_NEAR(dw[at], reference.value, bound(reference, rows))
              << rows << "x" << out << "x" << in << " at " << i << ", " << j;
        }
        for (int64_t j = in; j < dw_stride; ++j) {
          ASSERT_EQ(dw[static_cast<size_t>(i * dw_stride + j)],
                    before[static_cast<size_t>(i * dw_stride + j)]);
        }
      }
    }
  }
}

TEST_P(MatmulTest, ARowIsTheSameBitsWhateverTheOthers) {
  constexpr int64_t kRows = 500, kStride = 300;
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{8, 300}, {200, 299}, {640, 256}}) {
    const auto x = random_numbers(kRows * kStride, "x"), bias = random_numbers(out, "bias");
    const Weight weight(Tensor::from(random_numbers(out * in, "weight"), {out, in}));
    std::vector<float> all(static_cast<size_t>(kRows * out)), some(all.size());
    const auto forward = [&](int64_t first, int64_t rows, std::vector<float>& y) {
      kernels_->linear_forward(weight, x.data() + first * kStride, kStride, rows, bias.data(),
                               y.data() + first * out, out, precision(), true);
    };
    set_thread_count(1);
    forward(0, kRows, all);
    for (const int threads : {1, 2, 4}) {
      set_thread_count(threads);
      for (const int64_t step : {1, 2, 3, 4, 5, 6, 7, 11, 17, 96, 100, 333, 500}) {
        std::fill(some.begin(), some.end(), kGuard);
        for (int64_t row = 0; row < kRows; row += step) {
          forward(row, std::min(step, kRows - row), some);
        }
        ASSERT_EQ(std::memcmp(all.data(), some.data(), all.size() * sizeof(float)), 0)
            << out << "x" << in << ", " << step << " rows at a time, " << threads << " threads";
      }
    }
  }
}

TEST_P(MatmulTest, GradientsAreTheSameBitsOnAnyNumberOfThreads) {
  constexpr int64_t kRows = 600, kOut = 208, kIn = 130;
  const auto x = random_numbers(kRows * kIn, "x"), dy = random_numbers(kRows * kOut, "dy");
  const Weight weight(Tensor::from(random_numbers(kOut * kIn, "weight"), {kOut, kIn}));
  std::vector<float> first;
  for (const int threads : {1, 2, 4}) {
    set_thread_count(threads);
    std::vector<float> all(static_cast<size_t>(kRows * kIn + kOut * kIn + kOut));
    float* const dw = all.data() + kRows * kIn;
    kernels_->linear_backward_input(weight, dy.data(), kOut, kRows, all.data(), kIn, false,
                                    precision());
    kernels_->linear_backward_weight(dy.data(), kOut, x.data(), kIn, kRows, kOut, kIn, dw, kIn,
                                     false, precision());
    kernels_->linear_backward_bias(dy.data(), kOut, kRows, kOut, dw + kOut * kIn, false);
    if (first.empty()) first = all;
    ASSERT_EQ(std::memcmp(first.data(), all.data(), all.size() * sizeof(float)), 0) << threads;
  }
}

TEST_P(MatmulTest, PacksAgainWhenTheWeightChanges) {
  constexpr int64_t kRows = 3, kOut = 20, kIn = 24;
  const auto x = random_numbers(kRows * kOut, "x");
  const Weight weight(Tensor::from(random_numbers(kOut * kIn, "weight"), {kOut, kIn}));
  const auto run = [&](const Weight& by) {
    std::vector<float> y(kRows * (kOut + kIn));
    kernels_->linear_forward(by, x.data(), 4, kRows, nullptr, y.data(), kOut, precision(), true);
    kernels_->linear_backward_input(by, x.data(), kOut, kRows, y.data() + kRows * kOut, kIn, false,
                                    precision());
    return y;
  };
  const auto before = run(weight);
  weight.value().copy_from(Tensor::from(random_numbers(kOut * kIn, "changed"), {kOut, kIn}));
  weight.value().bump_version();
  const auto after = run(weight);
  EXPECT_NE(before, after);
  EXPECT_EQ(after, run(Weight(weight.value().clone())));
}

TEST_P(MatmulTest, InferencePacksOneSideOnly) {
  constexpr int64_t kOut = 512, kIn = 256;
  const Weight weight(Tensor::from(random_numbers(kOut * kIn, "weight"), {kOut, kIn}));
  const auto x = random_numbers(kIn, "x");
  std::vector<float> y(kOut);
  const int64_t before = memory_use().bytes;
  kernels_->linear_forward(weight, x.data(), kIn, 1, nullptr, y.data(), kOut, precision(), true);
  EXPECT_LE(memory_use().bytes - before, kOut * kIn * static_cast<int64_t>(sizeof(float)));
}

TEST_P(MatmulTest, NoRows) {
  const Weight weight(Tensor::full({3, 2}, 1));
  std::vector<float> dw(6, 1.0f);
  kernels_->linear_forward(weight, nullptr, 2, 0, nullptr, nullptr, 3, precision(), true);
  kernels_->linear_backward_input(weight, nullptr, 3, 0, nullptr, 2, false, precision());
  kernels_->linear_backward_weight(nullptr, 3, nullptr, 2, 0, 3, 2, dw.data(), 2, true,
                                   precision());
  EXPECT_EQ(dw, std::vector<float>(6, 1.0f));
  kernels_->linear_backward_weight(nullptr, 3, nullptr, 2, 0, 3, 2, dw.data(), 2, false,
                                   precision());
  EXPECT_EQ(dw, std::vector<float>(6, 0.0f));
}

}  // namespace
}  // namespace pronghorn
