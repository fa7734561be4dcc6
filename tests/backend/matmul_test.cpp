#include "backend/matmul.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "base/random.h"
#include "base/threads.h"
#include "tensor/storage.h"
#include "tensor/weight.h"

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
                                   {33, 400, 1},  {1100, 40, 33}, {20, 2100, 40},  {70, 18, 2100}};

struct RestoreMachine {
  std::string instruction_set = cpu_instruction_set();
  int threads = thread_count();
  ~RestoreMachine() {
    set_cpu_instruction_set(instruction_set);
    set_thread_count(threads);
  }
};

struct Variant {
  std::string instruction_set;
  Precision precision;
};

std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (const std::string& name : cpu_instruction_sets()) {
    all.push_back({name, Precision::f32});
    all.push_back({name, Precision::bf16});
  }
  return all;
}

class MatmulTest : public testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    set_cpu_instruction_set(GetParam().instruction_set);
    kernels_ = make_cpu_matmul_kernels();
  }
  Precision precision() const { return GetParam().precision; }

  RestoreMachine restore_;
  std::unique_ptr<MatmulKernels> kernels_;
};

INSTANTIATE_TEST_SUITE_P(All, MatmulTest, testing::ValuesIn(variants()),
                         [](const auto& parameters) {
                           const Variant& variant = parameters.param;
                           std::string name =
                               variant.instruction_set +
                               (variant.precision == Precision::f32 ? "_f32" : "_bf16");
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
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
      kernels_->linear_forward(weight, {x.data(), x_stride}, rows,
                               with_bias ? bias.data() : nullptr, {y.data(), y_stride}, precision(),
                               false);
      for (int64_t i = 0; i < rows; ++i) {
        const float* row = y.data() + i * y_stride;
        for (int64_t j = 0; j < out; ++j) {
          Reference reference;
          for (int64_t p = 0; p < in; ++p) {
            reference.add(x[static_cast<size_t>(i * x_stride + p)], weight.trainable().row(j)[p],
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
      kernels_->linear_backward_input(weight, {dy.data(), dy_stride}, rows,
                                      {dx.data(), dx_stride, accumulate}, precision());
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < in; ++j) {
          const auto at = static_cast<size_t>(i * dx_stride + j);
          Reference reference;
          for (int64_t p = 0; p < out; ++p) {
            reference.add(dy[static_cast<size_t>(i * dy_stride + p)], weight.trainable().row(p)[j],
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
      kernels_->linear_backward_weight({dy.data(), dy_stride}, {x.data(), x_stride}, rows, out, in,
                                       {dw.data(), dw_stride, accumulate}, precision());
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
  constexpr int64_t kRows = 500, kStride = 2300;
  for (const auto& sizes :
       {std::pair<int64_t, int64_t>{8, 300}, {200, 299}, {640, 256}, {40, 2300}}) {
    const int64_t out = sizes.first, in = sizes.second;
    const auto x = random_numbers(kRows * kStride, "x"), bias = random_numbers(out, "bias");
    const Weight weight(Tensor::from(random_numbers(out * in, "weight"), {out, in}));
    std::vector<float> all(static_cast<size_t>(kRows * out)), some(all.size());
    const auto forward = [&](int64_t first, int64_t rows, std::vector<float>& y) {
      kernels_->linear_forward(weight, {x.data() + first * kStride, kStride}, rows, bias.data(),
                               {y.data() + first * out, out}, precision(), true);
    };
    set_thread_count(1);
    forward(0, kRows, all);
    for (const int threads : {1, 2, 4}) {
      set_thread_count(threads);
      for (const int64_t step : {1, 2, 3, 4, 5, 6, 7, 11, 17, 96, 100, 333, 500}) {
        if (threads < 4 && step > 1 && step < 96) continue;  // too few rows for several threads
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
  constexpr int64_t kRows = 1300, kOut = 208, kIn = 130;
  const auto x = random_numbers(kRows * kIn, "x"), dy = random_numbers(kRows * kOut, "dy");
  const Weight weight(Tensor::from(random_numbers(kOut * kIn, "weight"), {kOut, kIn}));
  std::vector<float> first;
  for (const int threads : {1, 2, 4}) {
    set_thread_count(threads);
    std::vector<float> all(static_cast<size_t>(kRows * kIn + kOut * kIn + kOut));
    float* const dw = all.data() + kRows * kIn;
    kernels_->linear_backward_input(weight, {dy.data(), kOut}, kRows, {all.data(), kIn},
                                    precision());
    kernels_->linear_backward_weight({dy.data(), kOut}, {x.data(), kIn}, kRows, kOut, kIn,
                                     {dw, kIn}, precision());
    kernels_->linear_backward_bias({dy.data(), kOut}, kRows, kOut, {dw + kOut * kIn});
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
    kernels_->linear_forward(by, {x.data(), 4}, kRows, nullptr, {y.data(), kOut}, precision(),
                             true);
    kernels_->linear_backward_input(by, {x.data(), kOut}, kRows, {y.data() + kRows * kOut, kIn},
                                    precision());
    return y;
  };
  const auto before = run(weight);
  weight.trainable().copy_from(Tensor::from(random_numbers(kOut * kIn, "changed"), {kOut, kIn}));
  weight.trainable().bump_version();
  const auto after = run(weight);
  EXPECT_NE(before, after);
  EXPECT_EQ(after, run(Weight(weight.trainable().clone())));
}

TEST_P(MatmulTest, InferencePacksOneSideOnly) {
  constexpr int64_t kOut = 512, kIn = 256;
  const Weight weight(Tensor::from(random_numbers(kOut * kIn, "weight"), {kOut, kIn}));
  const auto x = random_numbers(kIn, "x");
  std::vector<float> y(kOut);
  const int64_t before = memory_use().bytes;
  kernels_->linear_forward(weight, {x.data(), kIn}, 1, nullptr, {y.data(), kOut}, precision(),
                           true);
  EXPECT_LE(memory_use().bytes - before, kOut * kIn * static_cast<int64_t>(sizeof(float)));
}

// A test's own encoding: blocks of 32 numbers, a scale in f32 and 32 bytes.
void decode_scaled_bytes(const std::byte* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += 32, from += 36) {
    float scale;
    std::memcpy(&scale, from, sizeof(scale));
    for (int64_t j = 0; j < 32; ++j) {
      to[i + j] = scale * static_cast<float>(static_cast<int8_t>(from[4 + j]));
    }
  }
}
const Encoding kScaledBytes = {"scaled_bytes", "", "", 32, 36, decode_scaled_bytes, nullptr};

// Random numbers in an encoding, in memory that is counted.
Stored stored_numbers(const Encoding& encoding, int64_t out, int64_t in) {
  const auto bytes = static_cast<size_t>(out * encoding.bytes(in));
  auto memory = std::make_shared<Storage>(std::max<size_t>(1, bytes));
  std::byte* to = memory->data();
  const std::vector<float> numbers = random_numbers(out * in, "weight");
  for (int64_t i = 0; i < out * in / encoding.block; ++i, to += encoding.block_bytes) {
    const float number = numbers[static_cast<size_t>(i)];
    if (&encoding == &kScaledBytes) {
      std::memcpy(to, &number, sizeof(number));
      for (int64_t j = 0; j < 32; ++j) to[4 + j] = static_cast<std::byte>(7 * i + 13 * j);
      continue;
    }
    // Normal numbers of every encoding, one in eight a subnormal of bf16 or f16.
    const uint16_t bits = static_cast<uint16_t>(i % 8 == 5 ? i % 128 : 0x3000 + i * 37 % 0x900);
    std::memcpy(to, &bits, sizeof(bits));
    if (&encoding == &encodings::f32) std::memcpy(to, &number, sizeof(number));
  }
  return {&encoding, {memory->data(), bytes}, memory, nullptr};
}

const Encoding* const kReadOnly[] = {&encodings::f32, &encodings::bf16, &encodings::f16,
                                     &kScaledBytes};

TEST_P(MatmulTest, ReadOnlyWeightsAreTheNumbersThatTheirEncodingGives) {
  constexpr int64_t kRows = 40, kOut = 90;
  for (const Encoding* encoding : kReadOnly) {
    for (const int64_t in : {int64_t{1}, int64_t{33}, int64_t{288}, int64_t{1056}}) {
      if (in % encoding->block != 0) continue;
      const Stored stored = stored_numbers(*encoding, kOut, in);
      const Weight weight(kOut, in);
      weight.assign(stored);
      std::vector<float> decoded(static_cast<size_t>(kOut * in));
      encoding->decode(stored.bytes.data(), kOut * in, decoded.data());
      const Weight trainable(Tensor::from(decoded, {kOut, in}));
      const auto x = random_numbers(kRows * in, "x"), dy = random_numbers(kRows * kOut, "dy");
      const auto results = [&](const Weight& by, int64_t rows) {
        std::vector<float> y(static_cast<size_t>(rows * (kOut + in)));
        float* dx = y.data() + rows * kOut;
        kernels_->linear_forward(by, {x.data(), in}, rows, nullptr, {y.data(), kOut}, precision(),
                                 true);
        kernels_->linear_backward_input(by, {dy.data(), kOut}, rows, {dx, in}, precision());
        return y;
      };
      for (const int64_t rows :
           {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{4}, int64_t{5}, kRows}) {
        EXPECT_EQ(results(weight, rows), results(trainable, rows))
            << encoding->name << ", " << rows << " rows of " << in;
      }
      // Rows, from the panels where these hold all.
      const std::vector<int32_t> chosen = {7, 0, 89, 7};
      std::vector<float> rows(chosen.size() * static_cast<size_t>(in));
      kernels_->read_rows(weight, chosen, {rows.data(), in});
      for (size_t i = 0; i < chosen.size(); ++i) {
        EXPECT_EQ(
            std::memcmp(rows.data() + i * static_cast<size_t>(in), decoded.data() + chosen[i] * in,
                        static_cast<size_t>(in) * sizeof(float)),
            0)
            << encoding->name << ", row " << chosen[i] << " of " << in;
      }
    }
  }
}

TEST_P(MatmulTest, NothingIsKeptBesideAPackedCopyWithTheSameNumbers) {
  constexpr int64_t kOut = 512, kIn = 256;
  const auto x = random_numbers(kIn, "x");
  std::vector<float> y(kOut), row(kIn);
  for (const Encoding* encoding : kReadOnly) {
    const int64_t before = memory_use().bytes;
    const Weight weight(kOut, kIn);
    weight.assign(stored_numbers(*encoding, kOut, kIn));
    const std::vector<int32_t> first = {0};
    kernels_->read_rows(weight, first, {row.data(), kIn});
    const std::vector<float> row_before = row;
    kernels_->linear_forward(weight, {x.data(), kIn}, 1, nullptr, {y.data(), kOut}, precision(),
                             true);
    const int64_t held = memory_use().bytes - before;
    EXPECT_EQ(held, kernels_->resident_bytes(weight, precision())) << encoding->name;
    int64_t listed = 0;
    for (const WeightBytes& part : weight.bytes()) listed += part.bytes;
    EXPECT_EQ(listed, held) << encoding->name;
    // f16 in bf16, and f32 in bf16, round: both are kept.
    const bool rounds = precision() == Precision::bf16 &&
                        (encoding == &encodings::f32 || encoding == &encodings::f16);
    if (encoding == &encodings::bf16) {
      EXPECT_EQ(held, 2 * kOut * kIn);
    } else if (encoding == &encodings::f32 && !rounds) {
      EXPECT_EQ(held, 4 * kOut * kIn);
    }
    EXPECT_EQ(weight.stored().bytes.empty(), !rounds && encoding != &kScaledBytes);
    kernels_->read_rows(weight, first, {row.data(), kIn});
    EXPECT_EQ(row, row_before) << encoding->name;
  }
}

// A weight that is kept once serves long segments too.
TEST_P(MatmulTest, ReadOnlyWeightsForLongSegmentsEqualFloat64) {
  constexpr int64_t kRows = 523, kOut = 300, kIn = 130;
  const Weight weight(kOut, kIn);
  weight.assign(stored_numbers(encodings::bf16, kOut, kIn));
  const auto x = random_numbers(kRows * kIn, "x"), bias = random_numbers(kOut, "bias");
  std::vector<float> y(kRows * kOut), row(kIn);
  const int64_t before = memory_use().bytes;
  kernels_->linear_forward(weight, {x.data(), kIn}, kRows, bias.data(), {y.data(), kOut},
                           precision(), false);
  // Some padding, but no second copy of 78 kB.
  EXPECT_LE(memory_use().bytes - before, 8192);
  for (int32_t j = 0; j < kOut; ++j) {
    kernels_->read_rows(weight, {&j, 1}, {row.data(), kIn});
    // Instructions for bf16 take subnormals for 0.
    for (float& number : row) number = std::abs(number) < 0x1p-126f ? 0 : number;
    for (int64_t i = 0; i < kRows; ++i) {
      Reference reference;
      for (int64_t p = 0; p < kIn; ++p) {
        reference.add(x[static_cast<size_t>(i * kIn + p)], row[static_cast<size_t>(p)],
                      precision());
      }
      reference.add(bias[static_cast<size_t>(j)], 1, Precision::f32);
      ASSERT_NEAR(y[static_cast<size_t>(i * kOut + j)], reference.value, bound(reference, kIn))
          << i << ", " << j;
    }
  }
}

TEST_P(MatmulTest, FrozenWeightsKeepTheirNumbers) {
  constexpr int64_t kOut = 40, kIn = 24;
  const auto x = random_numbers(kIn, "x");
  const Weight weight(Tensor::from(random_numbers(kOut * kIn, "weight"), {kOut, kIn}));
  const auto run = [&] {
    std::vector<float> y(kOut);
    kernels_->linear_forward(weight, {x.data(), kIn}, 1, nullptr, {y.data(), kOut}, precision(),
                             true);
    return y;
  };
  const std::vector<float> before = run();
  weight.freeze();
  EXPECT_FALSE(weight.trainable().defined());
  EXPECT_EQ(run(), before);
}

TEST_P(MatmulTest, NoRows) {
  const Weight weight(Tensor::full({3, 2}, 1));
  std::vector<float> dw(6, 1.0f);
  kernels_->linear_forward(weight, {nullptr, 2}, 0, nullptr, {nullptr, 3}, precision(), true);
  kernels_->linear_backward_input(weight, {nullptr, 3}, 0, {nullptr, 2}, precision());
  kernels_->linear_backward_weight({nullptr, 3}, {nullptr, 2}, 0, 3, 2, {dw.data(), 2, true},
                                   precision());
  EXPECT_EQ(dw, std::vector<float>(6, 1.0f));
  kernels_->linear_backward_weight({nullptr, 3}, {nullptr, 2}, 0, 3, 2, {dw.data(), 2},
                                   precision());
  EXPECT_EQ(dw, std::vector<float>(6, 0.0f));
}

}  // namespace
}  // namespace pronghorn
