#include "ops/token_shift.h"

#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/exchange.h"
#include "ops/forks.h"
#include "ops/kept_states.h"
#include "ops/operands.h"
#include "ops/replay.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "token_shift";

// Addresses of the row before each row; null where a sequence begins.
PooledVector<const float*> rows_before(const Tensor& x, const CheckedBatch& batch,
                                       JournalSlot slot) {
  PooledVector<const float*> before(static_cast<size_t>(x.rows()), nullptr);
  for (const Segment& segment : batch.segments()) {
    const Journal* journal =
        segment.state != nullptr ? &segment.state->journal(slot.layer, slot.index) : nullptr;
    for (int64_t i = 0; i < segment.length; ++i) {
      const int64_t node =
          segment.parents.empty() ? i - 1 : int64_t{segment.parents[static_cast<size_t>(i)]};
      const float*& to = before[static_cast<size_t>(segment.first_row + i)];
      if (node >= 0) {
        to = x.row(segment.first_row + node);
      } else if (journal != nullptr && journal->length() > 0) {
        to = journal->row(journal->length() - 1);
      }
    }
  }
  return before;
}

TokenShift arguments(const Tensor& x, const PooledVector<const float*>& before,
                     const PooledVector<const float*>& mixes) {
  return {extent_of(x), input_matrix(x), before.data(), mixes};
}

}  // namespace

JournalShape token_shift_journal(int64_t channels) {
  JournalShape shape{"token_shift", channels, 0, 1, kExactStep};
  shape.forks = true;
  return shape;
}

PooledVector<Tensor> token_shift(const Context& context, const Tensor& x,
                                 std::span<const Tensor> mixes, const CheckedBatch& batch,
                                 JournalSlot slot) {
  require(x.rows() == batch.rows(), kWhere, "x has {} rows, the batch {}", x.rows(), batch.rows());
  if (batch.shards() != nullptr) {
    keep_rows(*batch.shards(), slot, {&x, 1});
    const PrecededRows preceded(context, *batch.shards(), x, 1);
    PooledVector<Tensor> own;
    for (const Tensor& each :
         token_shift(context, preceded.rows(), mixes, preceded.batch(), slot)) {
      own.push_back(preceded.own(context, each));
    }
    return own;
  }
  if (has_forks(batch)) {
    const PrecededSegments preceded(batch, 1);
    PooledVector<Tensor> own;
    for (const Tensor& each :
         token_shift(context, preceded.rows(context, x), mixes, preceded.batch(), slot)) {
      own.push_back(preceded.own(context, each));
    }
    return own;
  }
  PooledVector<Tensor> y;
  PooledVector<Matrix> to;
  PooledVector<const float*> mix_data;
  bool record = context.tape != nullptr && x.requires_grad();
  for (const Tensor& mix : mixes) {
    require(mix.contiguous() && mix.size() == x.columns(), kWhere, "a mix of {} for {} channels",
            mix.size(), x.columns());
    record |= context.tape != nullptr && mix.requires_grad();
    mix_data.push_back(mix.data());
    y.push_back(Tensor::empty({x.rows(), x.columns()}));
    to.push_back(output_matrix(y.back()));
  }
  check_recurrence(kWhere, batch, record);
  PooledVector<const float*> before = rows_before(x, batch, slot);
  backend().rwkv().token_shift(arguments(x, before, mix_data), to);
  Replay replay(batch, slot);
  copy_rows(replay.runs(), x, 0);
  if (!record) return y;

  for (const Tensor& each : y) each.set_requires_grad(true);
  context.tape->record([x, y, batch, before = std::move(before), mix_data = std::move(mix_data),
                        mixes = std::vector<Tensor>(mixes.begin(), mixes.end())] {
    std::vector<int32_t> after(static_cast<size_t>(x.rows()), -1);
    for (const Segment& segment : batch.segments()) {
      for (int64_t row = segment.first_row; row + 1 < segment.first_row + segment.length; ++row) {
        after[static_cast<size_t>(row)] = static_cast<int32_t>(row + 1);
      }
    }
    std::vector<ConstMatrix> dy;
    std::vector<GradVector> dmixes;
    bool any = false;
    for (const Tensor& each : y) {
      dy.push_back(output_gradient(each));
      any |= each.has_grad();
    }
    if (!any) return;
    const Matrix dx = input_gradient(x);
    for (const Tensor& mix : mixes) dmixes.push_back(vector_gradient(mix));
    backend().rwkv().token_shift_backward(arguments(x, before, mix_data), dy, after.data(), dx,
                                          dmixes);
  });
  return y;
}

}  // namespace pronghorn
