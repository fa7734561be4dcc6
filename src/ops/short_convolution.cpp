#include "ops/short_convolution.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"

namespace pronghorn {
namespace {

constexpr std::string_view kWhere = "short_convolution";

struct Operands {
  Tensor x, weight, bias;
  bool silu = false;

  int64_t channels() const { return weight.rows(); }
  int64_t taps() const { return weight.columns(); }
  ConvolutionKernels::Filter filter() const {
    return {channels(), taps(), weight.data(), bias.defined() ? bias.data() : nullptr, silu};
  }
};

// Where the rows that a token reads lie: taps addresses a row of the batch.
class Taps {
 public:
  Taps(int64_t rows, int64_t taps, int64_t channels)
      : taps_(taps),
        zeros_(Tensor::zeros({1, channels})),
        inputs_(static_cast<size_t>(rows * taps), zeros_.data()) {}

  void set(int64_t row, int64_t tap, const float* input) {
    inputs_[static_cast<size_t>(row * taps_ + tap)] = input;
  }
  const float* const* data() const { return inputs_.data(); }

 private:
  int64_t taps_;
  Tensor zeros_;
  std::vector<const float*> inputs_;
};

// Token i of the segment reads token i - back for tap taps - 1 - back; before the segment lie the
// journal's rows, before those zeros.
void chain_taps(const Operands& in, const Segment& segment, const Journal* journal, Taps& taps) {
  for (int64_t i = 0; i < segment.length; ++i) {
    for (int64_t back = 0; back < in.taps(); ++back) {
      const float* input = nullptr;
      if (back <= i) {
        input = in.x.row(segment.first_row + i - back);
      } else if (journal != nullptr) {
        const int64_t index = journal->length() + i - back;
        if (index >= journal->first_row()) input = journal->row(index);
      }
      if (input != nullptr) taps.set(segment.first_row + i, in.taps() - 1 - back, input);
    }
  }
}

// The same through the parents of the nodes of a token tree.
void tree_taps(const Operands& in, const Segment& segment, const Journal* journal, Taps& taps) {
  for (int64_t i = 0; i < segment.length; ++i) {
    int64_t node = i;  // below 0: -1 is the last row of the journal, -2 the one before
    for (int64_t back = 0; back < in.taps(); ++back) {
      const float* input = nullptr;
      if (node >= 0) {
        input = in.x.row(segment.first_row + node);
      } else if (journal != nullptr && journal->length() + node >= journal->first_row()) {
        input = journal->row(journal->length() + node);
      }
      if (input != nullptr) taps.set(segment.first_row + i, in.taps() - 1 - back, input);
      node = node >= 0 ? segment.parents[static_cast<size_t>(node)] : node - 1;
    }
  }
}

// Appends the segment's rows, as many as later tokens and truncate() can ask for: all since the
// multiple of the fold interval before the last, and the history before it.
void keep_rows(const Operands& in, const Segment& segment, std::span<const int32_t> positions,
               Journal& journal) {
  const int64_t interval = journal.shape().fold_interval, history = journal.shape().history;
  const int64_t start = journal.length(), end = start + segment.length;
  const bool tree = !segment.parents.empty();
  int64_t from = start;
  // Trees are short, and nothing may be folded before their path is known.
  const int64_t fold = tree ? 0 : (end - 1) / interval * interval;
  const int64_t oldest = std::max<int64_t>(0, fold - interval - history);
  if (!tree && oldest > start) {
    from = oldest;
    journal.skip(positions.first(static_cast<size_t>(oldest - start)));
  }
  journal.append(positions.subspan(static_cast<size_t>(from - start)));
  for (int64_t i = from; i < end; ++i) {
    std::memcpy(journal.mutable_row(i), in.x.row(segment.first_row + i - start),
                static_cast<size_t>(in.channels()) * sizeof(float));
  }
  if (tree) {
    journal.set_tree(segment.parents);
    return;
  }
  journal.pass();
}

void record_backward(const Context& context, const Operands& in, const Tensor& y,
                     const std::shared_ptr<const Taps>& inputs, const CheckedBatch& batch) {
  context.tape->record([in, y, inputs, batch] {
    if (!y.has_grad()) return;
    const Tensor dy = y.grad();
    const int64_t rows = dy.rows(), taps = in.taps();
    const Tensor pre_grad = Tensor::empty({rows, in.channels()});
    ConvolutionKernels& kernels = backend().convolution();
    kernels.backward(in.filter(), rows, inputs->data(), dy.data(), dy.row_stride(), pre_grad.data(),
                     input_gradient(in.weight), input_gradient(in.bias));
    if (!in.x.requires_grad()) return;
    Taps readers(rows, taps, in.channels());
    for (const Segment& segment : batch.segments()) {
      for (int64_t i = 0; i < segment.length; ++i) {
        for (int64_t ahead = 0; ahead < std::min(taps, segment.length - i); ++ahead) {
          const int64_t row = segment.first_row + i;
          readers.set(row, taps - 1 - ahead, pre_grad.row(row + ahead));
        }
      }
    }
    kernels.backward_input(in.filter(), rows, readers.data(), input_gradient(in.x));
  });
}

}  // namespace

JournalShape short_convolution_journal(int64_t channels, int64_t conv_kernel) {
  return {"convolution", channels, 0, conv_kernel - 1, kExactStep};
}

Tensor short_convolution(const Context& context, const Tensor& x, const Tensor& weight,
                         const Tensor& bias, bool silu, const CheckedBatch& batch,
                         JournalSlot slot) {
  const Operands in{x, weight, bias, silu};
  // Messages are put together only when they are needed: this runs for every decoded token.
  if (!weight.contiguous() || in.taps() < 1 || x.columns() != in.channels()) {
    throw Error(kWhere, fmt::format("x {} does not fit weight {}", shape_string(x.shape()),
                                    shape_string(weight.shape())));
  }
  require(!bias.defined() || bias.size() == in.channels(), kWhere, "bias of {} for {} channels",
          bias.size(), in.channels());
  require(x.rows() == batch.rows(), kWhere, "x has {} rows, the batch {}", x.rows(), batch.rows());

  const Tensor y = Tensor::empty({x.rows(), in.channels()});
  const auto taps = std::make_shared<Taps>(x.rows(), in.taps(), in.channels());
  for (const Segment& segment : batch.segments()) {
    const Journal* journal =
        segment.state != nullptr ? &segment.state->journal(slot.layer, slot.index) : nullptr;
    (segment.parents.empty() ? chain_taps : tree_taps)(in, segment, journal, *taps);
  }
  backend().convolution().forward(in.filter(), x.rows(), taps->data(), y.data(), y.row_stride());

  const bool record = needs_gradient(context, y, x, weight, bias);
  for (const Segment& segment : batch.segments()) {
    require(!record || segment.state == nullptr, kWhere,
            "gradients are computed for fresh sequences only");
    if (segment.state == nullptr || segment.length == 0) continue;
    keep_rows(in, segment, batch.positions(segment),
              segment.state->journal(slot.layer, slot.index));
  }
  if (record) record_backward(context, in, y, taps, batch);
  return y;
}

}  // namespace pronghorn
