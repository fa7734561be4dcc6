#include "ops/fast_weight_memory.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"
#include "ops/replay.h"
#include "tensor/memory.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "fast_weight_memory";
static_assert(kMemoryMiniBatch == kExactStep, "anchors lie where journals fold");

// Titans' rule of a memory, or one that does nothing.
TitansRule titans_rule(const FastWeightMemoryOptions& options) {
  const auto* rule = std::get_if<TitansRule>(&options.rule);
  return rule != nullptr ? *rule : TitansRule{};
}

bool is_ttt(const FastWeightMemoryOptions& options) {
  return std::holds_alternative<TttRule>(options.rule);
}

// Rows between anchors.
int64_t interval_of(const FastWeightMemoryOptions& options) {
  const int64_t interval = titans_rule(options).read_interval;
  return interval > 0 ? interval : kExactStep;
}

// ---- inputs ----

MemoryShape memory_shape(const FastWeightMemoryOptions& options) {
  require(options.heads > 0 && options.head_dim > 0 && options.depth >= 1 &&
              options.depth <= kMemoryDepth && (options.depth == 1 || options.hidden_dim > 0),
          kWhere, "impossible sizes: {} heads of {}, {} layers of {}", options.heads,
          options.head_dim, options.depth, options.hidden_dim);
  require(options.mini_batch > 0 && kMemoryMiniBatch % options.mini_batch == 0, kWhere,
          "mini-batches of {} do not divide {}", options.mini_batch, kMemoryMiniBatch);
  const TitansRule rule = titans_rule(options);
  const int64_t interval = rule.read_interval;
  require(interval == 0 || (interval > 0 && interval % kMemoryMiniBatch == 0 &&
                            kMemoryGroup * options.mini_batch % interval == 0),
          kWhere, "{} tokens between the weights that are read, with mini-batches of {}", interval,
          options.mini_batch);
  require(rule.error_limit >= 0, kWhere, "an error limit of {}", rule.error_limit);
  MemoryShape shape;
  shape.depth = options.depth;
  shape.head_dim = options.head_dim;
  shape.hidden_dim = options.depth > 1 ? options.hidden_dim : 0;
  shape.bias = is_ttt(options);
  shape.momentum = rule.momentum;
  shape.forgetting = rule.forgetting;
  return shape;
}

ConstMatrix checked_rows(const Tensor& tensor, const char* name, int64_t rows, int64_t columns) {
  require(tensor.defined() && tensor.shape().size() == 2 && tensor.rows() == rows &&
              tensor.columns() == columns,
          kWhere, "{} has shape {}, not [{}, {}]", name, tensor.shape(), rows, columns);
  return {tensor.data(), tensor.row_stride()};
}

const float* checked_parameter(const Tensor& tensor, const char* name, int64_t size) {
  require(tensor.defined() && tensor.size() == size && tensor.contiguous(), kWhere,
          "{} has shape {}, not {} numbers", name, tensor.shape(), size);
  return tensor.data();
}

// Copies between the parameters of the memory, one tensor per layer, and states of all heads, where
// the layers of a head lie together. transfer(parameter, its place in the states, count) is called
// for each piece of a head.
template <typename Transfer>
void for_each_piece(const MemoryShape& shape, int64_t heads, int64_t layer, bool bias,
                    const Transfer& transfer) {
  const int64_t count = bias ? shape.out(layer) : shape.weight_size(layer);
  const int64_t offset = bias ? shape.bias_at(layer) : shape.weight_at(layer);
  for (int64_t h = 0; h < heads; ++h) {
    transfer(h * count, h * shape.state_size() + offset, count);
  }
}

Tensor initial_states(const MemoryShape& shape, const FastWeightMemoryInputs& inputs,
                      int64_t heads) {
  const Tensor states = Tensor::zeros({heads, shape.state_size()});
  PooledVector<RowCopy> copies;
  for (int64_t l = 0; l < shape.depth; ++l) {
    for (const bool bias : {false, true}) {
      if (bias && !shape.bias) continue;
      const float* from = (bias ? inputs.biases : inputs.weights)[static_cast<size_t>(l)].data();
      for_each_piece(shape, heads, l, bias, [&](int64_t at, int64_t place, int64_t count) {
        copies.push_back(
            {from + at, states.data() + place, static_cast<size_t>(count) * sizeof(float)});
      });
    }
  }
  memory().copy(copies);
  return states;
}

