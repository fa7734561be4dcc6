// Products with weights in blocks, of every encoding on every instruction set, against loops over
// whole numbers and float64.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "backend/matmul.h"
#include "base/random.h"
#include "base/threads.h"
#include "tensor/block_layouts.h"
#include "tensor/storage.h"
#include "tensor/weight.h"

namespace pronghorn {
namespace {

struct RestoreMachine {
  std::string instruction_set = cpu_instruction_set();
  int threads = thread_count();
  ~RestoreMachine() {
    set_cpu_instruction_set(instruction_set);
    set_thread_count(threads);
  }
};

std::vector<float> random_numbers(int64_t count, const char* stream) {
  Random random(7, stream);
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& number : numbers) number = static_cast<float>(random.normal());
  return numbers;
}

// Blocks of random bits, all codes and factors among them, with scales of usual size.
std::vector<std::byte> random_blocks(const Encoding& encoding, int64_t count) {
  const BlockLayout& layout = *layout_of(encoding);
  std::vector<std::byte> bytes(static_cast<size_t>(encoding.bytes(count)));
  Random random(3, encoding.name);
  for (int64_t i = 0; i < count / encoding.block; ++i) {
    std::byte* block = bytes.data() + i * encoding.block_bytes;
    for (int64_t k = 0; k < encoding.block_bytes; ++k) {
      block[k] = static_cast<std::byte>(random.below(256));
    }
    BlockParts parts;
    layout.take_apart(block, parts);
    const auto scale = static_cast<float>(0.02 * random.normal());
    parts.scale =
        layout.bf16_scale ? to_bf16(std::ldexp(1.0f, -static_cast<int>(i % 9))) : to_f16(scale);
    parts.minimum = to_f16(static_cast<float>(0.02 * random.normal()));
    layout.put_together(parts, block);
  }
  return bytes;
}

struct Case {
  const Encoding* encoding;
  std::string instruction_set;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::string& set : cpu_instruction_sets()) {
    for (const Encoding* encoding : all_encodings()) {
      if (layout_of(*encoding) != nullptr) all.push_back({encoding, set});
    }
  }
  return all;
}

class BlockMatmulTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override { set_cpu_instruction_set(GetParam().instruction_set); }
  const Encoding& encoding() const { return *GetParam().encoding; }

  // Random weights in memory that they own; `bytes` keeps what they are.
  Weight weight(int64_t out, int64_t in) {
    bytes_ = random_blocks(encoding(), out * in);
    auto memory = std::make_shared<Storage>(bytes_.size());
    std::memcpy(memory->data(), bytes_.data(), bytes_.size());
    const Weight made(out, in);
    made.assign({&encoding(), {memory->data(), bytes_.size()}, memory, nullptr});
    numbers_.resize(static_cast<size_t>(out * in));
    encoding().decode(bytes_.data(), out * in, numbers_.data());
    return made;
  }

  std::vector<float> forward(const Weight& by, const float* x, int64_t rows,
                             const float* bias = nullptr, Precision precision = Precision::bf16,
                             bool exact = true) {
    std::vector<float> y(static_cast<size_t>(rows * by.out()));
    kernels_->linear_forward(by, {x, by.in()}, rows, bias, {y.data(), by.out()}, precision, exact);
    return y;
  }

  RestoreMachine restore_;
  std::unique_ptr<MatmulKernels> kernels_ = make_cpu_matmul_kernels();
  std::vector<std::byte> bytes_;
  std::vector<float> numbers_;  // the weight's
};

