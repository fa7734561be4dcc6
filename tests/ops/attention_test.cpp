// Attention against a naive float64 form with its gradients, and what only attention has: token
// trees, both-way segments and long contexts. The five laws on small sizes are in tests/laws.
#include "ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_features.h"
#include "base/error.h"
#include "base/threads.h"

namespace pronghorn {
namespace {

using Doubles = std::vector<double>;

Tensor random_tensor(int64_t rows, int64_t columns, uint32_t seed, float limit = 1) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<float> uniform(-limit, limit);
  Tensor tensor = Tensor::empty({rows, columns});
  for (float& value : tensor.values()) value = uniform(engine);
  return tensor;
}

Doubles doubles(const Tensor& tensor) {
  Doubles out;
  for (int64_t i = 0; i < tensor.rows(); ++i) {
    out.insert(out.end(), tensor.row(i), tensor.row(i) + tensor.columns());
  }
  return out;
}

struct Naive {
  Doubles o, grad_q, grad_k, grad_v;
};

// Row i (of all rows of a batch without states) sees row j if sees(i, j). Gradients from the
// definition: with p = softmax(s), ds = p (dp - sum p dp).
Naive naive_attention(const AttentionOptions& options, const Doubles& q, const Doubles& k,
                      const Doubles& v, const Doubles& grad_o, int64_t rows,
                      const std::function<bool(int64_t, int64_t)>& sees) {
  const int64_t dim = options.head_dim, heads = options.heads, kv_heads = options.kv_heads;
  const double scale = options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(dim));
  Naive out{Doubles(q.size()), Doubles(q.size()), Doubles(k.size()), Doubles(v.size())};
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t h = 0; h < heads; ++h) {
      const auto qi = static_cast<size_t>((i * heads + h) * dim);
      const auto kj = [&](int64_t j) {
        return static_cast<size_t>((j * kv_heads + h / (heads / kv_heads)) * dim);
      };
      std::vector<int64_t> seen;
      for (int64_t j = 0; j < rows; ++j) {
        if (sees(i, j)) seen.push_back(j);
      }
      Doubles p, dp;
      double largest = -1e300, sum = 0, mean = 0;
      for (const int64_t j : seen) {
        double score = 0, gradient = 0;
        for (size_t c = 0; c < static_cast<size_t>(dim); ++c) {
          score += scale * q[qi + c] * k[kj(j) + c];
          gradient += grad_o[qi + c] * v[kj(j) + c];
        }
        largest = std::max(largest, score);
        p.push_back(score);
        dp.push_back(gradient);
      }
      for (double& value : p) sum += value = std::exp(value - largest);
      for (size_t n = 0; n < seen.size(); ++n) mean += (p[n] /= sum) * dp[n];
      for (size_t n = 0; n < seen.size(); ++n) {
        const size_t key = kj(seen[n]);
        const double ds = p[n] * (dp[n] - mean) * scale;
        for (size_t c = 0; c < static_cast<size_t>(dim); ++c) {
          out.o[qi + c] += p[n] * v[key + c];
          out.grad_q[qi + c] += ds * k[key + c];
          out.grad_k[key + c] += ds * q[qi + c];
          out.grad_v[key + c] += p[n] * grad_o[qi + c];
        }
      }
    }
  }
  return out;
}

// Largest difference relative to the largest value.
double difference(const Tensor& got, const Doubles& want) {
  const Doubles values = doubles(got);
  EXPECT_EQ(values.size(), want.size());
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_TRUE(std::isfinite(values[i]));
    worst = std::max(worst, std::abs(values[i] - want[i]));
    largest = std::max(largest, std::abs(want[i]));
  }
  return worst / largest;
}

// f32 sums of up to ~300 terms and an exponential of 2 units in the last place: a few times 1e-6.
constexpr double kTolerance = 1e-5;

struct Variant {
  const char* name;
  AttentionOptions options;
  Mask mask = Mask::causal;
  std::vector<int64_t> lengths;
};

