// Rows of attention held in blocks of whole numbers, against a naive form of their definition in
// backend/attention.h. That results do not depend on how a sequence is cut is in tests/laws.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "base/error.h"
#include "base/float16.h"
#include "base/random.h"
#include "ops/attention.h"
#include "ops/journal_rows.h"
#include "ops/pointwise.h"
#include "support/errors.h"
#include "support/machine.h"
#include "support/steps.h"

namespace pronghorn {
namespace {

using testing_support::equal_steps;
using testing_support::error_of;
using Doubles = std::vector<double>;

// f32 sums of some hundred terms, and queries that exact steps round to 16 bits: 2^-16 of the
// largest number, in sums of up to 96 products that give scores of up to about 10.
constexpr double kTolerance = 1e-4;

double hadamard(int64_t i, int64_t j) {
  const int ones = std::popcount(static_cast<uint32_t>(i & j));
  return (ones % 2 == 0 ? 1 : -1) / std::sqrt(static_cast<double>(kRowBlock));
}

// Whole blocks times the matrix, which is its own inverse.
Doubles turned(const Doubles& x) {
  Doubles out(x.size());
  for (size_t first = 0; first < x.size(); first += kRowBlock) {
    for (int64_t i = 0; i < kRowBlock; ++i) {
      double& sum = out[first + static_cast<size_t>(i)];
      for (int64_t j = 0; j < kRowBlock; ++j) {
        sum += hadamard(i, j) * x[first + static_cast<size_t>(j)];
      }
    }
  }
  return out;
}

struct Block {
  double scale = 0;
  int codes[kRowBlock] = {};
};

Block block_at(const std::byte* from, DType type) {
  Block block;
  f16_t bits;
  std::memcpy(&bits, from, 2);
  block.scale = from_f16(bits);
  const auto* bytes = reinterpret_cast<const uint8_t*>(from + 2);
  for (int i = 0; i < kRowBlock; ++i) {
    block.codes[i] = type == DType::q8_0 ? static_cast<int8_t>(bytes[i])
                     : i < 16            ? (bytes[i] & 15) - 8
                                         : (bytes[i - 16] >> 4) - 8;
  }
  return block;
}

// A row of a journal as the numbers that it stands for.
Doubles held_row(const Journal& journal, int64_t row) {
  const JournalShape& shape = journal.shape();
  Doubles y;
  if (!is_block_type(shape.row_type)) {
    for (int64_t i = 0; i < shape.row_width; ++i) {
      const std::byte* at = journal.row_data(row) + dtype_bytes(shape.row_type, i);
      float number = 0;
      bf16_t bf16_bits;
      f16_t f16_bits;
      if (shape.row_type == DType::bf16) {
        std::memcpy(&bf16_bits, at, sizeof(bf16_bits));
        number = from_bf16(bf16_bits);
      } else if (shape.row_type == DType::f16) {
        std::memcpy(&f16_bits, at, sizeof(f16_bits));
        number = from_f16(f16_bits);
      } else {
        std::memcpy(&number, at, sizeof(number));
      }
      y.push_back(number);
    }
    return y;
  }
  for (int64_t at = 0; at < shape.row_width; at += kRowBlock) {
    const Block block =
        block_at(journal.row_data(row) + dtype_bytes(shape.row_type, at), shape.row_type);
    for (const int code : block.codes) y.push_back(block.scale * code);
  }
  return turned(y);
}

// One layer with one attention, and a sequence of random rows, whose keys may have channels that
// are larger than others.
struct Sequence {
  AttentionOptions options;
  Tensor q, k, v;
  std::shared_ptr<StateLayout> layout = std::make_shared<StateLayout>();
  SequenceState state;

  Sequence(const AttentionOptions& chosen, int64_t tokens, const CacheOptions& cache)
      : options(chosen) {
    const int64_t value_dim = options.value_dim > 0 ? options.value_dim : options.head_dim;
    q = rows(tokens, options.heads * options.head_dim, "q", 3);
    k = rows(tokens, options.kv_heads * options.head_dim, "k", 1);
    if (!options.value_in_key) v = rows(tokens, options.kv_heads * value_dim, "v", 1);
    layout->layers = {{attention_journal(options)}};
    state = SequenceState(with_cache(layout, cache));
  }

  static Tensor rows(int64_t count, int64_t columns, const std::string& name, double limit) {
    Random random(4, name);
    Tensor tensor = Tensor::empty({count, columns});
    for (float& value : tensor.values()) {
      value = static_cast<float>(random.uniform(-limit, limit));
    }
    return tensor;
  }

