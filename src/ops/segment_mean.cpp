#include "ops/segment_mean.h"

#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "ops/operands.h"
#include "tensor/pool.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "segment_mean";

// to (+)= the mean of the rows of `from` in each segment, both [rows, columns].
void add_means(std::span<const Segment> segments, int64_t columns, const PooledVector<float>& from,
               PooledVector<float>& to) {
  parallel_for(std::ssize(segments), 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(static_cast<size_t>(columns));
    for (int64_t s = begin; s < end; ++s) {
      const Segment& segment = segments[static_cast<size_t>(s)];
      const size_t first = static_cast<size_t>(segment.first_row * columns);
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t i = 0; i < segment.length; ++i) {
        const float* row = from.data() + first + static_cast<size_t>(i * columns);
        for (size_t c = 0; c < sums.size(); ++c) sums[c] += double{row[c]};
      }
      for (double& sum : sums) sum /= static_cast<double>(segment.length);
      for (int64_t i = 0; i < segment.length; ++i) {
        float* row = to.data() + first + static_cast<size_t>(i * columns);
        for (size_t c = 0; c < sums.size(); ++c) row[c] += static_cast<float>(sums[c]);
      }
    }
  });
}

}  // namespace

Tensor segment_mean(const Context& context, const Tensor& x, const CheckedBatch& batch) {
  require(x.rows() == batch.rows(), kWhere, "x has {} rows, the batch {}", x.rows(), batch.rows());
  for (const Segment& segment : batch.segments()) {
    require(segment.state == nullptr, kWhere, "keeps no state of a sequence");
  }
  PooledVector<float> means(static_cast<size_t>(x.size()));
  add_means(batch.segments(), x.columns(), x.read(), means);
  const Tensor y = Tensor::from(means, x.shape());
  if (needs_gradient(context, y, x)) {
    context.tape->record([x, y, batch] {
      if (!y.has_grad()) return;
      // Every row has the same share of every mean: the operator is its own transpose.
      const GradTarget target = x.grad_target();
      PooledVector<float> sum = gradient_so_far(target);
      add_means(batch.segments(), x.columns(), y.grad().read(), sum);
      target.tensor.write(sum);
    });
  }
  return y;
}

}  // namespace pronghorn