const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = {
      {"multi_head", {.heads = 2, .kv_heads = 2, .head_dim = 64}, Mask::causal, {130}},
      {"grouped", {.heads = 6, .kv_heads = 2, .head_dim = 32}, Mask::causal, {65, 1, 0, 100}},
      {"multi_query", {.heads = 3, .kv_heads = 1, .head_dim = 20}, Mask::causal, {70, 64}},
      {"window", {.heads = 2, .kv_heads = 1, .head_dim = 16, .window = 70}, Mask::causal, {300, 9}},
      {"narrow", {.heads = 2, .kv_heads = 2, .head_dim = 8, .window = 3}, Mask::causal, {150}},
      {"full", {.heads = 2, .kv_heads = 2, .head_dim = 24, .scale = 0.3f}, Mask::full, {90, 70}},
      {"full_window", {.heads = 1, .kv_heads = 1, .head_dim = 5, .window = 9}, Mask::full, {140}}};
  return all;
}

Batch batch_of(const Variant& variant) {
  Batch batch;
  for (const int64_t length : variant.lengths) {
    batch.segments.push_back({nullptr, batch.rows(), length, variant.mask, {}});
    // Every third token is left out, so that positions are not indexes.
    for (int32_t i = 0; i < length; ++i) batch.positions.push_back(i + i / 2);
  }
  return batch;
}

Naive naive_of(const Variant& variant, const Batch& batch, const Tensor& q, const Tensor& k,
               const Tensor& v, const Tensor& grad_o) {
  std::vector<size_t> segment_of;
  for (size_t s = 0; s < batch.segments.size(); ++s) {
    segment_of.insert(segment_of.end(), static_cast<size_t>(batch.segments[s].length), s);
  }
  const auto sees = [&](int64_t i, int64_t j) {
    const auto row = static_cast<size_t>(i), key = static_cast<size_t>(j);
    return segment_of[row] == segment_of[key] && (j <= i || variant.mask == Mask::full) &&
           (variant.options.window == 0 ||
            batch.positions[key] > batch.positions[row] - variant.options.window);
  };
  return naive_attention(variant.options, doubles(q), doubles(k), doubles(v), doubles(grad_o),
                         batch.rows(), sees);
}

class AttentionTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { set_cpu_instruction_set(GetParam()); }
  void TearDown() override {
    set_cpu_instruction_set(cpu_instruction_sets().back());
    set_thread_count(threads_);
  }
  int threads_ = thread_count();
};

TEST_P(AttentionTest, ForwardAndGradientsEqualTheNaiveForm) {
  for (const Variant& variant : variants()) {
    SCOPED_TRACE(variant.name);
    const Batch batch = batch_of(variant);
    const int64_t width = variant.options.heads * variant.options.head_dim;
    const int64_t kv_width = variant.options.kv_heads * variant.options.head_dim;
    // q, k and v are views of one tensor, as after a joint projection.
    const Tensor joint = random_tensor(batch.rows(), width + 2 * kv_width, 1, 2);
    const Tensor q = joint.column_slice(0, width), k = joint.column_slice(width, kv_width);
    const Tensor v = joint.column_slice(width + kv_width, kv_width);
    const Tensor grad_o = random_tensor(batch.rows(), width, 2);
    const Naive want = naive_of(variant, batch, q, k, v, grad_o);
    std::vector<float> first;
    for (const int threads : {1, 3}) {
      set_thread_count(threads);
      joint.set_requires_grad(true);
      joint.clear_grad();
      Tape tape;
      const Tensor o = attention({&tape}, q, k, v, variant.options, batch, {});
      EXPECT_LT(difference(o, want.o), kTolerance);
      o.give_grad(grad_o);
      tape.run_backward();
      EXPECT_LT(difference(q.grad(), want.grad_q), kTolerance);
      EXPECT_LT(difference(k.grad(), want.grad_k), kTolerance);
      EXPECT_LT(difference(v.grad(), want.grad_v), kTolerance);
      std::vector<float> bits(o.values().begin(), o.values().end());
      const Tensor gradient = joint.grad();
      bits.insert(bits.end(), gradient.values().begin(), gradient.values().end());
      if (first.empty()) first = bits;
      EXPECT_EQ(first, bits) << "on " << threads << " threads";
    }
    const Tensor inference = attention({}, q, k, v, variant.options, batch, {});
    EXPECT_LT(difference(inference, want.o), kTolerance);
  }
}

