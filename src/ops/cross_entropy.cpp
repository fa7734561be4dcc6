#include "ops/cross_entropy.h"

#include <algorithm>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/linear.h"
#include "ops/operands.h"

namespace pronghorn {
namespace {

// Rows whose logits exist at a time. Each chunk reads the head and reads and writes its gradient
// once; 256 rows make the products compute-bound at 1 kB of logits a vocabulary entry.
constexpr int64_t kChunkRows = 256;

// Calls part(first, count, weight) for the runs of rows of one weight.
template <typename Part>
void for_each_weight(std::span<const float> weights, int64_t rows, const Part& part) {
  if (weights.empty()) return part(0, rows, 1.0);
  for (int64_t first = 0; first < rows;) {
    const float weight = weights[static_cast<size_t>(first)];
    int64_t end = first + 1;
    while (end < rows && weights[static_cast<size_t>(end)] == weight) ++end;
    part(first, end - first, double{weight});
    first = end;
  }
}

}  // namespace

// The gradient of the head is summed, chunk after chunk in order, into a tensor of its own, which
// becomes the head's gradient without a copy when the tape gets there (unless that already has one,
// from an earlier micro-batch). Computing it in backward instead would need the logits once more,
// a third of the whole cost; writing to the head's own gradient at once would leave it changed if
// the tape is never run.
CrossEntropy linear_cross_entropy(const Context& context, const Tensor& x, const Weight& head,
                                  std::span<const int32_t> targets, double gradient_scale,
                                  double z_loss_weight, float soft_cap,
                                  std::span<const float> weights) {
  const int64_t rows = x.rows(), width = x.columns(), vocabulary = head.out();
  require(width == head.in(), "linear_cross_entropy", "rows of {} for a head [{}, {}]", width,
          vocabulary, head.in());
  require(static_cast<int64_t>(targets.size()) == rows, "linear_cross_entropy",
          "{} targets for {} rows", targets.size(), rows);
  require(weights.empty() || weights.size() == targets.size(), "linear_cross_entropy",
          "{} weights for {} targets", weights.size(), targets.size());
  for (const int32_t target : targets) {
    require(target >= -1 && target < vocabulary, "linear_cross_entropy",
            "target {} in a vocabulary of {}", target, vocabulary);
  }

  const Tensor& weight = head.trainable();
  const bool taped = context.tape != nullptr;
  const Tensor dx = taped && x.requires_grad() ? Tensor::empty(x.shape()) : Tensor();
  const Tensor dw = taped && weight.requires_grad() ? Tensor::empty(weight.shape()) : Tensor();
  const bool gradient = dx.defined() || dw.defined();

  MatmulKernels& matmul = backend().matmul();
  const Tensor logits = Tensor::empty({std::min(rows, kChunkRows), vocabulary});
  // What the cap's slope follows from, where the gradients take the place of the logits.
  const Tensor capped = soft_cap > 0 ? Tensor::empty(logits.shape()) : logits;
  std::vector<RowLoss> losses(static_cast<size_t>(std::min(rows, kChunkRows)));
  CrossEntropy result;
  bool dw_started = false;
  for (int64_t first = 0; first < rows; first += kChunkRows) {
    const int64_t count = std::min(kChunkRows, rows - first);
    const int32_t* chunk_targets = targets.data() + first;
    if (std::all_of(chunk_targets, chunk_targets + count, [](int32_t t) { return t < 0; })) {
      if (dx.defined()) dx.row_slice(first, count).fill(0);
      continue;
    }
    const ConstMatrix x_rows{x.row(first), x.row_stride()}, scores = input_matrix(logits);
    matmul.linear_forward(head, x_rows, count, nullptr, output_matrix(logits), context.precision,
                          !taped && context.exact);
    PointwiseKernels& pointwise = backend().pointwise();
    const Extent extent{count, vocabulary};
    if (soft_cap > 0) {
      pointwise.soft_cap(extent, scores, soft_cap, output_matrix(logits));
      if (gradient) pointwise.scale(extent, scores, 1.0f, output_matrix(capped));
    }
    const auto chunk_weights =
        weights.empty() ? weights
                        : weights.subspan(static_cast<size_t>(first), static_cast<size_t>(count));
    for_each_weight(chunk_weights, count, [&](int64_t row, int64_t rows_of, double weight) {
      pointwise.cross_entropy({rows_of, vocabulary}, output_matrix(logits.row_slice(row, rows_of)),
                              chunk_targets + row, gradient, gradient_scale * weight, z_loss_weight,
                              losses.data() + row);
    });
    if (soft_cap > 0 && gradient) {
      pointwise.soft_cap_backward(extent, input_matrix(capped), scores, soft_cap,
                                  output_matrix(logits));
    }
    for (int64_t i = 0; i < count; ++i) {
      if (chunk_targets[i] < 0) continue;
      const RowLoss& loss = losses[static_cast<size_t>(i)];
      const double weight = weights.empty() ? 1 : double{chunk_weights[static_cast<size_t>(i)]};
      result.nll += weight * loss.nll;
      result.z_loss += weight * loss.log_z * loss.log_z;
      result.correct += loss.correct;
      ++result.count;
    }
    if (dx.defined()) {
      linear_input_gradient(head, scores, count, {dx.row(first), dx.row_stride(), false},
                            context.precision);
    }
    if (dw.defined()) {
      matmul.linear_backward_weight(scores, x_rows, count, vocabulary, width,
                                    {dw.data(), width, dw_started}, context.precision);
      dw_started = true;
    }
  }
  if (!gradient) return result;
  if (dw.defined() && !dw_started) dw.fill(0);
  context.tape->record([x, weight, dx, dw] {
    if (dx.defined()) x.give_grad(dx);
    if (dw.defined()) weight.give_grad(dw);
  });
  return result;
}

}  // namespace pronghorn
