#include "ops/segment_mean.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "ops/operands.h"
#include "tensor/pool.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "segment_mean";

struct Rows {
  int64_t first = 0, count = 0;
};

std::vector<Rows> rows_of(const CheckedBatch& batch) {
  std::vector<Rows> rows;
  for (const Segment& segment : batch.segments()) {
    require(segment.state == nullptr, kWhere, "keeps no state of a sequence");
    rows.push_back({segment.first_row, segment.length});
  }
  return rows;
}

// Each row of to[s] += the sum over the rows of from[s], divided by the size of divisors[s].
void add_shares(std::span<const Rows> from_rows, std::span<const Rows> to_rows,
                std::span<const Rows> divisors, int64_t columns, const PooledVector<float>& from,
                PooledVector<float>& to) {
  parallel_for(std::ssize(from_rows), 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(static_cast<size_t>(columns));
    for (auto s = static_cast<size_t>(begin); s < static_cast<size_t>(end); ++s) {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t row = from_rows[s].first; row < from_rows[s].first + from_rows[s].count; ++row) {
        const float* values = from.data() + row * columns;
        for (size_t c = 0; c < sums.size(); ++c) sums[c] += double{values[c]};
      }
      for (double& sum : sums) sum /= static_cast<double>(divisors[s].count);
      for (int64_t row = to_rows[s].first; row < to_rows[s].first + to_rows[s].count; ++row) {
        float* values = to.data() + row * columns;
        for (size_t c = 0; c < sums.size(); ++c) values[c] += static_cast<float>(sums[c]);
      }
    }
  });
}

}  // namespace

Tensor segment_mean(const Context& context, const Tensor& x, const CheckedBatch& batch) {
  return segment_mean(context, x, batch, batch);
}

Tensor segment_mean(const Context& context, const Tensor& x, const CheckedBatch& batch,
                    const CheckedBatch& to) {
  require(x.rows() == batch.rows(), kWhere, "x has {} rows, the batch {}", x.rows(), batch.rows());
  std::vector<Rows> from_rows = rows_of(batch), to_rows = rows_of(to);
  require(from_rows.size() == to_rows.size(), kWhere, "of {} sequences for {}", from_rows.size(),
          to_rows.size());
  for (size_t s = 0; s < from_rows.size(); ++s) {
    require(from_rows[s].count > 0 || to_rows[s].count == 0, kWhere, "of a sequence without rows");
  }
  PooledVector<float> means(static_cast<size_t>(to.rows() * x.columns()));
  add_shares(from_rows, to_rows, from_rows, x.columns(), x.read(), means);
  const Tensor y = Tensor::from(means, {to.rows(), x.columns()});
  if (needs_gradient(context, y, x)) {
    context.tape->record([x, y, from_rows = std::move(from_rows), to_rows = std::move(to_rows)] {
      if (!y.has_grad()) return;
      const GradTarget target = x.grad_target();
      PooledVector<float> sum = gradient_so_far(target);
      add_shares(to_rows, from_rows, from_rows, x.columns(), y.grad().read(), sum);
      target.tensor.write(sum);
    });
  }
  return y;
}

}  // namespace pronghorn