TEST_P(AttentionTest, GradientOfSomeInputsAddsToWhatIsThere) {
  const Variant& variant = variants()[1];
  const Batch batch = batch_of(variant);
  const Tensor q = random_tensor(batch.rows(), 6 * 32, 1), k = random_tensor(batch.rows(), 64, 2);
  const Tensor v = random_tensor(batch.rows(), 64, 3), grad_o = random_tensor(batch.rows(), 192, 4);
  const Naive want = naive_of(variant, batch, q, k, v, grad_o);
  for (const Tensor& chosen : {q, k, v}) {
    for (const Tensor& tensor : {q, k, v}) tensor.set_requires_grad(false).clear_grad();
    chosen.set_requires_grad(true);
    chosen.give_grad(Tensor::full(chosen.shape(), 1));
    Tape tape;
    const Tensor o = attention({&tape}, q, k, v, variant.options, batch, {});
    o.give_grad(grad_o);
    tape.run_backward();
    const Doubles& part = chosen.data() == q.data()   ? want.grad_q
                          : chosen.data() == k.data() ? want.grad_k
                                                      : want.grad_v;
    Doubles sum = part;
    for (double& value : sum) value += 1;
    EXPECT_LT(difference(chosen.grad(), sum), kTolerance);
  }
}

// One layer with one attention, and sequences of random rows to feed it.
struct Sequence {
  AttentionOptions options;
  Tensor q, k, v;
  std::shared_ptr<StateLayout> layout = std::make_shared<StateLayout>();
  SequenceState state;

  Sequence(const AttentionOptions& chosen, int64_t tokens, uint32_t seed) : options(chosen) {
    const int64_t kv_width = options.kv_heads * options.head_dim;
    q = random_tensor(tokens, options.heads * options.head_dim, seed, 3);
    k = random_tensor(tokens, kv_width, seed + 1);
    v = random_tensor(tokens, kv_width, seed + 2);
    layout->layers = {{attention_journal(options)}};
    state = SequenceState(layout);
  }

  // Runs tokens begin ... begin + count - 1 as one segment.
  std::vector<float> step(int64_t begin, int64_t count, Mask mask = Mask::causal) {
    Batch batch;
    for (int64_t i = 0; i < count; ++i) batch.positions.push_back(static_cast<int32_t>(begin + i));
    batch.segments = {{&state, 0, count, mask, {}}};
    const Tensor o = attention({}, q.row_slice(begin, count), k.row_slice(begin, count),
                               v.row_slice(begin, count), options, batch, {});
    state.advance(count);
    return {o.values().begin(), o.values().end()};
  }

  std::vector<float> run(const std::vector<int64_t>& cuts) {
    std::vector<float> out;
    for (const int64_t count : cuts) {
      const std::vector<float> part = step(state.length(), count);
      out.insert(out.end(), part.begin(), part.end());
    }
    return out;
  }
};

// Contexts past several splits of the keys, single tokens against steps of many sizes.
TEST_P(AttentionTest, LongContextsAreTheSameToTheBitHoweverCut) {
  for (const int64_t window : {0, 600}) {
    const AttentionOptions options{.heads = 4, .kv_heads = 2, .head_dim = 36, .window = window};
    constexpr int64_t kPrompt = 1000, kSteps = 60;
    Sequence singles(options, kPrompt + kSteps, 5), steps(options, kPrompt + kSteps, 5);
    set_thread_count(1);
    singles.step(0, kPrompt);
    const std::vector<float> want = singles.run(std::vector<int64_t>(kSteps, 1));
    set_thread_count(4);
    steps.step(0, kPrompt);
    EXPECT_EQ(want, steps.run({16, 1, 15, 9, 3, 2, 14}));
    Doubles reference;
    const Naive naive = naive_attention(
        options, doubles(singles.q), doubles(singles.k), doubles(singles.v), doubles(singles.q),
        kPrompt + kSteps,
        [&](int64_t i, int64_t j) { return j <= i && (window == 0 || j > i - window); });
    reference.assign(naive.o.end() - static_cast<int64_t>(want.size()), naive.o.end());
    EXPECT_LT(difference(Tensor::from(want, {kSteps, 4 * 36}), reference), kTolerance);
  }
}

