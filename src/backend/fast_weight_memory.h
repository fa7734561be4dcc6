// Fast-weight memories (kernel family D): a small network per head whose weights are the state, and
// learn by gradient steps while a sequence is read. Two rules: TTT-Linear's and TTT-MLP's (arXiv
// 2407.04620), and that of the neural memory of Titans (arXiv 2501.00663).
//
// The memory is M(x) = Z_depth or, with TTT, x + LN(Z_depth), where Z_1 = x W_1 + b_1 and
// Z_l = gelu(Z_{l-1}) W_l + b_l (tanh form of gelu; b with TTT). Of token j, with all weights W as
// they were at the start of its mini-batch, let a_jl be the input of layer l for key k_j and e_jl
// the gradient for Z_l of the loss, c / 2 |M(k_j) - v_j|^2 with c = 1 (TTT) or 2 (Titans): the
// gradient for W_l is a_jl^T e_jl, rank one. With momentum S, learning rate theta, decay of
// momentum eta and forgetting alpha,
//   S_t = eta_t S_{t-1} - theta_t a_t^T e_t    M_t = (1 - alpha_t) M_{t-1} + alpha_t M_* + S_t
// with M_* what is forgotten towards (zero, or the weights of a fresh sequence), which sums up to
//   M_t = beta_t M_0 + (1 - beta_t) M_* + f_t S_0 - tau_t sum_{j <= t} G_tj a_j^T e_j
//   S_t = m_t S_0 - sum_{j <= t} n_tj a_j^T e_j
// with M_0, S_0 at the start of the mini-batch and, from beta_0 = m_0 = 1 and f_0 = 0, recurrences
// without a division,
//   beta_t = (1 - alpha_t) beta_{t-1},  m_t = eta_t m_{t-1},  f_t = (1 - alpha_t) f_{t-1} + m_t
//   n_tj = eta_t n_{t-1,j}, n_tt = theta_t,  G_tj = (1 - alpha_t) G_{t-1,j} + n_tj
// tau_t, a weight of the place in the mini-batch, is TTT's, which has neither momentum nor
// forgetting; elsewhere it is 1. With `online_errors` the last layer answers k_j with M_{j-1}
// instead of M_0 when its error is taken (the inputs of the layer and what goes back through it
// stay those of W), and e is divided by max(1, |a_j|^2): so a memory of one layer with unit keys
// learns as with mini-batches of one token. A token reads o_t = M_t(q_t), layer by layer (x_1 = q,
// x_l = gelu(h_{l-1})):
//   h_l = beta_t x_l W_l + (1 - beta_t) x_l W_*l + f_t x_l S_l
//         - tau_t sum_{j <= t} G_tj (x_l . a_jl) e_jl
// so that no weights of single tokens are ever formed. This is the only form there is: a token is
// computed in the same order whether it comes alone, in a step or in a long segment.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <variant>

#include "backend/operands.h"
#include "backend/replay.h"

namespace pronghorn {

constexpr int64_t kMemoryDepth = 4;       // most layers
constexpr int64_t kMemoryMiniBatch = 16;  // longest mini-batch, and fewest rows between anchors

// How a memory of Titans learns. The paper's rule: momentum, forgetting, nothing else.
struct TitansRule {
  bool momentum = false;    // takes eta
  bool forgetting = false;  // takes alpha
  // What is forgotten gives way to what a fresh sequence starts from; else to zero, where a memory
  // of two layers and more gets no gradient to learn from.
  bool forget_to_start = false;
  // The last layer's errors are those at the weights that the token before left (online gradient
  // descent), as in the delta rule, and not at those of the mini-batch's start; for an input a of
  // the layer they are divided by max(1, |a|^2) (normalised LMS), so that no step of theta up to a
  // half overshoots. The layers before learn by mini-batches all the same.
  bool online_errors = false;
  // Where |M(k) - v| is larger, the loss grows linearly (Huber), so that steps stay bounded; 0:
  // nowhere.
  float error_limit = 0;
  float hidden_rate = 1;  // learning rate of the layers before the last, in theta
  // Tokens read the weights as they were at the last multiple of this many tokens of a sequence (of
  // 16, at most kMemoryGroup mini-batches); 0: as they are.
  int64_t read_interval = 0;
};

// How a memory of TTT learns: x + LN(Z), biases, weights of places.
struct TttRule {
  float norm_epsilon = 1e-6f;  // of LN
};

using MemoryRule = std::variant<TitansRule, TttRule>;

// Sizes of the memory of one head, and where its numbers lie.
struct MemoryShape {
  int64_t depth = 1;
  int64_t head_dim = 64;   // of keys, values and queries
  int64_t hidden_dim = 0;  // between layers
  bool bias = false;       // b_l, with TTT
  // With Titans, where the rule has them.
  bool momentum = false;
  bool forgetting = false;

