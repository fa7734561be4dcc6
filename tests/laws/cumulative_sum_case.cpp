#include "laws/cumulative_sum.h"

#include <algorithm>

#include "base/error.h"
#include "base/threads.h"

namespace pronghorn::laws {
namespace {

constexpr int64_t kWidth = 8;
using Channels = std::vector<float>;

void step(Channels& h, const float* decay, const float* x) {
  for (size_t c = 0; c < kWidth; ++c) h[c] = decay[c] * h[c] + x[c];
}

// The state after `rows` committed rows.
Channels state_at(const Journal& journal, const float* decay, int64_t rows) {
  Channels h(kWidth);
  if (journal.anchor() != nullptr) h.assign(journal.anchor(), journal.anchor() + kWidth);
  for (int64_t i = journal.anchor_row(); i < rows; ++i) step(h, decay, journal.row(i));
  return h;
}

void fold(Journal& journal, const float* decay, bool keep_previous) {
  while (journal.anchor_row() + kExactStep <= journal.length()) {
    const int64_t row = journal.anchor_row() + kExactStep;
    const Channels h = state_at(journal, decay, row);
    std::copy(h.begin(), h.end(), journal.begin_anchor());
    journal.commit_anchor(row, keep_previous);
  }
}

void run_with_state(Fault fault, const Tensor& x, const Tensor& decay, const Tensor& scale,
                    const Segment& segment, std::span<const int32_t> positions, const Tensor& y) {
  Journal& journal = segment.state->journal(0, 0);
  fold(journal, decay.data(), fault != Fault::no_way_back);
  const int64_t first = journal.append(positions);
  for (int64_t i = 0; i < segment.length; ++i) {
    const float* row = x.row(segment.first_row + i);
    std::copy(row, row + kWidth, journal.mutable_row(first + i));
  }
  if (fault == Fault::marks && first > journal.first_row()) {
    const_cast<float*>(journal.row(first - 1))[0] += 0x1p-10f;
  }
  const bool tree = !segment.parents.empty();
  if (tree) journal.set_tree(segment.parents);

  const Channels before = fault == Fault::long_chunk && segment.length > kExactStep
                              ? Channels(kWidth)
                              : state_at(journal, decay.data(), first);
  std::vector<Channels> states;
  for (int64_t i = 0; i < segment.length; ++i) {
    int64_t parent = tree ? segment.parents[static_cast<size_t>(i)] : i - 1;
    if (fault == Fault::tree_as_chain) parent = i - 1;
    Channels h = parent < 0 ? before : states[static_cast<size_t>(parent)];
    step(h, decay.data(), journal.row(first + i));
    states.push_back(h);
    float* out = y.row(segment.first_row + i);
    for (size_t c = 0; c < kWidth; ++c) out[c] = scale.data()[c] * h[c];
    if (fault == Fault::cut && i == 3) out[1] *= 1 + 0x1p-20f;
    if (fault == Fault::tree_fold && tree && first / 16 != (first + i) / 16) out[2] *= 1 + 0x1p-20f;
  }
  if (fault == Fault::hidden_state) {
    // Counts the tokens in the scratch state, which is neither saved nor kept by truncate().
    float* live = journal.live();
    if (journal.live_row() < 0) std::fill_n(live, kWidth, 0.0f);
    live[0] += static_cast<float>(segment.length);
    journal.set_live_row(journal.length());
    y.row(segment.first_row)[0] += live[0] * 0x1p-16f;
  }
  if (!tree) fold(journal, decay.data(), fault != Fault::no_way_back);
}

void backward(Fault fault, const Tensor& x, const Tensor& decay, const Tensor& scale,
              const CheckedBatch& batch, const Tensor& y) {
  const Tensor dy = y.grad();
  Tensor dx = Tensor::zeros(x.shape()), ddecay = Tensor::zeros({kWidth});
  Tensor dscale = Tensor::zeros({kWidth});
  for (const Segment& segment : batch.segments()) {
    std::vector<Channels> states = {Channels(kWidth)};
    for (int64_t i = 0; i < segment.length; ++i) {
      states.push_back(states.back());
      step(states.back(), decay.data(), x.row(segment.first_row + i));
    }
    for (size_t c = 0; c < kWidth; ++c) {
      float dh = 0;
      for (int64_t i = segment.length - 1; i >= 0; --i) {
        const float up = dy.row(segment.first_row + i)[c];
        dh = up * scale.data()[c] + decay.data()[c] * dh;
        if (fault == Fault::input_gradient && i % 64 == 63) dh = up * scale.data()[c];
        dx.row(segment.first_row + i)[c] = dh;
        ddecay.data()[c] += dh * states[static_cast<size_t>(i)][c];
        if (fault == Fault::parameter_gradient && &segment == &batch.segments()[1]) continue;
        dscale.data()[c] += up * states[static_cast<size_t>(i) + 1][c];
      }
    }
  }
  if (fault == Fault::gradient_threads && thread_count() > 2) dx.data()[0] *= 1 + 0x1p-20f;
  const bool unwanted = fault == Fault::unwanted_gradient;
  if (fault == Fault::added_gradient) decay.clear_grad();
  if (x.requires_grad()) x.give_grad(dx);
  if (decay.requires_grad()) decay.give_grad(ddecay);
  if (scale.requires_grad() || unwanted) scale.give_grad(dscale);
}

Tensor forward(Fault fault, const Context& context, const std::vector<Tensor>& inputs,
               const CheckedBatch& batch) {
  const Tensor &x = inputs[0], &decay = inputs[1], &scale = inputs[2];
  for (const Segment& segment : batch.segments()) {
    require(context.tape == nullptr || segment.state == nullptr || fault == Fault::tape_and_state,
            "cumulative sum", "a tape and a state in one forward");
  }
  const Tensor y = Tensor::empty({batch.rows(), kWidth});
  for (const Segment& segment : batch.segments()) {
    if (segment.state != nullptr) {
      run_with_state(fault, x, decay, scale, segment, batch.positions(segment), y);
      continue;
    }
    Channels h(kWidth);
    for (int64_t i = 0; i < segment.length; ++i) {
      const int64_t row = segment.first_row + i;
      step(h, decay.data(), fault == Fault::strides ? x.data() + row * kWidth : x.row(row));
      float* out = y.row(segment.first_row + i);
      for (size_t c = 0; c < kWidth; ++c) out[c] = scale.data()[c] * h[c];
    }
  }
  if (fault == Fault::positions) {
    for (int64_t i = 1; i < y.rows(); ++i) {
      const size_t row = static_cast<size_t>(i);
      if (batch.positions()[row] > batch.positions()[row - 1] + 1) y.row(i)[0] = 0;
    }
  }
  if (fault == Fault::writes_input) x.row(0)[7] += 1;
  if (fault == Fault::values) {
    for (int64_t i = 0; i < y.rows(); ++i) y.row(i)[5] *= 1 + 1e-3f;
  }
  if (fault == Fault::neighbour && batch.segments().size() > 1) {
    y.row(batch.segments()[1].first_row)[3] *= 1 + 0x1p-20f;
  }
  if (fault == Fault::threads && thread_count() > 2) y.row(0)[6] *= 1 + 0x1p-20f;
  if (needs_gradient(context, y, x, decay, scale)) {
    context.tape->record([=] { backward(fault, x, decay, scale, batch, y); });
  }
  return y;
}

std::vector<double> reference(const Values& inputs, const std::vector<int32_t>& positions) {
  std::vector<double> h(kWidth), y;
  for (size_t t = 0; t < positions.size(); ++t) {
    for (size_t c = 0; c < kWidth; ++c) {
      h[c] = inputs[1][c] * h[c] + inputs[0][t * kWidth + c];
      y.push_back(inputs[2][c] * h[c]);
    }
  }
  return y;
}

}  // namespace

OperatorCase cumulative_sum(Fault fault) {
  OperatorCase spec;
  spec.name = "cumulative_sum";
  spec.inputs = {{"x", kWidth, {}, -1, 1},
                 {"decay", 0, {kWidth}, 0.5, 0.99},
                 {"scale", 0, {kWidth}, 0.5, 1.5}};
  spec.output_width = kWidth;
  spec.journals = {{"sum", kWidth, kWidth, 0, kExactStep}};
  spec.forward = [fault](const Context& context, const std::vector<Tensor>& inputs,
                         const CheckedBatch& batch) {
    return forward(fault, context, inputs, batch);
  };
  spec.reference = reference;
  // A sum of about 1 / (1 - decay) <= 100 terms, each rounded to 2^-24.
  spec.tolerance = 6e-6;
  return spec;
}

std::vector<OperatorCase> cumulative_sum_cases() { return {cumulative_sum(Fault::none)}; }

}  // namespace pronghorn::laws