TEST_P(AttentionTest, TreeNodesAreTheSameToTheBitAsInAChain) {
  for (const int64_t window : {0, 20}) {
    const AttentionOptions options{.heads = 4, .kv_heads = 2, .head_dim = 16, .window = window};
    // Lengths around a page boundary, where ancestors of a node fall on either side.
    for (const int64_t prompt : {0, 3, 60, 63, 64, 500, 510}) {
      const std::vector<int32_t> parents = {-1, 0, 0, -1, 2, 1, 4, 3, 6, 8};
      const auto nodes = static_cast<int64_t>(parents.size());
      Sequence sequence(options, prompt + nodes, 7);
      if (prompt > 0) sequence.step(0, prompt);
      const SequenceState mark = sequence.state;
      Batch batch;
      std::vector<int32_t> depth;
      for (const int32_t parent : parents) {
        depth.push_back(parent < 0 ? 0 : depth[static_cast<size_t>(parent)] + 1);
        batch.positions.push_back(static_cast<int32_t>(prompt) + depth.back());
      }
      batch.segments = {{&sequence.state, 0, nodes, Mask::causal, parents}};
      const Tensor o =
          attention({}, sequence.q.row_slice(prompt, nodes), sequence.k.row_slice(prompt, nodes),
                    sequence.v.row_slice(prompt, nodes), options, batch, {});
      for (int32_t node = 0; node < nodes; ++node) {
        SequenceState chain = mark;
        std::vector<int32_t> path;
        for (int32_t i = node; i >= 0; i = parents[static_cast<size_t>(i)]) {
          path.insert(path.begin(), i);
        }
        std::vector<float> last;
        for (const int32_t i : path) {
          Batch one;
          one.positions = {batch.positions[static_cast<size_t>(i)]};
          one.segments = {{&chain, 0, 1, Mask::causal, {}}};
          const int64_t row = prompt + i;
          const Tensor single =
              attention({}, sequence.q.row_slice(row, 1), sequence.k.row_slice(row, 1),
                        sequence.v.row_slice(row, 1), options, one, {});
          last.assign(single.values().begin(), single.values().end());
        }
        EXPECT_EQ(last, std::vector<float>(o.row(node), o.row(node) + o.columns()))
            << "node " << node << " after " << prompt;
      }
      EXPECT_EQ(sequence.state.journal(0, 0).tree_rows(), nodes);
    }
  }
}

TEST_P(AttentionTest, FullSegmentsSeeTheirSequenceAndThemselves) {
  const AttentionOptions options{.heads = 2, .kv_heads = 1, .head_dim = 16};
  for (const int64_t block : {8, 40}) {
    Sequence sequence(options, 100 + block, 9);
    sequence.step(0, 100);
    const std::vector<float> got = sequence.step(100, block, Mask::full);
    const Naive naive = naive_attention(options, doubles(sequence.q), doubles(sequence.k),
                                        doubles(sequence.v), doubles(sequence.q), 100 + block,
                                        [](int64_t i, int64_t j) { return j <= i || i >= 100; });
    const Doubles want(naive.o.end() - static_cast<int64_t>(got.size()), naive.o.end());
    EXPECT_LT(difference(Tensor::from(got, {block, 32}), want), kTolerance);
  }
}

