// Compressive memories: whole sequences, and steps from a state.
#include <utility>

#include "tensor/journal.h"
#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/compressive_memory_forward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/compressive_memory-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Scratch memory for some tokens of one memory.
struct Tokens {
  Tokens(const CompressiveMemoryShape& shape, int64_t most)
      : memory(static_cast<size_t>(most * (shape.key_dim + 2 * shape.value_dim)) * sizeof(float)) {
    keys = reinterpret_cast<float*>(memory.data());
    values = keys + most * shape.key_dim;
    scratch = values + most * shape.value_dim;
  }

  Storage memory;
  float *keys, *values, *scratch;
};

// Tokens of a whole sequence are taken in as many at a time as steps take.
constexpr int64_t kTokens = kExactStep;

void Forward(const CompressiveMemoryShape& shape, const CompressiveMemoryRun& run, int64_t memory,
             const CompressiveMemoryInputs& in, const Matrix& out) {
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim;
  const int64_t group = shape.heads / shape.kv_heads, size = shape.memory_size();
  Tokens tokens(shape, kTokens);
  const Storage state(static_cast<size_t>(2 * size) * sizeof(float));
  float* held = reinterpret_cast<float*>(state.data());
  float* grown = held + size;
  std::fill_n(grown, size, 0.0f);
  for (int64_t begin = 0; begin < run.length; begin += kTokens) {
    const int64_t n = std::min(kTokens, run.length - begin), row0 = run.first_row + begin;
    if (begin > 0 && begin % shape.segment == 0) std::copy_n(grown, size, held);
    HeldMemory read;
    if (begin >= shape.segment) read = {held, held + key_dim * value_dim};
    for (int64_t head = memory * group; head < (memory + 1) * group; ++head) {
      for (int64_t i = 0; i < n; ++i) {
        Positive(key_dim, in.q.row(row0 + i) + head * key_dim, tokens.keys + i * key_dim);
      }
      LookUp(shape, read, n, tokens.keys, tokens.values, nullptr);
      for (int64_t i = 0; i < n; ++i) {
        std::copy_n(tokens.values + i * value_dim, value_dim, out.row(row0 + i) + head * value_dim);
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      Positive(key_dim, in.k.row(row0 + i) + memory * key_dim, tokens.keys + i * key_dim);
      std::copy_n(in.v.row(row0 + i) + memory * value_dim, value_dim,
                  tokens.values + i * value_dim);
    }
    Written(shape, read, n, tokens.keys, tokens.values, tokens.scratch);
    Grow(shape, n, tokens.keys, tokens.values, grown, grown + key_dim * value_dim);
  }
}

// A state's parts that are of one memory. What is read has nothing in it where its z is 0.
struct StatePart {
  StatePart(const CompressiveMemoryShape& shape, int64_t memory)
      : size(shape.memory_size()), held(1 + 2 * memory * size), grown(held + size) {}
  int64_t size, held, grown;  // numbers, and where they begin
};

HWY_INLINE HeldMemory HeldIn(const CompressiveMemoryShape& shape, const StatePart& part,
                             const float* state) {
  if (state == nullptr) return {};
  return {state + part.held, state + part.held + shape.key_dim * shape.value_dim};
}

// How many tokens of their segment the growing memories have, in states that are made in this call.
// The number in a state is written by one memory's task alone, and no other may read it meanwhile.
class Counts {
 public:
  float of(const float* state) const {
    if (state == nullptr) return 0;
    for (auto made = made_.rbegin(); made != made_.rend(); ++made) {
      if (made->first == state) return made->second;
    }
    return state[0];
  }
  void set(const float* state, float count) { made_.emplace_back(state, count); }

 private:
  PooledVector<std::pair<const float*, float>> made_;
};

void Fold(const CompressiveMemoryShape& shape, int64_t memory, const ReplayFold& fold,
          Tokens& tokens, Counts& counts) {
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim;
  const StatePart part(shape, memory);
  if (fold.anchor != nullptr) {
    std::copy_n(fold.anchor + part.held, 2 * part.size, fold.to + part.held);
  } else {
    std::fill_n(fold.to + part.held, 2 * part.size, 0.0f);
  }
  const auto n = std::ssize(fold.rows);
  for (int64_t i = 0; i < n; ++i) {
    const float* row = fold.rows[static_cast<size_t>(i)];
    Positive(key_dim, row + memory * key_dim, tokens.keys + i * key_dim);
    std::copy_n(row + shape.kv_heads * key_dim + memory * value_dim, value_dim,
                tokens.values + i * value_dim);
  }
  Written(shape, HeldIn(shape, part, fold.to), n, tokens.keys, tokens.values, tokens.scratch);
  float* grown = fold.to + part.grown;
  Grow(shape, n, tokens.keys, tokens.values, grown, grown + key_dim * value_dim);
  const float count = counts.of(fold.anchor) + static_cast<float>(n);
  const bool ends = count >= static_cast<float>(shape.segment);
  if (ends) std::copy_n(grown, part.size, fold.to + part.held);
  counts.set(fold.to, ends ? 0.0f : count);
  if (memory == 0) fold.to[0] = ends ? 0.0f : count;
}

void Steps(const CompressiveMemoryShape& shape, std::span<const ReplayStep> sequence,
           int64_t memory, const CompressiveMemoryInputs& in, const Matrix& out) {
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim;
  const int64_t group = shape.heads / shape.kv_heads;
  const StatePart part(shape, memory);
  int64_t most = kExactStep;
  for (const ReplayStep& step : sequence) most = std::max(most, std::ssize(step.tokens));
  Tokens tokens(shape, most);
  Counts counts;
  for (const ReplayStep& step : sequence) {
    if (step.fold.to != nullptr) Fold(shape, memory, step.fold, tokens, counts);
    const HeldMemory read = HeldIn(shape, part, step.anchor());
    const auto n = std::ssize(step.tokens);
    for (const ReplayToken& token : step.tokens) {
      std::copy_n(in.k.row(token.input_row) + memory * key_dim, key_dim,
                  token.row + memory * key_dim);
      std::copy_n(in.v.row(token.input_row) + memory * value_dim, value_dim,
                  token.row + shape.kv_heads * key_dim + memory * value_dim);
    }
    for (int64_t head = memory * group; head < (memory + 1) * group; ++head) {
      for (int64_t i = 0; i < n; ++i) {
        const int64_t row = step.tokens[static_cast<size_t>(i)].input_row;
        Positive(key_dim, in.q.row(row) + head * key_dim, tokens.keys + i * key_dim);
      }
      LookUp(shape, read, n, tokens.keys, tokens.values, nullptr);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t row = step.tokens[static_cast<size_t>(i)].input_row;
        std::copy_n(tokens.values + i * value_dim, value_dim, out.row(row) + head * value_dim);
      }
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(Forward);
HWY_EXPORT(Steps);

void cpu_compressive_memory::forward(const CompressiveMemoryShape& shape,
                                     const CompressiveMemoryRun& run, int64_t memory,
                                     const CompressiveMemoryInputs& inputs, const Matrix& out) {
  HWY_DYNAMIC_DISPATCH(Forward)(shape, run, memory, inputs, out);
}

void cpu_compressive_memory::steps(const CompressiveMemoryShape& shape,
                                   std::span<const ReplayStep> sequence, int64_t memory,
                                   const CompressiveMemoryInputs& inputs, const Matrix& out) {
  HWY_DYNAMIC_DISPATCH(Steps)(shape, sequence, memory, inputs, out);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
