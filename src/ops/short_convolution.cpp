#include "ops/short_convolution.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/exchange.h"
#include "ops/forks.h"
#include "ops/kept_states.h"
#include "ops/operands.h"
#include "ops/replay.h"
#include "tensor/pool.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "short_convolution";

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
  PooledVector<const float*> inputs_;
};

// Token i of the segment reads for tap taps - 1 - back the token `back` places before it: along the
// parents in a tree, and before the segment the journal's rows, before which there are zeros.
void set_taps(const Operands& in, const Segment& segment, const Journal* journal, Taps& taps) {
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
      const bool tree = node >= 0 && !segment.parents.empty();
      node = tree ? segment.parents[static_cast<size_t>(node)] : node - 1;
    }
  }
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
  JournalShape shape{"convolution", channels, 0, conv_kernel - 1, kExactStep};
  shape.forks = true;
  return shape;
}

Tensor short_convolution(const Context& context, const Tensor& x, const Tensor& weight,
                         const Tensor& bias, bool silu, const CheckedBatch& batch,
                         JournalSlot slot) {
  const Operands in{x, weight, bias, silu};
  // Messages are put together only when they are needed: this runs for every decoded token.
  if (!weight.contiguous() || in.taps() < 1 || x.columns() != in.channels()) {
    throw Error(kWhere, fmt::format("x {} does not fit weight {}", x.shape(), weight.shape()));
  }
  require(!bias.defined() || bias.size() == in.channels(), kWhere, "bias of {} for {} channels",
          bias.size(), in.channels());
  require(x.rows() == batch.rows(), kWhere, "x has {} rows, the batch {}", x.rows(), batch.rows());
  if (batch.shards() != nullptr) {
    keep_rows(*batch.shards(), slot, {&x, 1});
    const PrecededRows preceded(context, *batch.shards(), x, in.taps() - 1);
    return preceded.own(context, short_convolution(context, preceded.rows(), weight, bias, silu,
                                                   preceded.batch(), slot));
  }
  if (has_forks(batch)) {
    const PrecededSegments preceded(batch, in.taps() - 1);
    return preceded.own(context, short_convolution(context, preceded.rows(context, x), weight, bias,
                                                   silu, preceded.batch(), slot));
  }

  const Tensor y = Tensor::empty({x.rows(), in.channels()});
  const bool record = needs_gradient(context, y, x, weight, bias);
  check_recurrence(kWhere, batch, record);
  const auto taps = make_pooled<Taps>(x.rows(), in.taps(), in.channels());
  for (const Segment& segment : batch.segments()) {
    const Journal* journal =
        segment.state != nullptr ? &segment.state->journal(slot.layer, slot.index) : nullptr;
    set_taps(in, segment, journal, *taps);
  }
  backend().convolution().forward(in.filter(), x.rows(), taps->data(), y.data(), y.row_stride());

  Replay replay(batch, slot);
  copy_rows(replay.runs(), x, 0);
  if (record) record_backward(context, in, y, taps, batch);
  return y;
}

}  // namespace pronghorn