// tau of token_idx; undefined if that is.
Tensor place_weights(const Tensor& token_idx) {
  if (!token_idx.defined()) return {};
  PooledVector<float> tau = token_idx.read();
  for (size_t i = 0; i < tau.size(); ++i) {
    tau[i] = std::max(0.0f, 1 / static_cast<float>(i + 1) + tau[i]);
  }
  return Tensor::from(tau, token_idx.shape());
}

MemoryProblem make_problem(const FastWeightMemoryInputs& inputs,
                           const FastWeightMemoryOptions& options, const CheckedBatch& batch,
                           const Tensor& tau) {
  MemoryProblem problem;
  problem.shape = memory_shape(options);
  problem.heads = options.heads;
  problem.mini_batch = options.mini_batch;
  problem.interval = interval_of(options);
  problem.rule = options.rule;
  problem.rows = batch.rows();
  const int64_t rows = batch.rows(), width = options.heads * options.head_dim;
  problem.q = checked_rows(inputs.q, "q", rows, width);
  problem.k = checked_rows(inputs.k, "k", rows, width);
  problem.v = checked_rows(inputs.v, "v", rows, width);
  problem.theta = checked_rows(inputs.theta, "theta", rows, options.heads);
  const MemoryShape& shape = problem.shape;
  if (shape.momentum) problem.eta = checked_rows(inputs.eta, "eta", rows, options.heads);
  if (shape.forgetting) problem.alpha = checked_rows(inputs.alpha, "alpha", rows, options.heads);
  require(!tau.defined() || is_ttt(options), kWhere, "token_idx without TTT's rule");
  if (is_ttt(options)) {
    if (tau.defined()) problem.tau = checked_parameter(tau, "token_idx", options.mini_batch);
    problem.norm_weight = checked_parameter(inputs.norm_weight, "norm_weight", width);
    problem.norm_bias = checked_parameter(inputs.norm_bias, "norm_bias", width);
  }
  const auto depth = static_cast<size_t>(options.depth);
  require(inputs.weights.size() == depth && inputs.biases.size() == (shape.bias ? depth : 0),
          kWhere, "{} weights and {} biases for {} layers", inputs.weights.size(),
          inputs.biases.size(), depth);
  const bool to_start = shape.forgetting && titans_rule(options).forget_to_start;
  for (size_t l = 0; l < depth; ++l) {
    const auto layer = static_cast<int64_t>(l);
    const float* weight =
        checked_parameter(inputs.weights[l], "weights", options.heads * shape.weight_size(layer));
    if (to_start) problem.target[l] = weight;
    if (!shape.bias) continue;
    checked_parameter(inputs.biases[l], "biases", options.heads * shape.out(layer));
  }
  return problem;
}

// ---- backward ----

void add_initial_gradient(const MemoryShape& shape, int64_t heads, const Tensor& states,
                          int64_t layer, bool bias, const Tensor& parameter) {
  if (!parameter.requires_grad()) return;
  const GradTarget target = parameter.grad_target();
  for_each_piece(shape, heads, layer, bias, [&](int64_t at, int64_t place, int64_t count) {
    float* to = target.tensor.data() + at;
    float* from = states.data() + place;
    if (target.accumulate) {
      memory().add({from, count}, {to, count}, 1, count);
    } else {
      const RowCopy piece{from, to, static_cast<size_t>(count) * sizeof(float)};
      memory().copy({&piece, 1});
    }
  });
}

