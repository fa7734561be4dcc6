// Backward pass of fast-weight memories, from the last mini-batch to the first. The states that
// mini-batches start from are computed again in groups, from those that the forward pass kept. In a
// mini-batch gradients flow from the state after it through the fold, from the outputs through
// reading, then both through the back-signals e_l (second derivatives of the memory) and the inputs
// a_l of its tokens, and last through the sums of gates.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/fast_weight_memory_backward.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target: included once for each instruction set.
#include "backend/cpu/fast_weight_memory_backward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Where a task's gradients go.
struct TaskGradients {
  const MemoryGradients& rows;     // of the batch's rows
  const MemoryTaskGradients& own;  // sums over the task's tokens
};

// A mini-batch: n rows from `row`.
struct MiniBatchRows {
  int64_t row, n;
  const float* state;   // what it starts from
  const float* anchor;  // the weights that are read, where these lag
  bool folded;          // there is a gradient of the state after it
};

void Write(const Matrix& to, int64_t row, int64_t column, int64_t count, const float* from) {
  if (to.data == nullptr) return;
  float* target = to.row(row) + column;
  if (to.accumulate) {
    AddScaled(count, 1.0f, from, target);
  } else {
    CopyRow(from, count, target);
  }
}

// What the forward pass computed of a mini-batch, answers of the last layer in of.read.h.
void Recompute(const MemoryHead& head, const MiniBatchRows& rows, Activations& of) {
  const MemoryShape& shape = head.shape;
  const int64_t width = shape.head_dim, n = rows.n;
  const TokenRange range{rows.row, 0, n};
  ReadGates(head, range, of.tokens.gates);
  LearnTokens(head, rows.state, range, of.tokens, of.learn, of.read, of.online);
  for (int64_t t = 0; t < n; ++t) {
    CopyRow(head.query(rows.row + t), width, of.layers[0].x + t * width);
  }
  for (int64_t l = 0; l < shape.depth; ++l) {
    Activations::Layer& layer = of.layers[l];
    if (head.lagged()) {
      ReadWeights(shape, rows.anchor, l, n, layer.x, of.read.h);
    } else {
      ReadLayer(head, rows.state, of.tokens, {l, 1, n, layer.x}, of.read, layer.reading);
    }
    if (l + 1 < shape.depth) {
      GeluRows(n * shape.out(l), of.read.h, of.layers[l + 1].x, layer.slope, nullptr);
    }
  }
}

// d(o) of the mini-batch's rows -> d(h) of the last layer, in `to`. h: that layer's answers.
void OutputGradient(const MemoryHead& head, const MiniBatchRows& rows, const ConstMatrix& out_grad,
                    const float* h, const MemoryTaskGradients& own, BackwardWork& work, float* to) {
  const int64_t width = head.shape.head_dim;
  for (int64_t t = 0; t < rows.n; ++t) {
    const float* dy = out_grad.row(rows.row + t) + head.column();
    float* HWY_RESTRICT dh = to + t * width;
    if (head.ttt == nullptr) {
      CopyRow(dy, width, dh);
      continue;
    }
    const float* w = head.norm_weight();
    const float inverse = Normalize(width, head.ttt->norm_epsilon, h + t * width, work.normed);
    for (int64_t c = 0; c < width; ++c) {
      own.norm_weight[c] += dy[c] * work.normed[c];
      own.norm_bias[c] += dy[c];
      work.row[c] = dy[c] * w[c];
    }
    const float mean = Mean(width, work.row), along = MeanProduct(width, work.row, work.normed);
    for (int64_t c = 0; c < width; ++c) {
      dh[c] = inverse * (work.row[c] - mean - work.normed[c] * along);
    }
  }
}

