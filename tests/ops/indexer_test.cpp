#include "ops/indexer.h"

#include <cmath>

#include "base/error.h"
#include "ops/operator_check.h"
#include "support/errors.h"
#include "support/steps.h"

namespace pronghorn {
namespace {

using check::check_operator;
using check::Input;
using check::OperatorCheck;
using check::Values;
using testing_support::batch_of;

constexpr IndexerOptions kIndexer{.heads = 3, .head_dim = 5, .top = 4};

struct Teacher {
  AttentionOptions options{.heads = 4, .kv_heads = 2, .head_dim = 6};
  bool sparse = false;

  // Fixed numbers: what the indexer imitates gets no gradient.
  static float number(int64_t i) { return std::sin(static_cast<float>(i * i % 1009)); }
  Tensor q(int64_t rows) const { return filled(rows, options.heads * options.head_dim, 3); }
  Tensor k(int64_t rows) const { return filled(rows, options.kv_heads * options.head_dim, 7); }
  static Tensor filled(int64_t rows, int64_t columns, int64_t step) {
    std::vector<float> values;
    for (int64_t i = 0; i < rows * columns; ++i) values.push_back(2 * number(step * i + 1));
    return Tensor::from(values, {rows, columns});
  }
  // Of row i: some of those up to it, itself among them.
  bool lists(int64_t i, int64_t j) const { return j == i || !sparse || (i * 3 + j * 5) % 4 != 1; }
};

std::vector<int64_t> segments(int64_t rows) {
  if (rows < 300) return {3, rows - 3};
  return {200, 70, rows - 270};
}

int64_t segment_begin(int64_t rows, int64_t row) {
  int64_t begin = 0;
  for (const int64_t length : segments(rows)) {
    if (row < begin + length) return begin;
    begin += length;
  }
  return begin;
}

IndexerTeacher teacher_of(const Teacher& teacher, const CheckedBatch& batch) {
  IndexerTeacher result;
  const int64_t rows = batch.rows();
  result.q = teacher.q(rows);
  result.k = teacher.k(rows);
  result.options = teacher.options;
  if (teacher.sparse) {
    result.lists.lists = result.lists.block = 1;
    for (const Segment& segment : batch.segments()) {
      result.lists.width = std::max(result.lists.width, segment.length);
    }
    result.lists.blocks.assign(static_cast<size_t>(rows * result.lists.width), -1);
    for (const Segment& segment : batch.segments()) {
      for (int64_t i = 0; i < segment.length; ++i) {
        int32_t* to = result.lists.blocks.data() + (segment.first_row + i) * result.lists.width;
        for (int64_t j = 0; j <= i; ++j) {
          if (teacher.lists(i, j)) *to++ = static_cast<int32_t>(j);
        }
      }
    }
  }
  const Tensor v = Tensor::zeros(result.k.shape());
  result.log_sum_exp =
      partial_attention({}, result.q, result.k, v, result.options, batch, {}, {}, result.lists)
          .log_sum_exp;
  return result;
}

// Row i of the loss, from the equations: arXiv 2512.02556, (1), (3) and (4).
double row_loss(const Teacher& teacher, const Tensor& q, const Tensor& k, const Values& in,
                int64_t i) {
  const int64_t rows = q.rows();
  const int64_t begin = segment_begin(rows, i), dim = teacher.options.head_dim;
  std::vector<int64_t> seen;
  for (int64_t j = begin; j <= i; ++j) {
    if (teacher.lists(i - begin, j - begin)) seen.push_back(j);
  }
  std::vector<double> p(seen.size()), scores(seen.size());
  for (int64_t h = 0; h < teacher.options.heads; ++h) {
    std::vector<double> weights;
    double total = 0;
    for (const int64_t j : seen) {
      double product = 0;
      for (int64_t c = 0; c < dim; ++c) {
        product += double{q.row(i)[h * dim + c]} * k.row(j)[h / 2 * dim + c];
      }
      weights.push_back(std::exp(product / std::sqrt(static_cast<double>(dim))));
      total += weights.back();
    }
    for (size_t s = 0; s < seen.size(); ++s) {
      p[s] += weights[s] / total / static_cast<double>(teacher.options.heads);
    }
  }
  double total = 0;
  for (size_t s = 0; s < seen.size(); ++s) {
    for (int64_t h = 0; h < kIndexer.heads; ++h) {
      double product = 0;
      for (int64_t c = 0; c < kIndexer.head_dim; ++c) {
        product += in[0][static_cast<size_t>((i * kIndexer.heads + h) * kIndexer.head_dim + c)] *
                   in[1][static_cast<size_t>(seen[s] * kIndexer.head_dim + c)];
      }
      scores[s] += in[2][static_cast<size_t>(i * kIndexer.heads + h)] * std::max(0.0, product);
    }
    total += std::exp(scores[s]);
  }
  double loss = 0;
  for (size_t s = 0; s < seen.size(); ++s) {
    loss += p[s] * (std::log(p[s]) - scores[s] + std::log(total));
  }
  return loss;
}

void check_loss(const Teacher& teacher) {
  OperatorCheck check;
  check.name = teacher.sparse ? "indexer_loss_of_chosen" : "indexer_loss";
  check.inputs = [](int64_t rows) {
    return std::vector<Input>{{{rows, kIndexer.heads * kIndexer.head_dim}, -1.5, 1.5},
                              {{rows, kIndexer.head_dim}, -1.5, 1.5},
                              {{rows, kIndexer.heads}, -1, 1}};
  };
  check.forward = [=](const Context& context, const std::vector<Tensor>& in) {
    const CheckedBatch batch(batch_of(segments(in[0].rows())));
    return std::vector<Tensor>{
        indexer_loss(context, {in[0], in[1], in[2]}, kIndexer, teacher_of(teacher, batch), batch)};
  };
  check.reference = [=](const Values& in, int64_t rows) {
    const Tensor q = teacher.q(rows), k = teacher.k(rows);
    double sum = 0;
    for (int64_t i = 0; i < rows; ++i) sum += row_loss(teacher, q, k, in, i);
    return Values{{sum / static_cast<double>(rows)}};
  };
  // Exponentials of sums of a dozen products, twice.
  check.tolerance = 1e-5;
  check_operator(check);
}

TEST(Indexer, LossOfAllKeys) { check_loss({}); }

TEST(Indexer, LossOfChosenKeys) {
  Teacher teacher;
  teacher.sparse = true;
  check_loss(teacher);
}

TEST(Indexer, ChoosesTheLargestAndTheEarlierOfEqualOnes) {
  // One head, q = 1, weight 1: scores are max(0, k).
  const CheckedBatch batch(batch_of({7}));
  const Tensor one = Tensor::full({7, 1}, 1);
  const Tensor k = Tensor::from(std::vector<float>{2, -1, 3, 2, -5, 2, 9}, {7, 1});
  const BlockLists lists =
      choose_keys({one, k, one}, {.heads = 1, .head_dim = 1, .top = 3}, batch, {});
  const std::vector<std::vector<int32_t>> expected = {{0, -1, -1}, {0, 1, -1}, {0, 1, 2}, {0, 2, 3},
                                                      {0, 2, 3},   {0, 2, 3},  {0, 2, 6}};
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto begin = lists.blocks.begin() + static_cast<int64_t>(3 * i);
    EXPECT_EQ(std::vector<int32_t>(begin, begin + 3), expected[i]) << "row " << i;
  }
}

TEST(Indexer, ChoosesAmongManyAsASortDoes) {
  constexpr int64_t kRows = 3000, kTop = 500;
  const CheckedBatch batch(batch_of({kRows}));
  std::vector<float> values;
  for (int64_t i = 0; i < kRows; ++i) {
    // Half of them 0, others equal in threes, of many sizes.
    values.push_back(std::ldexp(Teacher::number(i / 3), static_cast<int>(i / 3 % 40) - 20));
  }
  const Tensor one = Tensor::full({kRows, 1}, 1), k = Tensor::from(values, {kRows, 1});
  const BlockLists lists =
      choose_keys({one, k, one}, {.heads = 1, .head_dim = 1, .top = kTop}, batch, {});
  for (const int64_t row : {kTop, int64_t{1023}, int64_t{1024}, kRows - 1}) {
    std::vector<int32_t> order(static_cast<size_t>(row + 1));
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    const auto score = [&](int32_t i) { return std::max(0.0f, values[static_cast<size_t>(i)]); };
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return score(a) > score(b); });
    order.resize(kTop);
    std::sort(order.begin(), order.end());
    const auto begin = lists.blocks.begin() + row * kTop;
    EXPECT_TRUE(std::equal(order.begin(), order.end(), begin)) << "row " << row;
  }
}

TEST(Indexer, RefusesWhatDoesNotFit) {
  const CheckedBatch batch(batch_of({4}));
  const Tensor q = Tensor::zeros({4, 6}), k = Tensor::zeros({4, 3}), w = Tensor::zeros({4, 2});
  EXPECT_NO_THROW(choose_keys({q, k, w}, {.heads = 2, .head_dim = 3, .top = 1}, batch, {}));
  EXPECT_THROW(choose_keys({q, k, w}, {.heads = 3, .head_dim = 2, .top = 1}, batch, {}), Error);
  EXPECT_THROW(choose_keys({q, k, w}, {.heads = 2, .head_dim = 3, .top = 0}, batch, {}), Error);
  Batch both = batch_of({4});
  both.segments[0].mask = Mask::full;
  EXPECT_THROW(
      choose_keys({q, k, w}, {.heads = 2, .head_dim = 3, .top = 1}, CheckedBatch(both), {}), Error);
}

}  // namespace
}  // namespace pronghorn