void record_backward(Tape& tape, const FastWeightMemoryInputs& inputs, const MemoryProblem& problem,
                     PooledVector<MemoryRun> runs, const Tensor& out, Tensor initial, Tensor tau,
                     Tensor saved) {
  tape.record([inputs, problem, runs = std::move(runs), out, initial = std::move(initial),
               tau = std::move(tau), saved = std::move(saved)] {
    if (!out.has_grad()) return;
    const Tensor out_grad = out.grad();
    MemoryGradients gradients;
    gradients.q = input_gradient(inputs.q);
    gradients.k = input_gradient(inputs.k);
    gradients.v = input_gradient(inputs.v);
    gradients.theta = input_gradient(inputs.theta);
    if (problem.shape.momentum) gradients.eta = input_gradient(inputs.eta);
    if (problem.shape.forgetting) gradients.alpha = input_gradient(inputs.alpha);
    if (problem.norm_weight != nullptr) {
      gradients.norm_weight = input_gradient(inputs.norm_weight);
      gradients.norm_bias = input_gradient(inputs.norm_bias);
    }
    const Tensor states = Tensor::empty(initial.shape());
    gradients.initial = {states.data(), states.row_stride(), false};
    Tensor tau_grad;
    if (tau.defined()) {
      tau_grad = Tensor::empty(tau.shape());
      gradients.tau = {tau_grad.data(), tau_grad.row_stride(), false};
    }
    backend().fast_weight_memory().backward(problem, runs, input_matrix(out_grad),
                                            saved.defined() ? saved.data() : nullptr, gradients);
    for (size_t l = 0; l < inputs.weights.size(); ++l) {
      const auto layer = static_cast<int64_t>(l);
      add_initial_gradient(problem.shape, problem.heads, states, layer, false, inputs.weights[l]);
      if (!problem.shape.bias) continue;
      add_initial_gradient(problem.shape, problem.heads, states, layer, true, inputs.biases[l]);
    }
    if (tau.defined() && inputs.token_idx.requires_grad()) {
      const PooledVector<float> weights = tau.read();
      PooledVector<float> own = tau_grad.read();
      for (size_t i = 0; i < own.size(); ++i) {
        if (weights[i] <= 0) own[i] = 0;
      }
      inputs.token_idx.give_grad(Tensor::from(own, tau.shape()));
    }
  });
}

// ---- states ----

// The runs of the nodes of trees at a depth, and the folds that they start from.
void add_nodes(std::span<const std::span<const ReplayStep>> trees, int64_t depth,
               PooledVector<ReplayFold>& folds, PooledVector<MemoryRun>& runs) {
  for (const std::span<const ReplayStep> steps : trees) {
    for (const ReplayStep& step : steps) {
      if (step.fold.to != nullptr && step.tokens.front().depth == depth) {
        folds.push_back(step.fold);
      }
      for (const ReplayToken& token : step.tokens) {
        if (token.depth != depth) continue;
        runs.push_back(
            {step.anchor(), token.path, token.input_row, 1, {&token.row, 1}, nullptr, 0});
      }
    }
  }
}

// Sequences with a state: a chain is one run, a tree one run per node, those of the same depth at
// the same time.
void run_stateful(const MemoryProblem& problem, Replay& replay, const Matrix& out) {
  FastWeightMemoryKernels& kernels = backend().fast_weight_memory();
  replay.catch_up([&](std::span<const ReplayFold> folds) { kernels.fold(problem, folds); });
  PooledVector<MemoryRun> runs;
  for (const ReplayRun& run : replay.runs(Replay::Kind::chains)) {
    runs.push_back({run.anchor, run.path, run.first_row, run.length, run.rows,
                    run.snapshots.empty() ? nullptr : run.snapshots.back().state, 0});
  }
  const std::span<const std::span<const ReplayStep>> trees = replay.steps(Replay::Kind::trees);
  PooledVector<ReplayFold> folds;
  for (int64_t depth = 0;; ++depth) {
    add_nodes(trees, depth, folds, runs);
    if (runs.empty()) return;
    if (!folds.empty()) kernels.fold(problem, folds);
    kernels.forward(problem, runs, out, nullptr);
    folds.clear();
    runs.clear();
  }
}

}  // namespace

JournalShape fast_weight_memory_journal(const FastWeightMemoryOptions& options) {
  const MemoryShape memory = memory_shape(options);
  JournalShape shape;
  shape.name = "memory";
  shape.row_width = options.heads * memory.row_size();
  shape.anchor_size = options.heads * memory.state_size();
  shape.fold_interval = interval_of(options);
  return shape;
}