// From d(e) of the layers before the last to d(signal) and d(e) of the layers after them, and to
// d(z) as far as it passes through the slopes.
void SignalGradient(const MemoryHead& head, const float* state, int64_t n, const Activations& of,
                    TokenGradients& d) {
  const MemoryShape& shape = head.shape;
  const int64_t last = shape.depth - 1;
  for (int64_t l = 1; l <= last; ++l) {
    const int64_t in = shape.in(l), out = shape.out(l);
    const float* HWY_RESTRICT de = d.e[l - 1];
    float* HWY_RESTRICT dsignal = d.left[l] + 2 * n * in;
    float* HWY_RESTRICT dz = d.z[l - 1];
    const float *slope = of.learn.slope[l - 1], *curve = of.learn.curve[l - 1];
    const float* signal = of.learn.signal[l - 1];
    const float rate = l == last ? head.titans.hidden_rate : 1;
    for (int64_t c = 0; c < n * in; ++c) {
      dsignal[c] = rate * de[c] * slope[c];
      dz[c] = rate * de[c] * signal[c] * curve[c];
    }
    CopyRow(of.tokens.e[l], n * out, d.right[l] + 2 * n * out);
    SmallMatmul(n, out, in, dsignal, in, 1, state + shape.weight_at(l), out, d.e[l], out, true);
  }
}

// Through the errors of the last layer, to d(z), d(v) and the part of d(k) that does not pass
// through the memory.
void ErrorGradient(const MemoryHead& head, const MiniBatchRows& rows, const Activations& of,
                   const TaskGradients& to, TokenGradients& d, BackwardWork& work) {
  const MemoryShape& shape = head.shape;
  const int64_t width = shape.head_dim, last = shape.depth - 1, in = shape.in(last);
  // Last token first: with online errors, those before it had a part in its error.
  for (int64_t t = rows.n - 1; t >= 0; --t) {
    float *dz = d.z[last] + t * width, *de = d.e[last] + t * width;
    const float* a = of.tokens.a[last] + t * in;
    const float factor = StepFactor(head, a);
    if (factor < 1) {
      // e = factor g with factor = 1 / |a|^2, whose gradient is -2 factor^2 a.
      const float along = factor * DotProduct(de, of.tokens.e[last] + t * width, width);
      AddScaled(in, -2 * along, a, d.a[last] + t * in);
      for (int64_t c = 0; c < width; ++c) de[c] *= factor;
    }
    const LossPoint at{of.learn.answers + t * width, of.tokens.a[0] + t * width,
                       head.value(rows.row + t)};
    const LossGradients of_loss{dz, d.k + t * width, work.rows};
    if (head.ttt != nullptr) {
      NormedLossSecondGradient(head, at, de, to.own, work.normed, work.row, of_loss);
    } else {
      LimitedLossSecondGradient(head, at, de, of_loss);
    }
    Write(to.rows.v, rows.row + t, head.column(), width, work.rows);
    for (int64_t j = 0; head.titans.online_errors && j < t; ++j) {
      AddScaled(width, of.online.pairs[t * kTokens + j], dz, d.e[last] + j * width);
    }
  }
}

// From d(z) and d(a) of all layers to d(k) and, with what is left in d.left and d.right, d(W).
void InputGradient(const MemoryHead& head, const MiniBatchRows& rows, const Activations& of,
                   const TaskGradients& to, const StateGradients& states, TokenGradients& d,
                   BackwardWork& work) {
  const MemoryShape& shape = head.shape;
  const int64_t width = shape.head_dim, last = shape.depth - 1, n = rows.n;
  for (int64_t l = last; l >= 0; --l) {
    const int64_t in = shape.in(l), out = shape.out(l);
    const float* a = of.tokens.a[l];
    CopyRow(d.z[l], n * out, d.right[l] + n * out);
    float* kept = d.left[l] + n * in;
    if (head.titans.online_errors && l == last) {
      LayerReadGradient(head, rows.state, of.tokens, {{l, 0, n, a}, of.online, d.z[l], kept},
                        states, d, work);
      AddScaled(n * in, 1.0f, d.x, d.a[l]);
    } else {
      CopyRow(a, n * in, kept);
      for (int64_t t = 0; shape.bias && t < n; ++t) {
        AddScaled(out, 1.0f, d.z[l] + t * out, states.state + shape.bias_at(l));
      }
      ToColumns(n, out, d.z[l], work.columns);
      TimesColumns(in, out, rows.state + shape.weight_at(l), work.columns, work.products, false);
      Transpose(in, n, work.products, kTokens, work.rows, in);
      AddScaled(n * in, 1.0f, work.rows, d.a[l]);
    }
    const int64_t parts = l > 0 ? 3 : 2;
    SmallMatmul(in, out, parts * n, d.left[l], 1, in, d.right[l], out,
                states.state + shape.weight_at(l), out, true);
    if (l > 0) {
      const float* slope = of.learn.slope[l - 1];
      for (int64_t c = 0; c < n * in; ++c) d.z[l - 1][c] += d.a[l][c] * slope[c];
    }
  }
  for (int64_t t = 0; t < n; ++t) {
    AddScaled(width, 1.0f, d.a[0] + t * width, d.k + t * width);
    Write(to.rows.k, rows.row + t, head.column(), width, d.k + t * width);
  }
}