  const Journal& journal() const { return state.layers()[0][0]; }

  std::vector<float> step(int64_t count) {
    Batch batch;
    const int64_t begin = state.length();
    for (int64_t i = 0; i < count; ++i) batch.positions.push_back(static_cast<int32_t>(begin + i));
    batch.segments = {{&state, 0, count, Mask::causal, {}}};
    const Tensor values = v.defined() ? v.row_slice(begin, count) : Tensor();
    const Tensor o = attention({}, q.row_slice(begin, count), k.row_slice(begin, count), values,
                               options, batch, {});
    state.advance(count);
    return {o.values().begin(), o.values().end()};
  }

  std::vector<float> run(const std::vector<int64_t>& steps) {
    std::vector<float> all;
    for (const int64_t count : steps) {
      const std::vector<float> some = step(count);
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }

  // Causal attention in float64 to the rows [key | value] given.
  Doubles naive(const std::vector<Doubles>& held) const {
    const int64_t dim = options.head_dim, group = options.heads / options.kv_heads;
    const int64_t width = options.value_dim > 0 ? options.value_dim : dim;
    Doubles out;
    for (int64_t i = 0; i < q.rows(); ++i) {
      for (int64_t head = 0; head < options.heads; ++head) {
        const int64_t kv = head / group;
        const int64_t value = options.value_in_key ? kv * dim : options.kv_heads * dim + kv * width;
        Doubles o(static_cast<size_t>(width));
        double sum = 0;
        for (int64_t j = 0; j <= i; ++j) {
          const Doubles& row = held[static_cast<size_t>(j)];
          double score = 0;
          for (int64_t c = 0; c < dim; ++c) {
            score += double{q.row(i)[head * dim + c]} * row[static_cast<size_t>(kv * dim + c)];
          }
          const double p = std::exp(score / std::sqrt(static_cast<double>(dim)));
          sum += p;
          for (int64_t c = 0; c < width; ++c) {
            o[static_cast<size_t>(c)] += p * row[static_cast<size_t>(value + c)];
          }
        }
        for (const double x : o) out.push_back(x / sum);
      }
    }
    return out;
  }

  // The rows as they are given.
  std::vector<Doubles> plain() const {
    std::vector<Doubles> all;
    for (int64_t i = 0; i < k.rows(); ++i) {
      all.emplace_back(k.row(i), k.row(i) + k.columns());
      if (v.defined()) all.back().insert(all.back().end(), v.row(i), v.row(i) + v.columns());
    }
    return all;
  }
};

double difference(const std::vector<float>& got, const Doubles& want) {
  EXPECT_EQ(got.size(), want.size());
  double worst = 0, largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::fabs(double{got[i]} - want[i]));
    largest = std::max(largest, std::fabs(want[i]));
  }
  return worst / largest;
}

const std::vector<AttentionOptions>& shapes() {
  static const std::vector<AttentionOptions> all = {
      {.heads = 4, .kv_heads = 2, .head_dim = 32, .value_dim = 64},
      {.heads = 3, .head_dim = 96, .value_dim = 64, .value_in_key = true}};
  return all;
}

class CacheBlocksTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { set_cpu_instruction_set(GetParam()); }
  void TearDown() override { set_cpu_instruction_set(cpu_instruction_sets().back()); }
};

// What rows stand for, and attention to keys and values in their place.
TEST_P(CacheBlocksTest, RowsAreReadAsTheyAreHeld) {
  const AttentionOptions odd = {.heads = 2, .head_dim = 5, .value_dim = 7};
  for (const DType type : {DType::f32, DType::bf16, DType::f16, DType::q8_0, DType::q4_0}) {
    constexpr int64_t kRows = 90, kBefore = 40;
    Sequence sequence(is_block_type(type) ? shapes().front() : odd, kRows, type);
    const AttentionOptions& options = sequence.options;
    sequence.step(kBefore);
    const Tensor parts[] = {sequence.k.row_slice(kBefore, kRows - kBefore),
                            sequence.v.row_slice(kBefore, kRows - kBefore)};
    Batch batch;
    for (int32_t i = kBefore; i < kRows; ++i) batch.positions.push_back(i);
    batch.segments = {{&sequence.state, 0, kRows - kBefore, Mask::causal, {}}};
    EXPECT_EQ(rows_before(batch.segments.front(), {}), kBefore);
    const Tensor read =
        append_and_read(batch, batch.segments.front(), concatenate_columns({}, parts), {});
    std::vector<Doubles> held;
    for (int64_t row = 0; row < kRows; ++row) {
      held.push_back(held_row(sequence.journal(), row));
      ASSERT_EQ(std::ssize(held.back()), read.columns());
      for (int64_t i = 0; i < read.columns(); ++i) {
        // Sums of a block's 32 numbers of up to 1.
        const double most = is_block_type(type) ? 4e-6 : 0;
        EXPECT_NEAR(read.row(row)[i], held.back()[static_cast<size_t>(i)], most)
            << dtype_name(type) << " row " << row;
      }
    }
    const int64_t keys = sequence.k.columns(), values = sequence.v.columns();
    const Tensor o =
        attention_to_rows(sequence.q.row_slice(kBefore, kRows - kBefore),
                          read.column_slice(0, keys), read.column_slice(keys, values), options);
    const Doubles all = sequence.naive(held);
    const Doubles last(all.end() - o.size(), all.end());
    EXPECT_LT(difference({o.values().begin(), o.values().end()}, last), kTolerance)
        << dtype_name(type);
  }
}