INSTANTIATE_TEST_SUITE_P(All, BlockMatmulTest, testing::ValuesIn(cases()),
                         [](const auto& parameters) {
                           std::string name = parameters.param.instruction_set + "_" +
                                              std::string(parameters.param.encoding->name);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// What a row of activations is rounded to: each 32 to whole numbers times a scale.
std::vector<double> rounded(const float* x, int64_t count) {
  std::vector<double> result;
  for (int64_t begin = 0; begin < count; begin += 32) {
    float most = 0;
    for (int64_t k = 0; k < 32; ++k) most = std::max(most, std::abs(x[begin + k]));
    const float inverse = most > 0 ? 127 / most : 0, scale = most / 127;
    for (int64_t k = 0; k < 32; ++k) {
      result.push_back(static_cast<double>(scale) *
                       static_cast<double>(std::nearbyint(x[begin + k] * inverse)));
    }
  }
  return result;
}

TEST_P(BlockMatmulTest, ForwardEqualsFloat64OfTheRoundedRows) {
  const int64_t block = encoding().block;
  for (const int64_t out : {int64_t{1}, int64_t{16}, int64_t{37}}) {
    for (const int64_t in : {block, 3 * block, 1024 + block}) {
      const Weight by = weight(out, in);
      constexpr int64_t kRows = 37;
      std::vector<float> x = random_numbers(kRows * in, "x");
      std::fill_n(x.begin(), 32, 0.0f);
      const std::vector<float> bias = random_numbers(out, "bias");
      for (const int64_t rows :
           {int64_t{1}, int64_t{3}, int64_t{4}, int64_t{5}, int64_t{9}, kRows}) {
        const std::vector<float> y = forward(by, x.data(), rows, bias.data());
        for (int64_t i = 0; i < rows; ++i) {
          const std::vector<double> row = rounded(x.data() + i * in, in);
          for (int64_t j = 0; j < out; ++j) {
            double value = bias[static_cast<size_t>(j)], magnitude = std::abs(value);
            // The parts of a weight are multiplied apart, which matters where they cancel.
            for (int64_t k = 0; k < in; ++k) {
              const auto w = static_cast<double>(numbers_[static_cast<size_t>(j * in + k)]);
              value += w * row[static_cast<size_t>(k)];
              magnitude += (std::abs(w) + 1) * std::abs(row[static_cast<size_t>(k)]);
            }
            // Four roundings to f32 in each unit, and one for each addition.
            const double bound = 0x1.0p-24 * static_cast<double>(in / 32 + 6) * magnitude;
            ASSERT_NEAR(y[static_cast<size_t>(i * out + j)], value, bound)
                << rows << " rows, [" << out << ", " << in << "], " << i << ", " << j;
          }
        }
      }
    }
  }
}

// Where rows need not be exact, AMX multiplies what blocks and rows are in bf16.
TEST_P(BlockMatmulTest, LongSegmentsAreNoLessAccurate) {
  const int64_t in = 1024 + encoding().block, out = 53, rows = 77;
  const Weight by = weight(out, in);
  const std::vector<float> x = random_numbers(rows * in, "x"), bias = random_numbers(out, "bias");
  const auto y = forward(by, x.data(), rows, bias.data(), Precision::bf16, false);
  if (GetParam().instruction_set != "amx") {
    EXPECT_EQ(y, forward(by, x.data(), rows, bias.data()));
    return;
  }
  double squares = 0;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < out; ++j) {
      double value = bias[static_cast<size_t>(j)], magnitude = 0, power = 0;
      for (int64_t k = 0; k < in; ++k) {
        const double term = static_cast<double>(numbers_[static_cast<size_t>(j * in + k)]) *
                            static_cast<double>(x[static_cast<size_t>(i * in + k)]);
        value += term;
        magnitude += std::abs(term);
        power += term * term;
      }
      // Each factor is rounded by 2^-8 of itself at most.
      const double error = y[static_cast<size_t>(i * out + j)] - value;
      ASSERT_LE(std::abs(error), 0x1.1p-7 * magnitude) << i << ", " << j;
      squares += error * error / power;
    }
  }
  EXPECT_LE(std::sqrt(squares / static_cast<double>(rows * out)), 0x1.8p-9);
}

TEST_P(BlockMatmulTest, ForwardInF32EqualsFloat64AndKeepsNothing) {
  const int64_t in = 2 * encoding().block + encoding().block, out = 37, rows = 21;
  const Weight by = weight(out, in);
  const std::vector<float> x = random_numbers(rows * in, "x");
  forward(by, x.data(), rows, nullptr, Precision::f32);  // takes scratch memory
  const int64_t before = memory_use().bytes;
  // Of the stored bytes, then of the panels that replace them.
  for (const bool packed : {false, true}) {
    if (packed) forward(by, x.data(), 1);
    const std::vector<float> y = forward(by, x.data(), rows, nullptr, Precision::f32);
    if (!packed) EXPECT_EQ(memory_use().bytes, before);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < out; ++j) {
        double value = 0, magnitude = 0;
        for (int64_t k = 0; k < in; ++k) {
          const double term = static_cast<double>(numbers_[static_cast<size_t>(j * in + k)]) *
                              static_cast<double>(x[static_cast<size_t>(i * in + k)]);
          value += term;
          magnitude += std::abs(term);
        }
        ASSERT_NEAR(y[static_cast<size_t>(i * out + j)], value,
                    0x1.0p-24 * static_cast<double>(in) * magnitude)
            << packed << ", " << i << ", " << j;
      }
    }
  }
}