// Through the sums of gates, last token first.
void GateGradient(const MemoryHead& head, const MiniBatchRows& rows, const MemoryGates& gates,
                  const TaskGradients& to, const TokenGradients& d) {
  const MemoryShape& shape = head.shape;
  float of_gamma[kTokens] = {}, of_n[kTokens] = {}, of_f = 0, of_beta = 0, of_m = d.m;
  std::copy_n(d.n, kTokens, of_n);
  for (int64_t t = rows.n - 1; t >= 0; --t) {
    const float keep = shape.forgetting ? 1 - gates.alpha[t] : 1.0f;
    const float* dpairs = d.pairs + (t + 1) * kTokens;
    const float* gamma = gates.gamma + (t + 1) * kTokens;
    of_f += d.f[t + 1];
    of_m += of_f;
    of_beta += d.beta[t + 1];
    float dtau = 0;
    for (int64_t j = 0; j <= t; ++j) {
      dtau += dpairs[j] * gamma[j];
      of_gamma[j] += gates.tau[t] * dpairs[j];
      of_n[j] += of_gamma[j];
    }
    to.own.tau[t] += dtau;
    float dkeep = of_f * gates.f[t] + of_beta * gates.beta[t];
    float deta = of_m * gates.m[t];
    for (int64_t j = 0; j < t; ++j) {
      dkeep += of_gamma[j] * gamma[j - kTokens];
      deta += of_n[j] * gates.n[t * kTokens + j];
    }
    const float dtheta = of_n[t], dalpha = -dkeep;
    Write(to.rows.theta, rows.row + t, head.index, 1, &dtheta);
    if (shape.momentum) Write(to.rows.eta, rows.row + t, head.index, 1, &deta);
    if (shape.forgetting) Write(to.rows.alpha, rows.row + t, head.index, 1, &dalpha);
    const float decay = shape.momentum ? gates.eta[t] : 0.0f;
    for (int64_t j = 0; j < t; ++j) {
      of_gamma[j] *= keep;
      of_n[j] *= decay;
    }
    of_f *= keep;
    of_beta *= keep;
    of_m *= decay;
  }
}

// states.state: the gradient of the state after the mini-batch (zeros if nothing is folded), and
// then of rows.state; the other gradients of states are added to.
void BackwardMiniBatch(const MemoryHead& head, const MiniBatchRows& rows,
                       const ConstMatrix& out_grad, const TaskGradients& to,
                       const StateGradients& states, Activations& of, TokenGradients& d,
                       BackwardWork& work) {
  const MemoryShape& shape = head.shape;
  const int64_t width = shape.head_dim, last = shape.depth - 1, n = rows.n;
  Recompute(head, rows, of);
  d.clear_gates();
  if (!rows.folded) {
    for (int64_t l = 0; l < shape.depth; ++l) {
      std::fill_n(d.a[l], n * shape.in(l), 0.0f);
      std::fill_n(d.e[l], n * shape.out(l), 0.0f);
    }
  } else if (shape.momentum) {
    Unfold<true>(head, rows.state, n, of.tokens, states, d, work);
  } else {
    Unfold<false>(head, rows.state, n, of.tokens, states, d, work);
  }
  OutputGradient(head, rows, out_grad, of.read.h, to.own, work, d.right[last]);
  if (head.lagged()) {
    LaggedReadGradient(shape, rows.anchor, n, of, states, d, work);
  } else {
    ReadGradient(head, rows.state, n, of, states, d, work);
  }
  for (int64_t t = 0; t < n; ++t) {
    if (head.ttt != nullptr) {
      AddScaled(width, 1.0f, out_grad.row(rows.row + t) + head.column(), d.x + t * width);
    }
    Write(to.rows.q, rows.row + t, head.column(), width, d.x + t * width);
  }
  SignalGradient(head, rows.state, n, of, d);
  ErrorGradient(head, rows, of, to, d, work);
  InputGradient(head, rows, of, to, states, d, work);
  GateGradient(head, rows, of.tokens.gates, to, d);
}

