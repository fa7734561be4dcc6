#include "ops/fast_weight_memory.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <variant>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"

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
          kWhere, "{} has shape {}, not [{}, {}]", name, shape_string(tensor.shape()), rows,
          columns);
  return {tensor.data(), tensor.row_stride()};
}

const float* checked_parameter(const Tensor& tensor, const char* name, int64_t size) {
  require(tensor.defined() && tensor.size() == size && tensor.contiguous(), kWhere,
          "{} has shape {}, not {} numbers", name, shape_string(tensor.shape()), size);
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
  for (int64_t l = 0; l < shape.depth; ++l) {
    for (const bool bias : {false, true}) {
      if (bias && !shape.bias) continue;
      const float* from = (bias ? inputs.biases : inputs.weights)[static_cast<size_t>(l)].data();
      for_each_piece(shape, heads, l, bias, [&](int64_t at, int64_t place, int64_t count) {
        std::memcpy(states.data() + place, from + at, static_cast<size_t>(count) * sizeof(float));
      });
    }
  }
  return states;
}

// tau of token_idx; undefined if that is.
Tensor place_weights(const Tensor& token_idx) {
  if (!token_idx.defined()) return {};
  const Tensor tau = Tensor::empty(token_idx.shape());
  for (int64_t i = 0; i < tau.size(); ++i) {
    tau.data()[i] = std::max(0.0f, 1 / static_cast<float>(i + 1) + token_idx.data()[i]);
  }
  return tau;
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
    const float* from = states.data() + place;
    for (int64_t i = 0; i < count; ++i) to[i] = target.accumulate ? to[i] + from[i] : from[i];
  });
}

void record_backward(Tape& tape, const FastWeightMemoryInputs& inputs, const MemoryProblem& problem,
                     std::vector<MemoryRun> runs, const Tensor& out, Tensor initial, Tensor tau,
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
      const Matrix to = input_gradient(inputs.token_idx);
      for (int64_t i = 0; i < tau.size(); ++i) {
        const float own = tau.data()[i] > 0 ? tau_grad.data()[i] : 0.0f;
        to.data[i] = to.accumulate ? to.data[i] + own : own;
      }
    }
  });
}

// ---- states ----

// Folds until every journal's anchor is fewer than an interval behind its length.
void catch_up(const MemoryProblem& problem, const CheckedBatch& batch, JournalSlot slot) {
  for (;;) {
    std::vector<Journal*> late;
    std::vector<std::vector<const float*>> rows;
    for (const Segment& segment : batch.segments()) {
      if (segment.state == nullptr || segment.length == 0) continue;
      Journal& journal = segment.state->journal(slot.layer, slot.index);
      if (journal.length() - journal.anchor_row() < problem.interval) continue;
      late.push_back(&journal);
      std::vector<const float*>& own = rows.emplace_back();
      for (int64_t i = 0; i < problem.interval; ++i) {
        own.push_back(journal.row(journal.anchor_row() + i));
      }
    }
    if (late.empty()) return;
    std::vector<MemoryFold> folds;
    for (size_t i = 0; i < late.size(); ++i) {
      folds.push_back({late[i]->anchor(), rows[i], late[i]->begin_anchor()});
    }
    backend().fast_weight_memory().fold(problem, folds);
    for (Journal* journal : late) {
      journal->commit_anchor(journal->anchor_row() + problem.interval, true);
    }
  }
}

// One segment with a state: a chain is one run, a tree a run a node, those of the same depth at the
// same time.
class StatefulSegment {
 public:
  StatefulSegment(const CheckedBatch& batch, const Segment& segment, Journal& journal)
      : journal_(journal),
        interval_(journal.shape().fold_interval),
        segment_(segment),
        base_(journal.length()),
        anchor_row_(journal.anchor_row()),
        positions_(batch.positions(segment)) {
    if (!segment.parents.empty()) {
      plan_tree();
    } else if (segment.length > kExactStep &&
               (base_ + segment.length) / interval_ * interval_ > anchor_row_) {
      plan_long();
    } else {
      plan_step();
    }
  }