// The kernels themselves, with ranges that no mask of a batch makes.
TEST_P(AttentionTest, RowsThatSeeNothingGetZero) {
  const AttentionOptions options{.heads = 2, .kv_heads = 1, .head_dim = 12, .scale = 0.5f};
  constexpr int64_t kRows = 150;
  const Tensor q = random_tensor(kRows, 24, 1, 3), k = random_tensor(kRows, 12, 2);
  const Tensor v = random_tensor(kRows, 12, 3), grad_o = random_tensor(kRows, 24, 4);
  std::vector<KeyRange> visible;
  for (int64_t i = 0; i < kRows; ++i) {
    visible.push_back(i % 3 == 0 ? KeyRange{i, i} : KeyRange{i / 2, std::min(kRows, i + 40)});
  }
  const Naive want = naive_attention(options, doubles(q), doubles(k), doubles(v), doubles(grad_o),
                                     kRows, [&](int64_t i, int64_t j) {
                                       const KeyRange range = visible[static_cast<size_t>(i)];
                                       return j >= range.begin && j < range.end;
                                     });
  const std::vector<const float*> keys = {k.row(0), k.row(64), k.row(128)};
  const std::vector<const float*> values = {v.row(0), v.row(64), v.row(128)};
  const AttentionShape shape{2, 1, 12, 0.5f};
  const std::vector<AttentionUnit> units = {
      {0, kRows, kRows, keys.data(), values.data(), 12, 12, visible.data()}};
  const Tensor o = Tensor::full({kRows, 24}, NAN), sums = Tensor::full({kRows, 2}, NAN);
  AttentionKernels& kernels = backend().attention();
  AttentionOperands operands{q.data(), 24, o.data(), 24, nullptr};
  kernels.forward_exact(shape, units, operands);
  EXPECT_LT(difference(o, want.o), kTolerance);
  o.fill(NAN);
  operands.log_sum_exp = sums.data();
  kernels.forward(shape, units, operands);
  EXPECT_LT(difference(o, want.o), kTolerance);
  EXPECT_EQ(o.row(3)[5], 0);
  const Tensor grad_q = Tensor::full(q.shape(), NAN), grad_k = Tensor::full(k.shape(), NAN);
  const Tensor grad_v = Tensor::full(v.shape(), NAN);
  kernels.backward(shape, units, operands, grad_o.data(), 24, nullptr, {grad_q.data(), 24, false},
                   {grad_k.data(), 12, false}, {grad_v.data(), 12, false});
  EXPECT_LT(difference(grad_q, want.grad_q), kTolerance);
  EXPECT_LT(difference(grad_k, want.grad_k), kTolerance);
  EXPECT_LT(difference(grad_v, want.grad_v), kTolerance);
}

TEST(AttentionCheck, RefusesWhatDoesNotFit) {
  const AttentionOptions options{.heads = 2, .kv_heads = 1, .head_dim = 4};
  Batch batch;
  batch.positions = {0, 1};
  batch.segments = {{nullptr, 0, 2, Mask::causal, {}}};
  const Tensor q = random_tensor(2, 8, 1), k = random_tensor(2, 4, 2), v = random_tensor(2, 4, 3);
  EXPECT_NO_THROW(attention({}, q, k, v, options, batch, {}));
  EXPECT_THROW(attention({}, k, k, v, options, batch, {}), Error);
  EXPECT_THROW(attention({}, q, q, v, options, batch, {}), Error);
  AttentionOptions wrong = options;
  wrong.kv_heads = 3;
  EXPECT_THROW(attention({}, q, k, v, wrong, batch, {}), Error);
  batch.segments[0].length = 1;
  EXPECT_THROW(attention({}, q, k, v, options, batch, {}), Error);
  batch.segments[0].length = 2;
  batch.segments[0].parents = {-1, 0};  // a tree without a state
  EXPECT_THROW(attention({}, q, k, v, options, batch, {}), Error);
  Sequence sequence(options, 2, 1);
  batch.segments[0] = {&sequence.state, 0, 2, Mask::causal, {-1, 1}};
  EXPECT_THROW(attention({}, q, k, v, options, batch, {}), Error);
  Tape tape;
  batch.segments[0].parents = {};
  EXPECT_THROW(attention({&tape}, q, k, v, options, batch, {}), Error);
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, AttentionTest, testing::ValuesIn(cpu_instruction_sets()),
                         [](const auto& param) {
                           std::string name = param.param;
                           for (char& letter : name) {
                             if (letter == '-') letter = '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace pronghorn