// The states that mini-batches begin ... end - 1 of a run start from: the first is there, the
// others are computed, into `again`.
void RecomputeStates(const MemoryHead& head, const MemoryRun& run, int64_t begin, int64_t end,
                     Activations& of, FoldWork& fold, float* again, const float** states) {
  const int64_t batch = head.problem.mini_batch, size = head.shape.state_size();
  for (int64_t i = 0; begin + i + 1 < end; ++i) {
    const TokenRange range{run.first_row + (begin + i) * batch, 0, batch};
    ReadGates(head, range, of.tokens.gates);
    LearnTokens(head, states[i], range, of.tokens, of.learn, of.read, of.online);
    Fold(head, states[i], of.tokens, batch, fold, again + i * size);
    states[i + 1] = again + i * size;
  }
}

void BackwardTask(const MemoryProblem& problem, const MemoryRun& run, int64_t index,
                  const ConstMatrix& out_grad, const float* saved, const MemoryGradients& gradients,
                  const MemoryTaskGradients& own) {
  const MemoryHead head(problem, index);
  const MemoryShape& shape = problem.shape;
  const int64_t size = shape.state_size(), batch = problem.mini_batch;
  const int64_t count = (run.length + batch - 1) / batch;
  const int64_t apart = problem.interval / batch;  // mini-batches from anchor to anchor
  Scratch scratch;
  float* again = scratch.take((kMemoryGroup - 1) * size);
  StateGradients of_states{own.initial, nullptr, nullptr};
  if (head.lagged()) of_states.anchor = scratch.take(size);
  if (problem.target[0] != nullptr) of_states.target = scratch.take(size);
  FoldWork fold(shape, scratch);
  Activations activations(head, scratch);
  TokenGradients of_tokens(shape, scratch);
  BackwardWork work(shape, scratch);
  for (float* sums : {of_states.state, of_states.anchor, of_states.target}) {
    if (sums != nullptr) std::fill_n(sums, size, 0.0f);
  }
  std::fill_n(own.tau, kTokens, 0.0f);
  std::fill_n(own.norm_weight, shape.head_dim, 0.0f);
  std::fill_n(own.norm_bias, shape.head_dim, 0.0f);

  for (int64_t group = (count - 1) / kMemoryGroup; group >= 0; --group) {
    const int64_t begin = group * kMemoryGroup, end = std::min(count, begin + kMemoryGroup);
    const float* states[kMemoryGroup];
    states[0] = group == 0 ? head.state(problem.initial)
                           : saved + ((run.first_saved + group - 1) * problem.heads + index) * size;
    RecomputeStates(head, run, begin, end, activations, fold, again, states);
    for (int64_t i = end - 1; i >= begin; --i) {
      const MiniBatchRows rows{
          run.first_row + i * batch, std::min(batch, run.length - i * batch), states[i - begin],
          head.lagged() ? states[i / apart * apart - begin] : nullptr, i + 1 < count};
      BackwardMiniBatch(head, rows, out_grad, {gradients, own}, of_states, activations, of_tokens,
                        work);
      if (head.lagged() && i % apart == 0) {
        AddScaled(size, 1.0f, of_states.anchor, of_states.state);
        std::fill_n(of_states.anchor, size, 0.0f);
      }
    }
  }
  if (of_states.target != nullptr) AddScaled(size, 1.0f, of_states.target, of_states.state);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(BackwardTask);

void memory_backward_task(const MemoryProblem& problem, const MemoryRun& run, int64_t head,
                          const ConstMatrix& out_grad, const float* saved,
                          const MemoryGradients& gradients, const MemoryTaskGradients& own) {
  HWY_DYNAMIC_DISPATCH(BackwardTask)
  (problem, run, head, out_grad, saved, gradients, own);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
