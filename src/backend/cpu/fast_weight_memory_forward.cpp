// Forward pass of fast-weight memories: tokens in mini-batches from the weights at their start, and
// weights folded at their ends.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/fast_weight_memory_forward.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target: included once for each instruction set.
#include "backend/cpu/fast_weight_memory-inl.h"
#include "backend/cpu/fast_weight_memory_fold-inl.h"
#include "backend/cpu/fast_weight_memory_learn-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// What a task works in.
struct ForwardWork {
  ForwardWork(const MemoryShape& shape, Scratch& scratch)
      : tokens(shape, scratch),
        learn(shape, false, scratch),
        read(shape, scratch),
        reading(shape.widest(), scratch),
        fold(shape, scratch),
        x(scratch.take(kTokens * shape.widest())) {}

  MiniBatch tokens;
  LearnWork learn;
  ReadWork read;
  LayerReading reading;
  FoldWork fold;
  float* x;  // inputs of the layer that is read
};

// o of a range of tokens. state: the weights at the start of the mini-batch, or with a
// read_interval those that are read.
void ReadTokens(const MemoryHead& head, const float* state, const TokenRange& range,
                ForwardWork& work, const Matrix& out) {
  const MemoryShape& shape = head.shape;
  const int64_t width = shape.head_dim, n = range.n;
  float *x = work.x, *h = work.read.h;
  for (int64_t t = 0; t < n; ++t) CopyRow(head.query(range.row + t), width, x + t * width);
  for (int64_t l = 0; l < shape.depth; ++l) {
    if (head.lagged()) {
      ReadWeights(shape, state, l, n, x, h);
    } else {
      ReadLayer(head, state, work.tokens, {l, range.first + 1, n, x}, work.read, work.reading);
    }
    if (l + 1 < shape.depth) GeluRows(n * shape.out(l), h, x, nullptr, nullptr);
  }
  for (int64_t t = 0; t < n; ++t) {
    float* HWY_RESTRICT o = out.row(range.row + t) + head.column();
    if (head.ttt == nullptr) {
      CopyRow(h + t * width, width, o);
      continue;
    }
    const float* q = head.query(range.row + t);
    const float *w = head.norm_weight(), *b = head.norm_bias();
    Normalize(width, head.ttt->norm_epsilon, h + t * width, x);
    for (int64_t c = 0; c < width; ++c) o[c] = q[c] + w[c] * x[c] + b[c];
  }
}

// Steps through rows of earlier tokens from `state`. Returns the state at the start of the
// mini-batch that is open in the end, `to` or where it began, and in `held` its tokens.
const float* Replay(const MemoryHead& head, const float* state, std::span<const float* const> rows,
                    ForwardWork& work, float* to, int64_t& held) {
  held = 0;
  for (const float* row : rows) {
    LoadToken(head.shape, row + head.index * head.shape.row_size(), held++, work.tokens);
    if (held < head.problem.mini_batch) continue;
    SumGates(head, held, work.tokens.gates);
    Fold(head, state, work.tokens, held, work.fold, to);
    state = to;
    held = 0;
  }
  return state;
}

void ForwardTask(const MemoryProblem& problem, const MemoryRun& run, int64_t index,
                 const Matrix& out, float* saved) {
  const MemoryHead head(problem, index);
  const MemoryShape& shape = problem.shape;
  const int64_t size = shape.state_size(), batch = problem.mini_batch;
  Scratch scratch;
  float* own = scratch.take(size);
  float* copy = scratch.take(head.lagged() ? size : 0);
  ForwardWork work(shape, scratch);

  const float* anchor = head.state(run.anchor);  // the last one: what is read if that lags
  int64_t held = 0;                              // tokens of the open mini-batch
  const float* state = Replay(head, anchor, run.path, work, own, held);
  const auto before = static_cast<int64_t>(run.path.size());
  const int64_t last_anchor = (before + run.length) / problem.interval * problem.interval;
  const int64_t first_kept = run.length - static_cast<int64_t>(run.rows.size());
  for (int64_t done = 0; done < run.length;) {
    const int64_t n = std::min(batch - held, run.length - done);
    const TokenRange range{run.first_row + done, held, n};
    ReadGates(head, range, work.tokens.gates);
    LearnTokens(head, state, range, work.tokens, work.learn, work.read, work.reading);
    ReadTokens(head, head.lagged() ? anchor : state, range, work, out);
    for (int64_t t = std::max<int64_t>(0, first_kept - done); t < n; ++t) {
      float* to = run.rows[static_cast<size_t>(done + t - first_kept)];
      StoreToken(shape, work.tokens, held + t, to + index * shape.row_size());
    }
    held += n;
    done += n;
    const bool more = done < run.length;
    const bool final = run.final != nullptr && before + done == last_anchor;
    if (held < batch || !(more || final)) continue;
    float* to = final ? run.final + index * size : own;
    Fold(head, state, work.tokens, held, work.fold, to);
    state = to;
    held = 0;
    if (head.lagged() && (before + done) % problem.interval == 0) {
      CopyRow(state, size, copy);
      anchor = copy;
    }
    const int64_t mini_batches = done / batch;
    if (saved != nullptr && more && mini_batches % kMemoryGroup == 0) {
      const int64_t place = run.first_saved + mini_batches / kMemoryGroup - 1;
      CopyRow(state, size, saved + (place * problem.heads + index) * size);
    }
  }
}

void FoldTask(const MemoryProblem& problem, const MemoryFold& fold, int64_t index) {
  const MemoryHead head(problem, index);
  Scratch scratch;
  ForwardWork work(problem.shape, scratch);
  int64_t held = 0;
  Replay(head, head.state(fold.anchor), fold.rows, work,
         fold.to + index * problem.shape.state_size(), held);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(ForwardTask);
HWY_EXPORT(FoldTask);

void memory_forward_task(const MemoryProblem& problem, const MemoryRun& run, int64_t head,
                         const Matrix& out, float* saved) {
  HWY_DYNAMIC_DISPATCH(ForwardTask)(problem, run, head, out, saved);
}

void memory_fold_task(const MemoryProblem& problem, const MemoryFold& fold, int64_t head) {
  HWY_DYNAMIC_DISPATCH(FoldTask)(problem, fold, head);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
