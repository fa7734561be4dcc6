// Subsampling, upsampling and bypass (SUBLLM, arXiv 2406.06571, section 3; mixture of depths, arXiv
// 2404.02258): which rows of each sequence enter a span of layers, with which weights, and how what
// comes out joins the others.
//
// A row has a score s. At inference a row enters iff s > 0, a decision of the token alone. In
// training the highest scores of each whole sequence enter, so that shapes do not depend on the
// data. The weight of a row is clamp(s, 0, 1) in SUBLLM, and s itself in a mixture of depths.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// Rows of a batch that enter a span.
struct RowSelection {
  std::vector<int32_t> rows;    // ascending
  std::vector<int64_t> counts;  // of each segment
  // Training: for each of `rows` the omitted row whose weight is subtracted from its own, -1 for
  // none. Empty at inference.
  std::vector<int32_t> penalties;
};

// Rows with a positive score. scores [rows, 1].
RowSelection select_positive(const Tensor& scores, const CheckedBatch& batch);

// The L = ceil(keep T) highest scores of each segment of T rows, the earlier row first among equal
// ones. The row at rank i < L is penalised by the one at rank L + i; reversed: by that at rank
// 2 L - 1 - i. Ranks beyond T stand for a weight of 0.
RowSelection select_highest(const Tensor& scores, const CheckedBatch& batch, double keep,
                            bool reversed);

// The batch of the selected rows: their original positions, and for trees the nearest selected
// ancestor as parent. A segment of which nothing is selected has length 0.
Batch selected_batch(const CheckedBatch& batch, const RowSelection& selection);

// x at the selected rows: [selected, columns].
Tensor gather_rows(const Context& context, const Tensor& x, std::span<const int32_t> rows);

// clamp(s, 0, 1) of each selected row, less that of its penalty: [selected, 1]. The gradient of a
// score outside [0, 1] is 0.
Tensor selected_weights(const Context& context, const Tensor& scores,
                        const RowSelection& selection);

// The mean over the rows of the binary cross-entropy of sigmoid(logits) with what was selected,
// [1]: of softplus(-z) at a selected row and softplus(z) at another (arXiv 2404.02258,
// section 3.5). logits [rows, 1], of at least one row.
Tensor selection_loss(const Context& context, const Tensor& logits, const RowSelection& selection);

// x with row rows[i] moved towards row i of y: x + bypass_scale (z - x) where z is
// weights[i] y[i] + (1 - weights[i]) x[rows[i]] at a selected row and x at the others.
// x [rows, columns], y [selected, columns], weights [selected, 1], bypass_scale [columns].
Tensor upsample(const Context& context, const Tensor& x, const Tensor& y, const Tensor& weights,
                const Tensor& bypass_scale, std::span<const int32_t> rows);

// The weights of a short convolution that pools: in each channel the softmax of scores [taps].
// Returns [channels, taps] (Zipformer, arXiv 2310.11230, section 3.1).
Tensor pooling_weights(const Context& context, const Tensor& scores, int64_t channels);

// x limited to [low, high]. The gradient of a number that was limited passes only if descent along
// it leads back into the range.
Tensor limit(const Context& context, const Tensor& x, float low, float high);

// What a balancer keeps scores within.
struct BalanceBounds {
  double least_share = 0, most_share = 1;          // of positive scores
  double least_magnitude = 1, most_magnitude = 4;  // of the mean of |s|
  double gradient_scale = 0.04;
};

// The scores themselves. The backward pass adds |g| balance_gradient() to each incoming gradient g.
Tensor balance(const Context& context, const Tensor& scores, const BalanceBounds& bounds);

// How far a bias of the scores is above the one with which a share `keep` of them were positive,
// estimated from the share that is: (share - keep) rms / density of a normal distribution there.
float excess_bias(std::span<const float> scores, double keep);

// The scores themselves, which contain bias [1]. The backward pass adds to the bias' gradient the
// excess_bias() of each segment; no gradient of the loss is needed for that. From the gradients of
// the scores it subtracts their mean over the segment, so that only the bias learns what moves all
// scores alike.
Tensor balance_share(const Context& context, const Tensor& scores, const CheckedBatch& batch,
                     const Tensor& bias, double keep);

// x [rows, columns] + shift [columns]. The gradient of x is that of the result. To the gradient of
// the shift the backward pass adds the means of the result over each segment, so that descent moves
// the shift to where these are 0.
Tensor centre(const Context& context, const Tensor& x, const CheckedBatch& batch,
              const Tensor& shift);

// The gradient, scaled to a root mean square of gradient_scale, of
//   |m - clamp(m)| + |ln(clamp(rms) / rms)|,  m = mean / standard deviation of the scores,
// with the bounds of a normal distribution: m within sqrt(2) erfinv(2 share - 1), rms within
// sqrt(pi / 2) magnitude. Zeros if both are within bounds.
std::vector<float> balance_gradient(std::span<const float> scores, const BalanceBounds& bounds);

}  // namespace pronghorn