TEST_P(BlockMatmulTest, ARowIsTheSameBitsWhateverIsComputedWithIt) {
  const int64_t in = 1024 + encoding().block, out = 53, rows = 200;
  const Weight by = weight(out, in);
  const std::vector<float> x = random_numbers(rows * in, "x");
  for (const Precision precision : {Precision::bf16, Precision::f32}) {
    const auto part_of = [&](int64_t first, int64_t count) {
      return forward(by, x.data() + first * in, count, nullptr, precision);
    };
    const std::vector<float> all = part_of(0, rows);
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 1},
                                       {7, 1},
                                       {13, 2},
                                       {5, 3},
                                       {40, 5},
                                       {127, 17},
                                       {3, 140},
                                       {199, 1}}) {
      const std::vector<float> part = part_of(first, count);
      ASSERT_EQ(std::memcmp(part.data(), all.data() + first * out, part.size() * sizeof(float)), 0)
          << first << ", " << count;
    }
    for (const int threads : {1, 3}) {
      set_thread_count(threads);
      EXPECT_EQ(part_of(0, rows), all) << threads;
    }
  }
}

TEST_P(BlockMatmulTest, SumsMayStartFromTheResult) {
  const int64_t in = 3 * encoding().block, out = 21, rows = 5;
  const Weight by = weight(out, in);
  const std::vector<float> x = random_numbers(rows * in, "x");
  const std::vector<float> once = forward(by, x.data(), rows);
  float largest = 2;
  for (const float value : once) largest = std::max(largest, std::abs(value));
  // Each addition rounds, of sums that stay within a few times the largest result.
  const double bound = 0x1.0p-24 * 4 * static_cast<double>(in / 32 + 1) * largest;
  // With rows further apart than they are long, of which the gaps must survive.
  constexpr float kGuard = 1234.5f;
  std::vector<float> y(static_cast<size_t>(rows * (out + 3)), kGuard);
  for (int64_t i = 0; i < rows; ++i) std::fill_n(y.begin() + i * (out + 3), out, 2.0f);
  kernels_->linear_forward(by, {x.data(), in}, rows, nullptr, {y.data(), out + 3, true},
                           Precision::bf16, true);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < out + 3; ++j) {
      const float value = y[static_cast<size_t>(i * (out + 3) + j)];
      if (j >= out) {
        EXPECT_EQ(value, kGuard);
      } else {
        EXPECT_NEAR(value, once[static_cast<size_t>(i * out + j)] + 2, bound) << i << ", " << j;
      }
    }
  }
}

TEST_P(BlockMatmulTest, ProductsTogetherAreThoseOfEach) {
  // Of one encoding, of others that round rows in another way, and of plain numbers.
  const int64_t in = 2 * 256;
  const std::vector<float> plain = random_numbers(40 * in, "plain");
  const Tensor owned = Tensor::empty({40, in});
  owned.write(plain);
  const Weight last(owned);
  last.freeze();
  const auto other = [&](const Encoding& other_encoding, int64_t out) {
    const std::vector<std::byte> bytes = random_blocks(other_encoding, out * in);
    auto memory = std::make_shared<Storage>(bytes.size());
    std::memcpy(memory->data(), bytes.data(), bytes.size());
    const Weight made(out, in);
    made.assign({&other_encoding, {memory->data(), bytes.size()}, memory, nullptr});
    return made;
  };
  const std::vector<Weight> weights = {weight(300, in), weight(21, in), other(encodings::q6_k, 100),
                                       other(encodings::q8_0, 64), last};
  constexpr int64_t kMost = 100;
  const std::vector<float> x = random_numbers(2 * kMost * in, "x");
  const std::vector<float> bias = random_numbers(300, "bias");
  // Rows of each product; 0: none. The last two read other rows than those before.
  for (const std::vector<int64_t>& rows : {std::vector<int64_t>{1, 1, 1, 1, 1},
                                           {5, 5, 5, 5, 2},
                                           {17, 17, 17, 3, 0},
                                           {kMost, kMost, kMost, 0, kMost}}) {
    for (const Precision precision : {Precision::bf16, Precision::f32}) {
      for (const int threads : {1, 2, 3}) {
        set_thread_count(threads);
        std::vector<std::vector<float>> together, each;
        std::vector<GroupedProduct> products;
        for (size_t i = 0; i < weights.size(); ++i) {
          const float* from = x.data() + (i >= 3 ? kMost * in : 0);
          const float* offset = i % 2 == 0 ? bias.data() : nullptr;
          each.push_back(forward(weights[i], from, rows[i], offset, precision));
          auto& y = together.emplace_back(each.back().size());
          products.push_back(
              {&weights[i], {from, in}, rows[i], offset, {y.data(), weights[i].out()}});
        }
        kernels_->grouped_forward(products, precision, true);
        EXPECT_EQ(together, each) << rows[0] << " rows, " << threads << " threads";
      }
    }
  }
}

