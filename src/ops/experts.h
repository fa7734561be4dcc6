// Mixtures of experts (arXiv 1701.06538, 2101.03961): a router gives each row to the top_k experts
// that score highest, or experts choose rows (arXiv 2202.09368), rows are sorted by expert, each
// expert computes its rows as one matrix product, and the results of a row are added up, each times
// the router's weight. No row is ever dropped.
//
// A row's experts, weights and result are computed from that row alone: they are the same bits
// whichever other rows its experts are given, wherever linear() promises the same of products.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tensor/tape.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace pronghorn {

// How logits z [experts] become a choice and weights.
//   scores     s = softmax(z), or sigmoid(z)
//   choice     the top_k highest of s + correction, the lower index first among equal ones
//   weights    s of the chosen, without the correction; normalised: divided by their sum
// Normalised softmax is the softmax over the chosen logits alone.
struct RouterOptions {
  int64_t experts = 0, top_k = 0;
  bool sigmoid = false;
  bool normalize = true;
  float scale = 1;  // of the weights
  // Added to a sum of sigmoids that is divided by; that of the reference of arXiv 2412.19437.
  double least_sum = 1e-20;
  // The experts are that many equal groups, and only those of the top_groups best are chosen from.
  // A group is as good as its best expert (arXiv 2405.04434), with sigmoid as the sum of its two
  // best (arXiv 2412.19437).
  int64_t groups = 1, top_groups = 1;
};

struct Routing {
  // [rows, slots], slots being top_k, best first; or where experts choose, as many as the row has
  // that is given to most, in the order of their numbers and -1 after them.
  std::vector<int32_t> experts;
  Tensor weights;  // [rows, slots], 0 where there is no expert
};

// logits [rows, experts]; correction [experts] or undefined. In a step of training the backward
// pass adds to the correction's gradient how many rows more than the mean each expert was given.
// Throws Error for shapes and options that do not fit.
Routing route(const Context& context, const Tensor& logits, const Tensor& correction,
              const RouterOptions& options);

// The weights of the experts that rows are given to [rows, slots]. experts: as in Routing. Their
// gradient goes to the logits.
Tensor expert_weights(const Context& context, const Tensor& logits,
                      std::span<const int32_t> experts, const RouterOptions& options);

// Expert choice (arXiv 2202.09368): with a tape each expert takes the C = ceil(rows top_k /
// experts) rows of the batch that score highest with it, the earlier row first among equal ones. So
// all experts are given alike, and a row goes to none, some or all. What a row gets depends on the
// others there; without a tape it does not, and a row is given to each expert whose score is at
// least the expert's threshold.
//
// threshold [experts]: in a step of training the backward pass adds to its gradient how far it is
// above the least score that the expert took, times `sequences`, how many are in the batch. A
// threshold that follows the average of such scores takes about C rows. No correction, no groups.
Routing route_by_experts(const Context& context, const Tensor& logits, const Tensor& threshold,
                         int64_t sequences, const RouterOptions& options);

// Its choice without a tape, and that with one. experts: as in Routing; least: C-th highest scores.
std::vector<int32_t> experts_above(const Tensor& logits, const Tensor& threshold,
                                   const RouterOptions& options);
struct RowsOfExperts {
  std::vector<int32_t> experts;
  std::vector<double> least;
};
RowsOfExperts highest_rows(const Tensor& logits, const RouterOptions& options);

// Rows of a batch in the order of their experts: those of expert e are [begins[e], begins[e + 1]).
struct ExpertRows {
  std::vector<int32_t> rows;    // of the batch, at each place
  std::vector<int32_t> places;  // [rows of the batch, slots], -1 where there is no expert
  std::vector<int64_t> begins;  // [experts + 1]

  std::vector<int64_t> counts() const;
};
// experts [rows, slots] of `count`, -1 for none.
ExpertRows sort_by_expert(std::span<const int32_t> experts, int64_t count, int64_t slots);

// Rows [begins[e], begins[e + 1]) of y are those of x times weights[e]^T plus biases[e]. x [places,
// in]; the weights have one shape; biases: one each, or none. Adapters of the weights, if any, must
// have one rank and factor.
Tensor grouped_linear(const Context& context, const Tensor& x, std::span<const Weight> weights,
                      std::span<const Tensor> biases, std::span<const int64_t> begins);

// y[i] = sum over s of weights[i][s] x[places[i][s]]. weights [rows, slots]; places: row-major,
// each row of x at most once, -1 for none. The sum is taken in the order of s.
Tensor combine_rows(const Context& context, const Tensor& x, const Tensor& weights,
                    std::span<const int32_t> places);

// E sum over e of f_e P_e, [1]: f_e the share of the choices that fell on expert e, P_e the mean of
// its probability, scores divided by their sum (arXiv 2101.03961, equation 4, for top_k choices). 1
// where all are given alike; the gradient comes from P.
Tensor balance_loss(const Context& context, const Tensor& logits, const Routing& routing,
                    const RouterOptions& options);

// The mean of logsumexp(z)^2 over the rows, [1] (arXiv 2202.08906, equation 5).
Tensor router_z_loss(const Context& context, const Tensor& logits);

}  // namespace pronghorn
