// An exponential moving average per channel, h_t = a h_{t-1} + (1 - a) x_t: an operator with a
// state that plans nothing by itself (ops/replay.h).
#include <algorithm>

#include "laws/operator_case.h"
#include "ops/replay.h"

namespace pronghorn::laws {
namespace {

constexpr int64_t kWidth = 8;

// Moves h [kWidth] from state `from` (null: zeros) on over `rows`.
void move(const Tensor& a, const float* from, std::span<const float* const> rows, float* h) {
  for (int64_t c = 0; c < kWidth; ++c) {
    h[c] = from != nullptr ? from[c] : 0;
    for (const float* x : rows) h[c] = a.data()[c] * h[c] + (1 - a.data()[c]) * x[c];
  }
}

void backward(const Tensor& x, const Tensor& a, const CheckedBatch& batch, const Tensor& y) {
  const Tensor dy = y.grad(), dx = Tensor::zeros(x.shape()), da = Tensor::zeros(a.shape());
  for (const Segment& segment : batch.segments()) {
    for (int64_t c = 0; c < kWidth; ++c) {
      float dh = 0;
      for (int64_t i = segment.length - 1; i >= 0; --i) {
        const int64_t t = segment.first_row + i;
        dh = dy.row(t)[c] + a.data()[c] * dh;
        dx.row(t)[c] = (1 - a.data()[c]) * dh;
        da.data()[c] += dh * ((i > 0 ? y.row(t - 1)[c] : 0) - x.row(t)[c]);
      }
    }
  }
  if (x.requires_grad()) x.give_grad(dx);
  if (a.requires_grad()) a.give_grad(da);
}

Tensor moving_average(const Context& context, const Tensor& x, const Tensor& a,
                      const CheckedBatch& batch) {
  const Tensor y = Tensor::empty({batch.rows(), kWidth});
  const bool record = needs_gradient(context, y, x, a);
  check_recurrence("moving average", batch, record);
  for (const Segment& segment : batch.segments()) {
    for (int64_t i = 0; i < segment.length && segment.state == nullptr; ++i) {
      const float* row = x.row(segment.first_row + i);
      move(a, i > 0 ? y.row(segment.first_row + i - 1) : nullptr, {&row, 1},
           y.row(segment.first_row + i));
    }
  }
  Replay replay(batch, {0, 0});
  const auto fold = [&](const ReplayFold& f) { move(a, f.anchor, f.rows, f.to); };
  replay.catch_up([&](std::span<const ReplayFold> folds) { std::ranges::for_each(folds, fold); });
  for (const std::span<const ReplayStep> steps : replay.steps()) {
    for (const ReplayStep& step : steps) {
      if (step.fold.to != nullptr) fold(step.fold);
      for (const ReplayToken& token : step.tokens) {
        std::copy_n(x.row(token.input_row), kWidth, token.row);
        float* out = y.row(token.input_row);
        move(a, step.anchor(), token.path, out);
        const float* row = token.row;
        move(a, out, {&row, 1}, out);
      }
    }
  }
  if (record) context.tape->record([=] { backward(x, a, batch, y); });
  return y;
}

}  // namespace

std::vector<OperatorCase> moving_average_cases() {
  OperatorCase row;
  row.name = "moving_average";
  row.inputs = {{"x", kWidth, {}, -1, 1}, {"a", 0, {kWidth}, 0.3, 0.95}};
  row.output_width = kWidth;
  row.journals = {{"average", kWidth, kWidth, 0, kExactStep}};
  row.forward = [](const Context& context, const std::vector<Tensor>& in,
                   const CheckedBatch& batch) {
    return moving_average(context, in[0], in[1], batch);
  };
  row.reference = [](const Values& in, const std::vector<int32_t>& positions) {
    std::vector<double> y(positions.size() * kWidth);
    for (size_t i = 0; i < y.size(); ++i) {
      const double before = i < kWidth ? 0 : y[i - kWidth], a = in[1][i % kWidth];
      y[i] = a * before + (1 - a) * in[0][i];
    }
    return y;
  };
  return {row};
}

}  // namespace pronghorn::laws