TEST_P(BlockMatmulTest, WhatIsNotANumberIsNotANumberAfterwards) {
  const int64_t in = 2 * encoding().block, out = 16, rows = 3;
  const Weight by = weight(out, in);
  for (const float fault : {NAN, INFINITY, -INFINITY}) {
    std::vector<float> x = random_numbers(rows * in, "x");
    x[static_cast<size_t>(in + 5)] = fault;
    const std::vector<float> y = forward(by, x.data(), rows);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < out; ++j) {
        EXPECT_EQ(std::isfinite(y[static_cast<size_t>(i * out + j)]), i != 1) << fault;
      }
    }
  }
}

TEST_P(BlockMatmulTest, PanelsHoldAllThatWasStored) {
  const int64_t in = 2 * encoding().block, out = 37;
  const std::vector<float> x = random_numbers(in, "x");
  const std::vector<int32_t> rows = {36, 0, 5};
  std::vector<float> read(rows.size() * static_cast<size_t>(in));
  std::vector<std::byte> again(static_cast<size_t>(encoding().bytes(out * in)));
  int64_t held = 0, counted = 0;  // after the first product, in bytes
  const auto use = [&] {
    const int64_t before = memory_use().bytes;
    const Weight by = weight(out, in);
    forward(by, x.data(), 1);
    held = memory_use().bytes - before;
    counted = kernels_->resident_bytes(by, Precision::bf16);
    EXPECT_TRUE(by.stored().bytes.empty());
    kernels_->read_stored(by, again.data());
    kernels_->read_rows(by, rows, {read.data(), in});
  };
  use();  // scratch memory is taken here, and stays with its thread
  const int64_t before = memory_use().bytes;
  use();
  EXPECT_EQ(memory_use().bytes, before);
  EXPECT_EQ(held, counted);
  // 48 rows for 37, and what scales take in whole bytes.
  EXPECT_LE(static_cast<double>(held),
            1.06 * 48 / 37 * static_cast<double>(bytes_.size()) + 64 * 3);
  EXPECT_EQ(again, bytes_);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(std::memcmp(read.data() + i * static_cast<size_t>(in), numbers_.data() + rows[i] * in,
                          static_cast<size_t>(in) * sizeof(float)),
              0);
  }
}

// In f32, of the very numbers; nothing is kept for it.
TEST_P(BlockMatmulTest, BackwardEqualsFloat64) {
  const int64_t in = 2 * encoding().block, out = 85;
  const Weight by = weight(out, in);
  for (const bool packed : {false, true}) {
    if (packed) forward(by, random_numbers(in, "x").data(), 1);
    for (const int64_t rows : {int64_t{2}, int64_t{33}}) {
      const std::vector<float> dy = random_numbers(rows * out, "dy");
      std::vector<float> dx(static_cast<size_t>(rows * in));
      const int64_t before = memory_use().bytes;
      kernels_->linear_backward_input(by, {dy.data(), out}, rows, {dx.data(), in}, Precision::f32);
      EXPECT_LE(memory_use().bytes - before, 1 << 20);  // buffers of threads
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t k = 0; k < in; ++k) {
          double value = 0, magnitude = 0;
          for (int64_t j = 0; j < out; ++j) {
            const double product = static_cast<double>(dy[static_cast<size_t>(i * out + j)]) *
                                   static_cast<double>(numbers_[static_cast<size_t>(j * in + k)]);
            value += product;
            magnitude += std::abs(product);
          }
          ASSERT_NEAR(dx[static_cast<size_t>(i * in + k)], value,
                      0x1.0p-24 * static_cast<double>(out + 2) * magnitude + 1e-30)
              << i << ", " << k;
        }
      }
    }
  }
}

}  // namespace
}  // namespace pronghorn