double fast_weight_memory_surprise(const FastWeightMemoryOptions& options, const float* row) {
  const MemoryShape shape = memory_shape(options);
  const int64_t last = shape.depth - 1;
  double total = 0;
  for (int64_t head = 0; head < options.heads; ++head) {
    const float* own = row + head * shape.row_size();
    const auto square = [own](int64_t from, int64_t count) {
      double sum = 0;
      for (int64_t c = from; c < from + count; ++c) sum += double{own[c]} * double{own[c]};
      return sum;
    };
    const double length = std::sqrt(square(shape.error_at(last), shape.out(last)));
    const double input = square(shape.input_at(last), shape.in(last));
    total += titans_rule(options).online_errors ? length * std::max(1.0, input) : length;
  }
  return total / static_cast<double>(options.heads);
}

int64_t fast_weight_memory_size(const FastWeightMemoryOptions& options) {
  return options.heads * memory_shape(options).state_size();
}

double fast_weight_memory_cost(const FastWeightMemoryOptions& options) {
  // Products with the weights of a layer: for the key, its back-signal (not of the first layer),
  // the query, the update; with momentum a query and an update more, and a query of the start where
  // that is forgotten towards. Online errors ask the last layer's momentum and start for keys, too.
  const TitansRule rule = titans_rule(options);
  const int asked = (rule.momentum ? 1 : 0) + (rule.forgetting && rule.forget_to_start ? 1 : 0);
  const int each = 3 + (rule.momentum ? 1 : 0) + asked;
  double total = 0;
  for (int64_t l = 0; l < options.depth; ++l) {
    const bool online = rule.online_errors && l + 1 == options.depth;
    const int products = each + (l > 0 ? 1 : 0) + (online ? asked : 0);
    const int64_t in = options.in(l), out = options.out(l);
    total += 2 * products * static_cast<double>(in * out);
  }
  return total * static_cast<double>(options.heads);
}

Tensor fast_weight_memory(const Context& context, const FastWeightMemoryInputs& inputs,
                          const FastWeightMemoryOptions& options, const CheckedBatch& batch,
                          JournalSlot slot) {
  const Tensor tau = place_weights(inputs.token_idx);
  MemoryProblem problem = make_problem(inputs, options, batch, tau);
  // What a fresh sequence starts from is put together only where one does.
  const bool starts =
      std::any_of(batch.segments().begin(), batch.segments().end(), [&](const Segment& segment) {
        return segment.state == nullptr ||
               segment.state->journal(slot.layer, slot.index).anchor() == nullptr;
      });
  Tensor initial;
  if (starts) {
    initial = initial_states(problem.shape, inputs, options.heads);
    problem.initial = initial.data();
  }
  const Tensor out = Tensor::empty({batch.rows(), options.heads * options.head_dim});
  const Matrix out_rows = output_matrix(out);
  bool record = needs_gradient(context, out, inputs.q, inputs.k, inputs.v, inputs.theta);
  const auto also = [&](const Tensor& input) {
    if (input.defined()) record |= needs_gradient(context, out, input);
  };
  for (const Tensor* input :
       {&inputs.eta, &inputs.alpha, &inputs.token_idx, &inputs.norm_weight, &inputs.norm_bias}) {
    also(*input);
  }
  for (const Tensor& weight : inputs.weights) also(weight);
  for (const Tensor& bias : inputs.biases) also(bias);

  check_recurrence(kWhere, batch, record);

  PooledVector<MemoryRun> fresh;
  int64_t saved_states = 0;
  for (const Segment& segment : batch.segments()) {
    if (segment.length == 0 || segment.state != nullptr) continue;
    fresh.push_back({nullptr, {}, segment.first_row, segment.length, {}, nullptr, saved_states});
    const int64_t mini_batches = (segment.length + options.mini_batch - 1) / options.mini_batch;
    saved_states += (mini_batches - 1) / kMemoryGroup;
  }
  Tensor saved;
  if (record && saved_states > 0) {
    saved = Tensor::empty({saved_states, options.heads * problem.shape.state_size()});
  }
  FastWeightMemoryKernels& kernels = backend().fast_weight_memory();
  if (!fresh.empty()) {
    kernels.forward(problem, fresh, out_rows, saved.defined() ? saved.data() : nullptr);
  }
  Replay replay(batch, slot);
  run_stateful(problem, replay, out_rows);
  if (record) {
    record_backward(*context.tape, inputs, problem, std::move(fresh), out, initial, tau,
                    std::move(saved));
  }
  return out;
}

}  // namespace pronghorn