  size_t waves() const { return waves_.size(); }

  // What wave number `wave` needs folded before it runs, and its runs. Spans stay valid.
  void add_wave(size_t wave, std::vector<MemoryFold>& folds, std::vector<MemoryRun>& runs) {
    if (wave >= waves_.size()) return;
    for (const size_t i : waves_[wave]) {
      Token& token = tokens_[i];
      if (token.parent >= 0 && token.path.empty() && tree()) {
        Token& above = tokens_[static_cast<size_t>(token.parent)];
        if (!above.folded) {
          above.folded = std::make_unique<Storage>(
              static_cast<size_t>(journal_.shape().anchor_size) * sizeof(float));
          above.whole = above.path;
          above.whole.push_back(above.rows.front());
          folds.push_back(
              {above.anchor, above.whole, reinterpret_cast<float*>(above.folded->data())});
        }
        token.anchor = reinterpret_cast<const float*>(above.folded->data());
      } else if (token.parent >= 0) {
        token.anchor = tokens_[static_cast<size_t>(token.parent)].anchor;
      }
      runs.push_back(
          {token.anchor, token.path, token.first_row, token.length, token.rows, token.final, 0});
    }
  }

  // Once all waves have run.
  void commit() {
    if (tree()) {
      journal_.set_tree({segment_.parents.begin(), segment_.parents.end()});
      return;
    }
    if (kept_) {
      journal_.skip(positions_.first(static_cast<size_t>(new_anchor_row_ - base_)));
      journal_.commit_anchor(new_anchor_row_, false);
      const int64_t width = journal_.shape().row_width;
      const auto count = static_cast<int64_t>(tokens_.front().rows.size());
      const int64_t first = journal_.append(positions_.last(static_cast<size_t>(count)));
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(journal_.mutable_row(first + i), tokens_.front().rows[static_cast<size_t>(i)],
                    static_cast<size_t>(width) * sizeof(float));
      }
    } else if (new_anchor_row_ >= 0) {
      journal_.commit_anchor(new_anchor_row_, true);
    }
  }

 private:
  struct Token {  // or all tokens of a chain
    int64_t parent = -1;
    int64_t index = 0;  // in its sequence
    int64_t first_row = 0, length = 1;
    const float* anchor = nullptr;
    std::vector<const float*> path;
    std::vector<float*> rows;
    float* final = nullptr;
    std::vector<const float*> whole;  // rows of the fold behind it
    std::unique_ptr<Storage> folded;
  };

  bool tree() const { return !segment_.parents.empty(); }

  std::vector<const float*> committed_rows() const {
    std::vector<const float*> rows;
    for (int64_t r = anchor_row_; r < base_; ++r) rows.push_back(journal_.row(r));
    return rows;
  }

  Token& chain() {
    Token& token = tokens_.emplace_back();
    token.first_row = segment_.first_row;
    token.length = segment_.length;
    token.anchor = journal_.anchor();
    waves_ = {{0}};
    return token;
  }

  void plan_step() {
    journal_.append(positions_);
    Token& token = chain();
    for (int64_t i = 0; i < segment_.length; ++i) {
      token.rows.push_back(journal_.mutable_row(base_ + i));
    }
    token.path = committed_rows();
    if (journal_.length() - anchor_row_ <= interval_) return;
    new_anchor_row_ = anchor_row_ + interval_;
    token.final = journal_.begin_anchor();
  }

  // The rows behind the last multiple of the interval are kept, and appended in the end.
  void plan_long() {
    Token& token = chain();
    token.path = committed_rows();
    const int64_t end = base_ + segment_.length, width = journal_.shape().row_width;
    new_anchor_row_ = end / interval_ * interval_;
    token.final = journal_.begin_anchor();
    kept_ = std::make_unique<Storage>(
        static_cast<size_t>(std::max<int64_t>(1, (end - new_anchor_row_) * width)) * sizeof(float));
    for (int64_t i = 0; i < end - new_anchor_row_; ++i) {
      token.rows.push_back(reinterpret_cast<float*>(kept_->data()) + i * width);
    }
  }

  void plan_tree() {
    journal_.append(positions_);
    std::vector<size_t> depths;
    tokens_.resize(segment_.parents.size());
    for (size_t i = 0; i < tokens_.size(); ++i) {
      const int64_t parent = segment_.parents[i];
      Token& token = tokens_[i];
      token.parent = parent;
      token.first_row = segment_.first_row + static_cast<int64_t>(i);
      token.rows = {journal_.mutable_row(base_ + static_cast<int64_t>(i))};
      depths.push_back(parent < 0 ? 0 : depths[static_cast<size_t>(parent)] + 1);
      waves_.resize(std::max(waves_.size(), depths.back() + 1));
      waves_[depths.back()].push_back(i);
    }
    for (Token& token : tokens_) {
      if (token.parent < 0) {
        token.index = base_;
        token.anchor = journal_.anchor();
        token.path = committed_rows();
        continue;
      }
      const Token& above = tokens_[static_cast<size_t>(token.parent)];
      token.index = above.index + 1;
      if (token.index % interval_ == 0) continue;
      token.path = above.path;
      token.path.push_back(above.rows.front());
    }
  }

  Journal& journal_;
  int64_t interval_;
  const Segment& segment_;
  int64_t base_, anchor_row_;
  std::span<const int32_t> positions_;
  std::vector<Token> tokens_;
  std::vector<std::vector<size_t>> waves_;
  int64_t new_anchor_row_ = -1;
  std::unique_ptr<Storage> kept_;
};

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

  std::vector<MemoryRun> fresh;
  std::vector<std::unique_ptr<StatefulSegment>> stateful;
  int64_t saved_states = 0;
  for (const Segment& segment : batch.segments()) {
    require(segment.mask == Mask::causal, kWhere, "a memory cannot see rows after its own");
    if (segment.length == 0) continue;
    if (segment.state != nullptr) {
      require(!record, kWhere, "segments with a state cannot be differentiated");
      continue;
    }
    fresh.push_back({nullptr, {}, segment.first_row, segment.length, {}, nullptr, saved_states});
    const int64_t mini_batches = (segment.length + options.mini_batch - 1) / options.mini_batch;
    saved_states += (mini_batches - 1) / kMemoryGroup;
  }
  catch_up(problem, batch, slot);
  for (const Segment& segment : batch.segments()) {
    if (segment.state == nullptr || segment.length == 0) continue;
    stateful.push_back(std::make_unique<StatefulSegment>(
        batch, segment, segment.state->journal(slot.layer, slot.index)));
  }

  Tensor saved;
  if (record && saved_states > 0) {
    saved = Tensor::empty({saved_states, options.heads * problem.shape.state_size()});
  }
  FastWeightMemoryKernels& kernels = backend().fast_weight_memory();
  if (!fresh.empty()) {
    kernels.forward(problem, fresh, out_rows, saved.defined() ? saved.data() : nullptr);
  }
  size_t waves = 0;
  for (const auto& segment : stateful) waves = std::max(waves, segment->waves());
  for (size_t wave = 0; wave < waves; ++wave) {
    std::vector<MemoryFold> folds;
    std::vector<MemoryRun> runs;
    for (const auto& segment : stateful) segment->add_wave(wave, folds, runs);
    if (!folds.empty()) kernels.fold(problem, folds);
    kernels.forward(problem, runs, out_rows, nullptr);
  }
  for (const auto& segment : stateful) segment->commit();
  if (record) {
    record_backward(*context.tape, inputs, problem, std::move(fresh), out, initial, tau,
                    std::move(saved));
  }
  return out;
}

}  // namespace pronghorn