TEST_P(CacheBlocksTest, RowsAreHeldAsDefined) {
  for (const DType type : {DType::q8_0, DType::q4_0}) {
    for (const AttentionOptions& options : shapes()) {
      Sequence sequence(options, 70, type);
      sequence.k.row(3)[5] = 1000;  // sizes that lie far apart
      std::fill_n(sequence.k.row(4), 32, 0.0f);
      sequence.step(70);
      const std::vector<Doubles> plain = sequence.plain();
      for (int64_t row = 0; row < 70; ++row) {
        const Doubles y = turned(plain[static_cast<size_t>(row)]);
        for (size_t first = 0; first < y.size(); first += kRowBlock) {
          const std::byte* held =
              sequence.journal().row_data(row) + dtype_bytes(type, static_cast<int64_t>(first));
          const Block block = block_at(held, type);
          const auto begin = y.begin() + static_cast<int64_t>(first), end = begin + kRowBlock;
          const double largest = *std::max_element(
              begin, end, [](double a, double b) { return std::fabs(a) < std::fabs(b); });
          const double scale = type == DType::q8_0 ? std::fabs(largest) / 127 : largest / -8;
          // A scale has 11 bits, and numbers that differ by rounding may be the largest.
          const bool same = std::fabs(block.scale - scale) <= 0x1p-11 * std::fabs(scale) + 0x1p-25;
          const bool other =
              type == DType::q4_0 && std::fabs(block.scale + scale) <= 0x1p-11 * std::fabs(scale);
          EXPECT_TRUE(same || other) << block.scale << " for " << scale;
          for (size_t i = 0; i < kRowBlock; ++i) {
            double code = block.scale == 0 ? 0 : y[first + i] / block.scale;
            if (type == DType::q4_0) code = std::min(code, 7.0);
            // Half a step, what the scale is rounded by (127 x 2^-11), and f32's rounding.
            EXPECT_NEAR(block.codes[i], code, 0.5 + 0.07) << dtype_name(type) << " row " << row;
          }
        }
      }
    }
  }
}

// Kernels compute with what is held, whatever that lost.
TEST_P(CacheBlocksTest, AttentionIsToTheRowsThatAreHeld) {
  constexpr int64_t kTokens = 540;  // more than a share of the keys
  for (const DType type : {DType::q8_0, DType::q4_0}) {
    for (const AttentionOptions& options : shapes()) {
      Sequence ones(options, kTokens, type), steps = ones, pieces = ones;
      const std::vector<float> got = ones.run(equal_steps(kTokens, 1));
      EXPECT_EQ(steps.run(equal_steps(kTokens, 15)), got);
      const std::vector<float> long_pieces = pieces.run({300, 16, 1, 223});
      std::vector<Doubles> held;
      for (int64_t row = 0; row < kTokens; ++row) held.push_back(held_row(ones.journal(), row));
      const Doubles want = ones.naive(held);
      EXPECT_LT(difference(got, want), kTolerance) << dtype_name(type);
      EXPECT_LT(difference(long_pieces, want), kTolerance) << dtype_name(type);
      // What is lost: random errors of the relative size of a step.
      const double most = type == DType::q8_0 ? 0.02 : 0.3;
      EXPECT_LT(difference(got, ones.naive(ones.plain())), most);
    }
  }
}

