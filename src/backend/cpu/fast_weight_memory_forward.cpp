// Forward pass of fast-weight memories: tokens in mini-batches from the weights at their start, and
// weights folded at their ends.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/fast_weight_memory_forward.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target: included once for each instruction set.
#include "backend/cpu/fast_weight_memory-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {

// o of tokens first ... first + n - 1, which are rows row ... of the batch. state: the weights at
// the start of the mini-batch, or with `lagged` those that are read.
inline void ReadTokens(const MemoryProblem& problem, int64_t head, const float* state, int64_t row,
                       int64_t first, int64_t n, const MemoryTokens& tokens,
                       const MemoryGates& gates, MemoryReads& reads, float* x, const Matrix& out) {
  const MemoryShape& shape = problem.shape;
  const int64_t width = shape.head_dim, column = head * width;
  for (int64_t t = 0; t < n; ++t) CopyRow(problem.q.row(row + t) + column, width, x + t * width);
  for (int64_t l = 0; l < shape.depth; ++l) {
    if (problem.lagged) {
      ReadWeights(shape, state, l, n, x, reads.h);
    } else {
      ReadLayer(problem, head, state, l, first, n, tokens, gates, x, reads);
    }
    if (l + 1 < shape.depth) GeluRows(n * shape.out(l), reads.h, x, nullptr, nullptr);
  }
  for (int64_t t = 0; t < n; ++t) {
    float* HWY_RESTRICT o = out.row(row + t) + column;
    const float* h = reads.h + t * width;
    if (!problem.residual_norm) {
      CopyRow(h, width, o);
      continue;
    }
    const float* q = problem.q.row(row + t) + column;
    const float* w = problem.norm_weight + column;
    const float* b = problem.norm_bias + column;
    Normalize(width, problem.norm_epsilon, h, x);
    for (int64_t c = 0; c < width; ++c) o[c] = q[c] + w[c] * x[c] + b[c];
  }
}

void ForwardTask(const MemoryProblem& problem, const MemoryRun& run, int64_t head,
                 const Matrix& out, float* saved) {
  const MemoryShape& shape = problem.shape;
  const int64_t size = shape.state_size(), widest = std::max(shape.head_dim, shape.hidden_dim);
  const int64_t batch = problem.mini_batch;
  Scratch scratch;
  float* own = scratch.take(size);
  float* copy = scratch.take(problem.lagged ? size : 0);
  float* w_rows = scratch.take(kTokens * widest);
  float* s_rows = scratch.take(kTokens * widest);
  float* x = scratch.take(kTokens * widest);
  MemoryTokens tokens(shape, scratch);
  MemoryReads reads(shape, scratch);
  MemoryGates gates;

  const float* state = (run.anchor != nullptr ? run.anchor : problem.initial) + head * size;
  const float* anchor_state = state;  // of the last anchor
  const auto before = static_cast<int64_t>(run.path.size());
  int64_t held = 0;  // tokens of the open mini-batch
  for (const float* row : run.path) {
    LoadToken(shape, row + head * shape.row_size(), held++, tokens, gates);
    if (held < batch) continue;
    SumGates(shape, problem.tau, held, gates);
    Fold(problem, head, state, tokens, gates, held, w_rows, s_rows, own);
    state = own;
    held = 0;
  }
  const int64_t last_anchor = (before + run.length) / problem.interval * problem.interval;
  const int64_t first_kept = run.length - static_cast<int64_t>(run.rows.size());
  for (int64_t done = 0; done < run.length;) {
    const int64_t n = std::min(batch - held, run.length - done);
    const int64_t row = run.first_row + done;
    ReadGates(problem, head, row, n, held, gates);
    SumGates(shape, problem.tau, held + n, gates);
    LearnTokens(problem, head, state, row, held, n, gates, tokens, reads);
    ReadTokens(problem, head, problem.lagged ? anchor_state : state, row, held, n, tokens, gates,
               reads, x, out);
    for (int64_t t = std::max<int64_t>(0, first_kept - done); t < n; ++t) {
      float* to = run.rows[static_cast<size_t>(done + t - first_kept)];
      StoreToken(shape, tokens, gates, held + t, to + head * shape.row_size());
    }
    held += n;
    done += n;
    const bool more = done < run.length;
    const bool final = run.final != nullptr && before + done == last_anchor;
    if (held < batch || !(more || final)) continue;
    float* to = final ? run.final + head * size : own;
    Fold(problem, head, state, tokens, gates, held, w_rows, s_rows, to);
    state = to;
    held = 0;
    if (problem.lagged && (before + done) % problem.interval == 0) {
      CopyRow(state, size, copy);
      anchor_state = copy;
    }
    const int64_t mini_batches = done / batch;
    if (saved != nullptr && more && mini_batches % kMemoryGroup == 0) {
      const int64_t index = run.first_saved + mini_batches / kMemoryGroup - 1;
      CopyRow(state, size, saved + (index * problem.heads + head) * size);
    }
  }
}

void FoldTask(const MemoryProblem& problem, const MemoryFold& fold, int64_t head) {
  const MemoryShape& shape = problem.shape;
  const int64_t size = shape.state_size(), widest = std::max(shape.head_dim, shape.hidden_dim);
  Scratch scratch;
  float* w_rows = scratch.take(kTokens * widest);
  float* s_rows = scratch.take(kTokens * widest);
  MemoryTokens tokens(shape, scratch);
  MemoryGates gates;
  const float* state = (fold.anchor != nullptr ? fold.anchor : problem.initial) + head * size;
  float* to = fold.to + head * size;
  int64_t held = 0;
  for (const float* row : fold.rows) {
    LoadToken(shape, row + head * shape.row_size(), held++, tokens, gates);
    if (held < problem.mini_batch) continue;
    SumGates(shape, problem.tau, held, gates);
    Fold(problem, head, state, tokens, gates, held, w_rows, s_rows, to);
    state = to;
    held = 0;
  }
}

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
