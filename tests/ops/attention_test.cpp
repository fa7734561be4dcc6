// Attention against a naive float64 form with its gradients, and what only attention has: token
// trees, both-way segments and long contexts. The five laws on small sizes are in tests/laws.
#include "ops/attention.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_features.h"
#include "base/error.h"
#include "base/threads.h"
#include "ops/attention_units.h"

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

int64_t value_dim(const AttentionOptions& options) {
  return options.value_dim > 0 ? options.value_dim : options.head_dim;
}
int64_t query_width(const AttentionOptions& o) { return o.heads * o.head_dim; }
int64_t key_width(const AttentionOptions& o) { return o.kv_heads * o.head_dim; }
int64_t value_width(const AttentionOptions& o) { return o.kv_heads * value_dim(o); }
int64_t output_width(const AttentionOptions& o) { return o.heads * value_dim(o); }

// Inputs of attention, and the gradient of its output.
struct NaiveInputs {
  Doubles q, k, v, sinks,
      grad_o;  // v: empty if the values are in the keys; sinks: if there are none
};

struct Naive {
  Doubles o, grad_q, grad_k, grad_v, grad_sinks;
};

// Row i (of all rows of a batch without states) sees row j if sees(i, j). Gradients from the
// definition: with p = softmax(s), ds = p (dp - sum p dp); a sink is one more score whose value is
// 0; a cap t = cap tanh(s / cap) has the derivative 1 - (t / cap)^2.
Naive naive_attention(const AttentionOptions& options, const NaiveInputs& in, int64_t rows,
                      const std::function<bool(int64_t, int64_t)>& sees) {
  const int64_t heads = options.heads, group = heads / options.kv_heads;
  const auto dim = static_cast<size_t>(options.head_dim);
  const auto width = static_cast<size_t>(value_dim(options));
  const double scale = options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(dim));
  Naive out{Doubles(static_cast<size_t>(rows * output_width(options))), Doubles(in.q.size()),
            Doubles(in.k.size()), Doubles(in.v.size()), Doubles(in.sinks.size())};
  const Doubles& values = options.value_in_key ? in.k : in.v;
  Doubles& grad_values = options.value_in_key ? out.grad_k : out.grad_v;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t h = 0; h < heads; ++h) {
      const auto qi = static_cast<size_t>(i * heads + h) * dim;
      const auto oi = static_cast<size_t>(i * heads + h) * width;
      const auto kj = [&](int64_t j) {
        return static_cast<size_t>(j * options.kv_heads + h / group) * dim;
      };
      const auto vj = [&](int64_t j) {
        return options.value_in_key ? kj(j)
                                    : static_cast<size_t>(j * options.kv_heads + h / group) * width;
      };
      std::vector<int64_t> seen;
      for (int64_t j = 0; j < rows; ++j) {
        if (sees(i, j)) seen.push_back(j);
      }
      const double sink = in.sinks.empty() ? -INFINITY : in.sinks[static_cast<size_t>(h)];
      Doubles p, dp, slope;
      double largest = in.sinks.empty() ? -1e300 : sink, mean = 0;
      for (const int64_t j : seen) {
        double score = 0, gradient = 0;
        for (size_t c = 0; c < dim; ++c) score += scale * in.q[qi + c] * in.k[kj(j) + c];
        for (size_t c = 0; c < width; ++c) gradient += in.grad_o[oi + c] * values[vj(j) + c];
        slope.push_back(1);
        if (options.soft_cap > 0) {
          const double t = std::tanh(score / options.soft_cap);
          score = options.soft_cap * t;
          slope.back() = 1 - t * t;
        }
        largest = std::max(largest, score);
        p.push_back(score);
        dp.push_back(gradient);
      }
      double sum = std::exp(sink - largest);
      for (double& value : p) sum += value = std::exp(value - largest);
      for (size_t n = 0; n < seen.size(); ++n) mean += (p[n] /= sum) * dp[n];
      if (!in.sinks.empty()) {
        out.grad_sinks[static_cast<size_t>(h)] -= std::exp(sink - largest) / sum * mean;
      }
      for (size_t n = 0; n < seen.size(); ++n) {
        const size_t key = kj(seen[n]), value = vj(seen[n]);
        const double ds = p[n] * (dp[n] - mean) * slope[n] * scale;
        for (size_t c = 0; c < width; ++c) {
          out.o[oi + c] += p[n] * values[value + c];
          grad_values[value + c] += p[n] * in.grad_o[oi + c];
        }
        for (size_t c = 0; c < dim; ++c) {
          out.grad_q[qi + c] += ds * in.k[key + c];
          out.grad_k[key + c] += ds * in.q[qi + c];
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

// Undefined: no sinks.
Doubles doubles_or_none(const Tensor& tensor) {
  return tensor.defined() ? doubles(tensor) : Doubles();
}

struct Variant {
  const char* name;
  AttentionOptions options;
  Mask mask = Mask::causal;
  std::vector<int64_t> lengths;
  bool sinks = false;
  int64_t block = 0;
};

const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = {
      {.name = "multi_head",
       .options = {.heads = 2, .kv_heads = 2, .head_dim = 64},
       .lengths = {130}},
      {.name = "grouped",
       .options = {.heads = 6, .kv_heads = 2, .head_dim = 32},
       .lengths = {65, 1, 0, 100}},
      {.name = "multi_query",
       .options = {.heads = 3, .kv_heads = 1, .head_dim = 20},
       .lengths = {70, 64}},
      {.name = "window",
       .options = {.heads = 2, .kv_heads = 1, .head_dim = 16, .window = 70},
       .lengths = {300, 9}},
      {.name = "narrow",
       .options = {.heads = 2, .kv_heads = 2, .head_dim = 8, .window = 3},
       .lengths = {150}},
      {.name = "full",
       .options = {.heads = 2, .kv_heads = 2, .head_dim = 24, .scale = 0.3f},
       .mask = Mask::full,
       .lengths = {90, 70}},
      {.name = "full_window",
       .options = {.heads = 1, .kv_heads = 1, .head_dim = 5, .window = 9},
       .mask = Mask::full,
       .lengths = {140}},
      {.name = "blocks",
       .options = {.heads = 2, .kv_heads = 1, .head_dim = 16},
       .mask = Mask::blocks,
       .lengths = {150, 3, 64},
       .block = 20},
      // Blocks smaller and larger than a tile of keys, and one that ends early.
      {.name = "two_copies",
       .options = {.heads = 4, .kv_heads = 2, .head_dim = 16, .soft_cap = 3},
       .mask = Mask::two_copies,
       .lengths = {300, 14},
       .block = 12},
      {.name = "two_copies_of_long_blocks",
       .options = {.heads = 2, .kv_heads = 1, .head_dim = 12, .value_dim = 8},
       .mask = Mask::two_copies,
       .lengths = {460},
       .sinks = true,
       .block = 150},
      {.name = "wide_keys",
       .options = {.heads = 4, .kv_heads = 2, .head_dim = 48, .value_dim = 20},
       .lengths = {130, 3}},
      {.name = "latent",
       .options = {.heads = 8, .head_dim = 72, .value_dim = 64, .value_in_key = true},
       .lengths = {100, 70}},
      {.name = "latent_heads",
       .options = {.heads = 4, .kv_heads = 2, .head_dim = 20, .value_dim = 9, .value_in_key = true},
       .lengths = {80}},
      // Scores reach several times the cap, so that its curve matters.
      {.name = "soft_cap",
       .options = {.heads = 2, .kv_heads = 1, .head_dim = 16, .scale = 1, .soft_cap = 2},
       .lengths = {150, 40}},
      {.name = "sinks",
       .options = {.heads = 4, .kv_heads = 2, .head_dim = 16, .window = 20},
       .lengths = {150, 7},
       .sinks = true},
      {.name = "all_of_it",
       .options = {.heads = 4,
                   .head_dim = 40,
                   .value_dim = 32,
                   .value_in_key = true,
                   .scale = 0.4f,
                   .soft_cap = 3},
       .mask = Mask::full,
       .lengths = {110},
       .sinks = true}};
  return all;
}

Batch batch_of(const Variant& variant) {
  Batch batch;
  for (const int64_t length : variant.lengths) {
    batch.segments.push_back({nullptr, batch.rows(), length, variant.mask, {}, variant.block});
    const int64_t rows = variant.mask == Mask::two_copies ? length / 2 : length;
    // Every third token is omitted, so that positions are not indexes.
    for (int32_t i = 0; i < length; ++i) {
      const auto row = static_cast<int32_t>(i % rows);
      batch.positions.push_back(row + row / 2);
    }
  }
  return batch;
}

// Whether row i of a segment sees row j, from what the masks say.
bool mask_shows(const Variant& variant, const Batch& batch, const Segment& segment, int64_t i,
                int64_t j) {
  const auto block_of = [&](int64_t row) {
    return batch.positions[static_cast<size_t>(segment.first_row + row)] / variant.block;
  };
  if (variant.mask == Mask::causal) return j <= i;
  if (variant.mask == Mask::blocks) return block_of(j) <= block_of(i);
  if (variant.mask == Mask::full) return true;
  const bool noisy_row = i >= segment.length / 2, noisy_key = j >= segment.length / 2;
  if (noisy_key) return noisy_row && block_of(j) == block_of(i);
  return noisy_row ? block_of(j) < block_of(i) : block_of(j) <= block_of(i);
}

Naive naive_of(const Variant& variant, const Batch& batch, const NaiveInputs& inputs) {
  std::vector<size_t> segment_of;
  for (size_t s = 0; s < batch.segments.size(); ++s) {
    segment_of.insert(segment_of.end(), static_cast<size_t>(batch.segments[s].length), s);
  }
  const auto sees = [&](int64_t i, int64_t j) {
    const auto row = static_cast<size_t>(i), key = static_cast<size_t>(j);
    if (segment_of[row] != segment_of[key]) return false;
    const Segment& segment = batch.segments[segment_of[row]];
    return mask_shows(variant, batch, segment, i - segment.first_row, j - segment.first_row) &&
           (variant.options.window == 0 ||
            batch.positions[key] > batch.positions[row] - variant.options.window);
  };
  return naive_attention(variant.options, inputs, batch.rows(), sees);
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
    const AttentionOptions& options = variant.options;
    const Batch batch = batch_of(variant);
    const int64_t width = query_width(options), keys = key_width(options);
    const int64_t values = options.value_in_key ? 0 : value_width(options);
    // q, k and v are views of one tensor, as after a joint projection.
    const Tensor joint = random_tensor(batch.rows(), width + keys + values, 1, 2);
    const Tensor q = joint.column_slice(0, width), k = joint.column_slice(width, keys);
    const Tensor v = values == 0 ? Tensor() : joint.column_slice(width + keys, values);
    const Tensor sinks = variant.sinks ? random_tensor(1, options.heads, 5, 3) : Tensor();
    const Tensor grad_o = random_tensor(batch.rows(), output_width(options), 2);
    const Naive want = naive_of(
        variant, batch,
        {doubles(q), doubles(k), doubles_or_none(v), doubles_or_none(sinks), doubles(grad_o)});
    std::vector<float> first;
    for (const int threads : {1, 3}) {
      set_thread_count(threads);
      for (const Tensor& tensor : {joint, sinks}) {
        if (tensor.defined()) tensor.set_requires_grad(true).clear_grad();
      }
      Tape tape;
      const Tensor o = attention({&tape}, q, k, v, options, batch, {}, sinks);
      EXPECT_LT(difference(o, want.o), kTolerance);
      o.give_grad(grad_o);
      tape.run_backward();
      EXPECT_LT(difference(q.grad(), want.grad_q), kTolerance);
      EXPECT_LT(difference(k.grad(), want.grad_k), kTolerance);
      if (v.defined()) {
        EXPECT_LT(difference(v.grad(), want.grad_v), kTolerance);
      }
      std::vector<float> bits(o.values().begin(), o.values().end());
      const Tensor gradient = joint.grad();
      bits.insert(bits.end(), gradient.values().begin(), gradient.values().end());
      if (sinks.defined()) {
        EXPECT_LT(difference(sinks.grad(), want.grad_sinks), kTolerance);
        const Tensor of_sinks = sinks.grad();
        bits.insert(bits.end(), of_sinks.values().begin(), of_sinks.values().end());
      }
      if (first.empty()) first = bits;
      EXPECT_EQ(first, bits) << "on " << threads << " threads";
    }
    const Tensor inference = attention({}, q, k, v, options, batch, {}, sinks);
    EXPECT_LT(difference(inference, want.o), kTolerance);
  }
}

TEST_P(AttentionTest, GradientOfSomeInputsAddsToWhatIsThere) {
  Variant variant = variants()[1];
  variant.sinks = true;
  const Batch batch = batch_of(variant);
  const Tensor q = random_tensor(batch.rows(), 6 * 32, 1), k = random_tensor(batch.rows(), 64, 2);
  const Tensor v = random_tensor(batch.rows(), 64, 3), grad_o = random_tensor(batch.rows(), 192, 4);
  const Tensor sinks = random_tensor(1, 6, 5);
  const Naive want = naive_of(
      variant, batch, {doubles(q), doubles(k), doubles(v), doubles(sinks), doubles(grad_o)});
  const std::vector<std::pair<Tensor, const Doubles*>> inputs = {
      {q, &want.grad_q}, {k, &want.grad_k}, {v, &want.grad_v}, {sinks, &want.grad_sinks}};
  for (const auto& [chosen, gradient] : inputs) {
    for (const auto& input : inputs) input.first.set_requires_grad(false).clear_grad();
    chosen.set_requires_grad(true);
    chosen.give_grad(Tensor::full(chosen.shape(), 1));
    Tape tape;
    const Tensor o = attention({&tape}, q, k, v, variant.options, batch, {}, sinks);
    o.give_grad(grad_o);
    tape.run_backward();
    Doubles sum = *gradient;
    for (double& value : sum) value += 1;
    EXPECT_LT(difference(chosen.grad(), sum), kTolerance);
  }
}

// One layer with one attention, and sequences of random rows to feed it.
struct Sequence {
  AttentionOptions options;
  Tensor q, k, v;  // v undefined: the values are in the keys
  std::shared_ptr<StateLayout> layout = std::make_shared<StateLayout>();
  SequenceState state;

  Sequence(const AttentionOptions& chosen, int64_t tokens, uint32_t seed, DType rows = DType::f32)
      : options(chosen) {
    q = random_tensor(tokens, query_width(options), seed, 3);
    k = random_tensor(tokens, key_width(options), seed + 1);
    if (!options.value_in_key) v = random_tensor(tokens, value_width(options), seed + 2);
    layout->layers = {{attention_journal(options)}};
    state = SequenceState(with_cache(layout, rows));
  }

  Tensor values(int64_t begin, int64_t count) const {
    return v.defined() ? v.row_slice(begin, count) : Tensor();
  }

  // All of it, of rows that are rounded to `rows`.
  NaiveInputs inputs(DType rows = DType::f32) const {
    NaiveInputs in{doubles(q), doubles(k), doubles_or_none(v), {}, {}};
    in.grad_o.resize(static_cast<size_t>(q.rows() * output_width(options)));
    for (Doubles* values : {&in.k, &in.v}) {
      for (double& value : *values) {
        const auto number = static_cast<float>(value);
        if (rows == DType::bf16) value = from_bf16(to_bf16(number));
        if (rows == DType::f16) value = from_f16(to_f16(number));
      }
    }
    return in;
  }

  // Runs tokens begin ... begin + count - 1 as one segment.
  std::vector<float> step(int64_t begin, int64_t count, Mask mask = Mask::causal) {
    Batch batch;
    for (int64_t i = 0; i < count; ++i) batch.positions.push_back(static_cast<int32_t>(begin + i));
    batch.segments = {{&state, 0, count, mask, {}}};
    const Tensor o = attention({}, q.row_slice(begin, count), k.row_slice(begin, count),
                               values(begin, count), options, batch, {});
    if (mask != Mask::replace) state.advance(count);
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

// Contexts past several splits of the keys, single tokens against steps of many sizes; journals of
// every type, whose rounded rows are what the naive form is given.
TEST_P(AttentionTest, LongContextsAreBitIdenticalHoweverCut) {
  struct Long {
    AttentionOptions options;
    DType rows;
  };
  const std::vector<Long> cases = {
      {{.heads = 4, .kv_heads = 2, .head_dim = 36}, DType::f32},
      {{.heads = 4, .kv_heads = 2, .head_dim = 36, .window = 300}, DType::f32},
      {{.heads = 4, .kv_heads = 2, .head_dim = 36, .value_dim = 20, .soft_cap = 5}, DType::bf16},
      {{.heads = 4, .head_dim = 40, .value_dim = 36, .value_in_key = true}, DType::f16}};
  for (const Long& one : cases) {
    const AttentionOptions& options = one.options;
    constexpr int64_t kPrompt = 600, kSteps = 60;
    Sequence singles(options, kPrompt + kSteps, 5, one.rows);
    Sequence steps(options, kPrompt + kSteps, 5, one.rows);
    set_thread_count(1);
    const std::vector<float> prompt = singles.step(0, kPrompt);
    const std::vector<float> want = singles.run(std::vector<int64_t>(kSteps, 1));
    set_thread_count(4);
    EXPECT_EQ(steps.step(0, kPrompt), prompt);
    EXPECT_EQ(want, steps.run({16, 1, 15, 9, 3, 2, 14}));
    const Naive naive = naive_attention(
        options, singles.inputs(one.rows), kPrompt + kSteps, [&](int64_t i, int64_t j) {
          return j <= i && (options.window == 0 || j > i - options.window);
        });
    const int64_t width = output_width(options);
    const auto middle = naive.o.begin() + kPrompt * width;
    EXPECT_LT(difference(Tensor::from(prompt, {kPrompt, width}), Doubles(naive.o.begin(), middle)),
              kTolerance);
    EXPECT_LT(difference(Tensor::from(want, {kSteps, width}), Doubles(middle, naive.o.end())),
              kTolerance);
  }
}

// Every number of 16 bits as a value that a row sees alone; a row of keys holds some of them too.
TEST_P(AttentionTest, RowsAreRoundedToTheNearestAndReadBackExactly) {
  constexpr int64_t kDim = 64, kNumbers = 1 << 16;
  const AttentionOptions options{.head_dim = kDim};
  for (const DType type : {DType::bf16, DType::f16}) {
    const auto exact = [&](uint32_t bits) {
      return type == DType::bf16 ? from_bf16(static_cast<bf16_t>(bits))
                                 : from_f16(static_cast<f16_t>(bits));
    };
    for (const bool halfway : {false, true}) {
      Sequence sequence(options, kNumbers / kDim, 1, type);
      sequence.q.fill(0);
      sequence.k.fill(1);
      std::vector<float> want;
      for (uint32_t i = 0; i < kNumbers; ++i) {
        float low = exact(i), high = exact(i + 1);
        // Infinite and not a number: no rows of a sound model.
        if (!std::isfinite(low) || !std::isfinite(high) || low * high < 0) low = high = 1;
        float value = low;
        if (halfway) value = static_cast<float>((double{low} + double{high}) / 2);
        sequence.v.values()[i] = value;
        // Ties go to the number whose last bit is 0.
        want.push_back(halfway && low != high ? (i % 2 == 0 ? low : high) : low);
      }
      std::vector<float> got;
      for (int64_t row = 0; row < kNumbers / kDim; ++row) {
        sequence.state = SequenceState(with_cache(sequence.layout, type));
        const std::vector<float> o = sequence.step(row, 1);
        got.insert(got.end(), o.begin(), o.end());
      }
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_EQ(got[i], want[i]) << dtype_name(type) << " " << i << (halfway ? " halfway" : "");
      }
    }
    Sequence sequence(options, 1, 1, type);
    sequence.v.fill(-1e30f);
    EXPECT_EQ(sequence.step(0, 1)[0], type == DType::f16 ? -kLargestF16 : -0x1.94p+99f);
  }
}

TEST_P(AttentionTest, TreeNodesAreBitIdenticalToAChain) {
  struct Case {
    AttentionOptions options;
    DType rows;
  };
  const std::vector<Case> cases = {
      {{.heads = 4, .kv_heads = 2, .head_dim = 16}, DType::f32},
      {{.heads = 4, .kv_heads = 2, .head_dim = 16, .window = 20}, DType::bf16},
      {{.heads = 4, .head_dim = 16, .value_dim = 8, .value_in_key = true}, DType::f16}};
  for (const auto& [options, type] : cases) {
    // Lengths around a page boundary, where ancestors of a node fall on either side.
    for (const int64_t prompt : {0, 3, 60, 63, 64, 500, 510}) {
      const std::vector<int32_t> parents = {-1, 0, 0, -1, 2, 1, 4, 3, 6, 8};
      const auto nodes = static_cast<int64_t>(parents.size());
      Sequence sequence(options, prompt + nodes, 7, type);
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
                    sequence.values(prompt, nodes), options, batch, {});
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
                        sequence.values(row, 1), options, one, {});
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
    const Naive naive = naive_attention(options, sequence.inputs(), 100 + block,
                                        [](int64_t i, int64_t j) { return j <= i || i >= 100; });
    const Doubles want(naive.o.end() - static_cast<int64_t>(got.size()), naive.o.end());
    EXPECT_LT(difference(Tensor::from(got, {block, 32}), want), kTolerance);
  }
}

// Rows in the middle of a sequence are given other keys and values: all see what is there then.
TEST_P(AttentionTest, ReplacedRowsTakeTheirPlaces) {
  const AttentionOptions options{.heads = 2, .kv_heads = 1, .head_dim = 16};
  constexpr int64_t kTokens = 150, kFirst = 60;
  for (const int64_t count : {9, 40}) {
    Sequence sequence(options, kTokens, 9);
    sequence.step(0, kTokens, Mask::full);
    const SequenceState before = sequence.state;
    const Tensor other = random_tensor(kTokens, 48, 77);
    for (int64_t row = kFirst; row < kFirst + count; ++row) {
      std::copy_n(other.row(row), 16, sequence.k.row(row));
      std::copy_n(other.row(row) + 16, 16, sequence.v.row(row));
    }
    const std::vector<float> got = sequence.step(kFirst, count, Mask::replace);
    const Naive naive =
        naive_attention(options, sequence.inputs(), kTokens, [](int64_t, int64_t) { return true; });
    const auto begin = naive.o.begin() + kFirst * 32;
    EXPECT_LT(difference(Tensor::from(got, {count, 32}), Doubles(begin, begin + count * 32)),
              kTolerance);
    EXPECT_EQ(sequence.state.journal(0, 0).length(), kTokens);
    EXPECT_NE(sequence.state.save(), before.save()) << "the copy has been written to";
  }
}

const std::byte* bytes_of(const float* row) { return reinterpret_cast<const std::byte*>(row); }

// Tiles over rows of f32, of the given lengths.
std::vector<KeyTile> tiles_of(const Tensor& k, const Tensor& v, std::vector<int32_t> counts) {
  std::vector<KeyTile> tiles;
  int32_t row = 0;
  for (const int32_t count : counts) {
    tiles.push_back({bytes_of(k.row(row)), bytes_of(v.row(row)), count, row});
    row += count;
  }
  return tiles;
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
  const Naive want =
      naive_attention(options, {doubles(q), doubles(k), doubles(v), {}, doubles(grad_o)}, kRows,
                      [&](int64_t i, int64_t j) {
                        const KeyRange range = visible[static_cast<size_t>(i)];
                        return j >= range.begin && j < range.end;
                      });
  const AttentionShape shape{
      .heads = 2, .kv_heads = 1, .key_dim = 12, .value_dim = 12, .scale = 0.5f};
  const std::vector<KeyTile> tiles = tiles_of(k, v, {64, 64, 22});
  const AttentionUnit unit{.rows = kRows,
                           .tiles = tiles,
                           .key_stride = 12,
                           .value_stride = 12,
                           .visible = visible.data()};
  const Tensor o = Tensor::full({kRows, 24}, NAN), sums = Tensor::full({kRows, 2}, NAN);
  AttentionKernels& kernels = backend().attention();
  AttentionOperands operands{.q = {q.data(), 24}, .o = {o.data(), 24}};
  kernels.forward_exact(shape, {&unit, 1}, operands);
  EXPECT_LT(difference(o, want.o), kTolerance);
  o.fill(NAN);
  operands.log_sum_exp = sums.data();
  kernels.forward(shape, {&unit, 1}, operands);
  EXPECT_LT(difference(o, want.o), kTolerance);
  EXPECT_EQ(o.row(3)[5], 0);
  const Tensor grad_q = Tensor::full(q.shape(), NAN), grad_k = Tensor::full(k.shape(), NAN);
  const Tensor grad_v = Tensor::full(v.shape(), NAN);
  kernels.backward(shape, {&unit, 1}, operands,
                   {.o = {grad_o.data(), 24},
                    .q = {grad_q.data(), 24},
                    .k = {grad_k.data(), 12},
                    .v = {grad_v.data(), 12},
                    .sinks = {}});
  EXPECT_LT(difference(grad_q, want.grad_q), kTolerance);
  EXPECT_LT(difference(grad_k, want.grad_k), kTolerance);
  EXPECT_LT(difference(grad_v, want.grad_v), kTolerance);
}

// A list of tiles for each key-value head, with tiles that are not full between others: as blocks
// that a head selects.
TEST_P(AttentionTest, EachKeyValueHeadMayHaveTilesOfItsOwn) {
  constexpr int64_t kRows = 70, kKeys = 140;
  const Tensor q = random_tensor(kRows, 48, 1, 3), k = random_tensor(kKeys, 24, 2);
  const Tensor v = random_tensor(kKeys, 16, 3), grad_o = random_tensor(kRows, 32, 4);
  // Head 0 sees rows 0 ... 139 as tiles of 64, 30 and 46; head 1 only some, in another order.
  const std::vector<KeyTile> all = tiles_of(k, v, {64, 30, 46});
  const std::vector<KeyTile> some = {all[2], all[1]};
  const auto seen = [](int64_t head, int64_t j) { return head < 2 || j >= 64; };
  const AttentionShape shape{
      .heads = 4, .kv_heads = 2, .key_dim = 12, .value_dim = 8, .scale = 0.25f};
  const std::vector<KeyRange> whole(kRows, {0, 3 * kAttentionTile});
  AttentionUnit first{
      .rows = kRows, .tiles = all, .key_stride = 24, .value_stride = 16, .visible = whole.data()};
  AttentionUnit second = first;
  second.tiles = some;
  const std::vector<KeyRange> shorter(kRows, {0, 2 * kAttentionTile});
  second.visible = shorter.data();
  second.first_kv_head = 1;
  const std::vector<AttentionUnit> units = {first, second};

  // The naive form of one head at a time.
  Doubles want_o(kRows * 32), want_q(kRows * 48), want_k(kKeys * 24), want_v(kKeys * 16);
  for (int64_t head = 0; head < 4; ++head) {
    for (int64_t i = 0; i < kRows; ++i) {
      const float *query = q.row(i) + head * 12, *grad = grad_o.row(i) + head * 8;
      Doubles p, dp;
      double sum = 0, mean = 0;
      for (int64_t j = 0; j < kKeys; ++j) {
        double score = 0, gradient = 0;
        for (int64_t c = 0; c < 12; ++c) score += 0.25 * query[c] * k.row(j)[head / 2 * 12 + c];
        for (int64_t c = 0; c < 8; ++c) gradient += double{grad[c]} * v.row(j)[head / 2 * 8 + c];
        p.push_back(seen(head, j) ? std::exp(score) : 0);
        dp.push_back(gradient);
        sum += p.back();
      }
      for (size_t j = 0; j < kKeys; ++j) mean += (p[j] /= sum) * dp[j];
      for (int64_t j = 0; j < kKeys; ++j) {
        const double weight = p[static_cast<size_t>(j)];
        const double ds = 0.25 * weight * (dp[static_cast<size_t>(j)] - mean);
        for (int64_t c = 0; c < 8; ++c) {
          want_o[static_cast<size_t>(i * 32 + head * 8 + c)] += weight * v.row(j)[head / 2 * 8 + c];
          want_v[static_cast<size_t>(j * 16 + head / 2 * 8 + c)] += weight * grad[c];
        }
        for (int64_t c = 0; c < 12; ++c) {
          want_q[static_cast<size_t>(i * 48 + head * 12 + c)] += ds * k.row(j)[head / 2 * 12 + c];
          want_k[static_cast<size_t>(j * 24 + head / 2 * 12 + c)] += ds * query[c];
        }
      }
    }
  }

  const Tensor o = Tensor::full({kRows, 32}, NAN), sums = Tensor::full({kRows, 4}, NAN);
  AttentionKernels& kernels = backend().attention();
  const AttentionOperands operands{
      .q = {q.data(), 48}, .o = {o.data(), 32}, .log_sum_exp = sums.data()};
  kernels.forward_exact(shape, units, operands);
  EXPECT_LT(difference(o, want_o), kTolerance);
  o.fill(NAN);
  kernels.forward(shape, units, operands);
  EXPECT_LT(difference(o, want_o), kTolerance);
  // Keys that head 1 does not see get no gradient from it.
  const Tensor grad_q = Tensor::full(q.shape(), NAN), grad_k = Tensor::zeros(k.shape());
  const Tensor grad_v = Tensor::zeros(v.shape());
  kernels.backward(shape, units, operands,
                   {.o = {grad_o.data(), 32},
                    .q = {grad_q.data(), 48},
                    .k = {grad_k.data(), 24},
                    .v = {grad_v.data(), 16},
                    .sinks = {}});
  EXPECT_LT(difference(grad_q, want_q), kTolerance);
  EXPECT_LT(difference(grad_k, want_k), kTolerance);
  EXPECT_LT(difference(grad_v, want_v), kTolerance);
}

TEST(AttentionUnits, ListOnlyThePagesThatAWindowHolds) {
  AttentionOptions options;
  options.heads = options.kv_heads = 1;
  options.head_dim = 4;
  options.window = 100;
  Journal journal(attention_journal(options));
  for (int32_t position = 0; position < 100000; ++position) {
    journal.append({&position, 1});
    journal.pass();
  }
  const int32_t next = 100000;
  journal.append({&next, 1});
  AttentionUnits units(options);
  Batch batch;
  batch.tokens = {0};
  batch.positions = {next};
  batch.segments = {{nullptr, 0, 1}};
  const CheckedBatch checked(batch);
  units.add_chain(checked, checked.segments()[0], journal);
  ASSERT_EQ(units.units().size(), 1u);
  const AttentionUnit& unit = units.units()[0];
  EXPECT_LE(unit.tiles.size(), 6u);
  EXPECT_EQ(unit.visible->begin, next - 99);
  EXPECT_EQ(unit.visible->end, next + 1);
  EXPECT_EQ(reinterpret_cast<const float*>(unit.tile(next / kAttentionTile).keys),
            journal.row(next / kAttentionTile * kAttentionTile));
}

// Borrowed keys have been appended by the attention that lent them, in this very forward.
TEST(AttentionCheck, RefusesBorrowedKeysThatAreNotThere) {
  AttentionOptions lender{.heads = 2, .kv_heads = 1, .head_dim = 4};
  lender.keys = KeyOwner::lent;
  AttentionOptions borrower = lender;
  borrower.keys = KeyOwner::borrowed;
  auto layout = std::make_shared<StateLayout>();
  layout->layers = {{attention_journal(lender)}};
  SequenceState state(layout);
  Batch batch;
  batch.positions = {0, 1};
  batch.segments = {{&state, 0, 2}};
  const Tensor q = random_tensor(2, 8, 1), k = random_tensor(2, 4, 2), v = random_tensor(2, 4, 3);
  EXPECT_THROW(attention({}, q, k, v, borrower, batch, {}), Error);
  attention({}, q, k, v, lender, batch, {});
  EXPECT_EQ(state.journal(0, 0).length(), 2);
  EXPECT_NO_THROW(attention({}, q, k, v, borrower, batch, {}));
  EXPECT_NO_THROW(attention({}, q, k, v, borrower, batch, {}));
  EXPECT_EQ(state.journal(0, 0).length(), 2);
  batch.positions = {2, 3};
  EXPECT_THROW(attention({}, q, k, v, borrower, batch, {}), Error);
  batch.positions = {0, 1};
  batch.segments[0].parents = {-1, 0};
  EXPECT_THROW(attention({}, q, k, v, borrower, batch, {}), Error);
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
  wrong = options;
  wrong.value_dim = 3;
  EXPECT_THROW(attention({}, q, k, v, wrong, batch, {}), Error);
  wrong.value_in_key = true;  // but there is a v
  EXPECT_THROW(attention({}, q, k, v, wrong, batch, {}), Error);
  EXPECT_NO_THROW(attention({}, q, k, {}, wrong, batch, {}));
  EXPECT_THROW(attention({}, q, k, {}, options, batch, {}), Error);
  wrong.value_dim = 5;  // wider than the key
  EXPECT_THROW(attention({}, q, k, {}, wrong, batch, {}), Error);
  EXPECT_THROW(attention({}, q, k, v, options, batch, {}, random_tensor(1, 3, 4)), Error);
  EXPECT_THROW(with_cache(std::make_shared<StateLayout>(), DType::i32), Error);
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