// A channel that is far larger than others would leave these no precision.
TEST_P(CacheBlocksTest, LargeChannelsDoNotSpoilTheOthers) {
  const AttentionOptions options{.heads = 2, .kv_heads = 1, .head_dim = 64};
  for (const DType type : {DType::q8_0, DType::q4_0}) {
    Sequence sequence(options, 200, type);
    for (int64_t i = 0; i < 200; ++i) {
      sequence.k.row(i)[7] = type == DType::q8_0 ? 50 : 10;
      for (int64_t head = 0; head < 2; ++head) sequence.q.row(i)[head * 64 + 7] = 0.1f;
    }
    const double moved = difference(sequence.run({200}), sequence.naive(sequence.plain()));
    // The same rows in blocks that are not turned.
    std::vector<Doubles> rows = sequence.plain();
    const double most = type == DType::q8_0 ? 127 : 7;
    for (Doubles& row : rows) {
      for (size_t first = 0; first < row.size(); first += kRowBlock) {
        double largest = 0;
        for (size_t i = first; i < first + kRowBlock; ++i) {
          largest = std::max(largest, std::fabs(row[i]));
        }
        for (size_t i = first; i < first + kRowBlock; ++i) {
          row[i] = std::nearbyint(row[i] / largest * most) * largest / most;
        }
      }
    }
    const Doubles rounded = sequence.naive(rows);
    const double unturned = difference(std::vector<float>(rounded.begin(), rounded.end()),
                                       sequence.naive(sequence.plain()));
    EXPECT_LT(3 * moved, unturned) << dtype_name(type);
  }
}

// Sinks that roll, and pages chosen by the keys that blocks stand for.
TEST_P(CacheBlocksTest, WindowsAndPagesReadBlocks) {
  constexpr int64_t kTokens = 300;
  const AttentionOptions options = shapes()[0];
  CacheOptions window = DType::q8_0, pages = DType::q8_0;
  window.window = 40;
  pages.quest_pages = 3;
  for (CacheOptions cache : {window, pages}) {
    Sequence ones(options, kTokens, cache), some(options, kTokens, cache);
    const std::vector<float> want = ones.run(equal_steps(kTokens, 1));
    EXPECT_EQ(some.run(equal_steps(kTokens, 7)), want);
    cache.type = DType::f32;
    Sequence plain(options, kTokens, cache);
    const std::vector<float> exact = plain.run(equal_steps(kTokens, 1));
    EXPECT_LT(difference(want, Doubles(exact.begin(), exact.end())), 0.02);
  }
}

// Numbers that are none stay none, and harm no other row.
TEST_P(CacheBlocksTest, WhatIsNoNumberStaysSo) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    for (const DType type : {DType::q8_0, DType::q4_0}) {
      Sequence sequence(shapes()[0], 20, type);
      sequence.v.row(9)[3] = bad;
      const std::vector<float> got = sequence.run(equal_steps(20, 1));
      const size_t width = got.size() / 20;
      EXPECT_TRUE(std::all_of(got.begin(), got.begin() + static_cast<int64_t>(9 * width),
                              [](float x) { return std::isfinite(x); }));
      EXPECT_TRUE(std::isnan(got[9 * width]));
    }
  }
  // Whatever bytes a file gives are numbers or none: nothing is read beyond a row.
  for (const DType type : {DType::q8_0, DType::q4_0}) {
    Sequence sequence(shapes()[0], 40, type);
    sequence.run({20});
    Random random(8, "bytes");
    Journal& journal = sequence.state.journal(0, 0);
    for (int64_t row = 0; row < 20; ++row) {
      for (int64_t i = 0; i < journal.shape().row_bytes(); ++i) {
        journal.mutable_row_data(row)[i] = static_cast<std::byte>(random.below(256));
      }
    }
    EXPECT_NO_THROW(sequence.run({1, 19}));
  }
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, CacheBlocksTest,
                         testing::ValuesIn(cpu_instruction_sets()), [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(CacheBlocks, TakeWholeHeadsAlone) {
  const auto layout = std::make_shared<StateLayout>();
  layout->layers = {{attention_journal({.head_dim = 64})},
                    {attention_journal({.head_dim = 64, .value_dim = 48})}};
  const std::string message = error_of([&] { with_cache(layout, DType::q8_0); });
  EXPECT_NE(message.find("layer 1"), std::string::npos) << message;
  EXPECT_NE(message.find("multiples of 16"), std::string::npos) << message;
  layout->layers.pop_back();
  const JournalShape shape = with_cache(layout, DType::q4_0)->layers[0][0];
  EXPECT_EQ(shape.row_bytes(), 128 / 32 * 18);
  EXPECT_EQ(with_cache(layout, DType::q8_0)->layers[0][0].row_bytes(), 128 / 32 * 34);
}

}  // namespace
}  // namespace pronghorn