  int64_t in(int64_t layer) const { return layer == 0 ? head_dim : hidden_dim; }
  int64_t out(int64_t layer) const { return layer == depth - 1 ? head_dim : hidden_dim; }
  int64_t widest() const { return head_dim > hidden_dim ? head_dim : hidden_dim; }

  // A state is, for each layer, W, then S with momentum or b with a bias.
  int64_t weight_size(int64_t layer) const {
    const int64_t rows = in(layer), columns = out(layer);
    return rows * columns;
  }
  int64_t weight_at(int64_t layer) const {
    int64_t offset = 0;
    for (int64_t l = 0; l < layer; ++l) {
      offset += weight_size(l) * (momentum ? 2 : 1) + (bias ? out(l) : 0);
    }
    return offset;
  }
  int64_t momentum_at(int64_t layer) const { return weight_at(layer) + weight_size(layer); }
  int64_t bias_at(int64_t layer) const { return weight_at(layer) + weight_size(layer); }
  int64_t state_size() const { return weight_at(depth); }

  // A row of one head is [a_1 | e_1 | a_2 | e_2 ... | theta | eta | alpha], the last two only where
  // they are used.
  int64_t input_at(int64_t layer) const {
    int64_t offset = 0;
    for (int64_t l = 0; l < layer; ++l) offset += in(l) + out(l);
    return offset;
  }
  int64_t error_at(int64_t layer) const { return input_at(layer) + in(layer); }
  int64_t gates_at() const { return input_at(depth); }
  int64_t row_size() const { return gates_at() + 1 + (momentum ? 1 : 0) + (forgetting ? 1 : 0); }
};

// The sizes and inputs of one call; rows are those of the batch.
struct MemoryProblem {
  MemoryShape shape;
  MemoryRule rule;
  int64_t heads = 1;
  int64_t mini_batch = kMemoryMiniBatch;  // divides kMemoryMiniBatch
  // Rows between anchors, a multiple of kMemoryMiniBatch; the rule's read_interval if it has one,
  // and then kMemoryGroup mini-batches are a multiple of it.
  int64_t interval = kMemoryMiniBatch;
  ConstMatrix q, k, v;                 // [rows, heads head_dim]
  ConstMatrix theta, eta, alpha;       // [rows, heads]; eta with momentum, alpha with forgetting
  const float* tau = nullptr;          // [mini_batch], with TTT; null: 1
  const float* norm_weight = nullptr;  // [heads, head_dim], with TTT
  const float* norm_bias = nullptr;
  const float* initial = nullptr;  // [heads, state_size]: the state of a fresh sequence
  // Of each layer, [heads, in, out]: what is forgotten towards; null: zero. backward() takes these
  // for the numbers of `initial`, whose gradient has them in it.
  const float* target[kMemoryDepth] = {};
  int64_t rows = 0;
};

// Mini-batches between two states that forward() keeps for backward(): the states between are
// computed again, from scratch that is as many states long.
constexpr int64_t kMemoryGroup = 8;

// Rows first_row ... first_row + length - 1 of one sequence.
struct MemoryRun {
  const float* anchor = nullptr;       // [heads, state_size] at a multiple of `interval`
  std::span<const float* const> path;  // fewer than `interval` rows since, oldest first
  int64_t first_row = 0;
  int64_t length = 0;
  // Where the rows of the last rows.size() tokens go; filled whole.
  std::span<float* const> rows;
  // If set, gets the state after the last multiple of `interval` that is not after the last token;
  // there must be one after the anchor.
  float* final = nullptr;
  int64_t first_saved = 0;  // states kept for the runs before this one
};

using MemoryFold = ReplayFold;

// Where gradients go; data null: not wanted.
struct MemoryGradients {
  Matrix q, k, v, theta, eta, alpha;
  Matrix tau, norm_weight, norm_bias;  // one row: [mini_batch], [heads head_dim]
  Matrix initial;                      // one row [heads state_size]
};

class FastWeightMemoryKernels {
 public:
  virtual ~FastWeightMemoryKernels() = default;

  // out [rows, heads head_dim]. saved: null, or [states, heads, state_size] where the states before
  // mini-batches kMemoryGroup, 2 kMemoryGroup, ... of each run are kept. A token's bits depend on
  // nothing but the anchor before it and the tokens since.
  virtual void forward(const MemoryProblem& problem, std::span<const MemoryRun> runs,
                       const Matrix& out, float* saved) = 0;

  virtual void fold(const MemoryProblem& problem, std::span<const MemoryFold> folds) = 0;

  // The gradients of everything, from out's. Runs must start from problem.initial and have no path;
  // `saved` is what forward() left for the same runs.
  virtual void backward(const MemoryProblem& problem, std::span<const MemoryRun> runs,
                        const ConstMatrix& out_grad, const float* saved,
                        const MemoryGradients& gradients) = 0;
};

std::unique_ptr<FastWeightMemoryKernels> make_cpu_fast_weight_memory_kernels();

}  // namespace pronghorn
