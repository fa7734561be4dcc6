#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "base/threads.h"
#include "ops/operands.h"
#include "ops/pointwise.h"
#include "tensor/pool.h"

namespace pronghorn {
namespace {

// Cosines and sines of the angles of some rows, [rows, rotary_dim / 2].
struct AngleTable {
  PooledVector<int32_t> positions;
  int64_t rotary_dim = 0;
  double theta = 0;
  PooledVector<double> frequencies;
  PooledVector<float> cosines, sines;

  bool same_frequencies(int64_t dim, double base) const {
    return rotary_dim == dim && theta == base;
  }
};
using SharedTable = std::shared_ptr<const AngleTable>;

SharedTable make_table(std::span<const int32_t> positions, int64_t rotary_dim, double theta,
                       const PooledVector<double>* known_frequencies) {
  auto table = make_pooled<AngleTable>();
  const int64_t half = rotary_dim / 2, rows = static_cast<int64_t>(positions.size());
  table->positions.assign(positions.begin(), positions.end());
  table->rotary_dim = rotary_dim;
  table->theta = theta;
  if (known_frequencies != nullptr) {
    table->frequencies = *known_frequencies;
  } else {
    for (int64_t i = 0; i < half; ++i) {
      const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim);
      table->frequencies.push_back(std::pow(theta, exponent));
    }
  }
  table->cosines.resize(static_cast<size_t>(rows * half));
  table->sines.resize(static_cast<size_t>(rows * half));
  constexpr int64_t kGrainAngles = 1024;  // a sine and a cosine take about 40 ns
  parallel_for(rows, std::max<int64_t>(1, kGrainAngles / half), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const double position = positions[static_cast<size_t>(row)];
      for (int64_t i = 0; i < half; ++i) {
        const double angle = position * table->frequencies[static_cast<size_t>(i)];
        table->cosines[static_cast<size_t>(row * half + i)] = static_cast<float>(std::cos(angle));
        table->sines[static_cast<size_t>(row * half + i)] = static_cast<float>(std::sin(angle));
      }
    }
  });
  return table;
}

// All layers of a model turn the same rows by the same angles, queries and keys both, so the last
// tables are kept: two, for models that mix two bases.
SharedTable angle_table(std::span<const int32_t> positions, int64_t rotary_dim, double theta) {
  thread_local std::array<SharedTable, 2> recent;
  const PooledVector<double>* frequencies = nullptr;
  for (SharedTable& table : recent) {
    if (!table || !table->same_frequencies(rotary_dim, theta)) continue;
    if (std::ranges::equal(table->positions, positions)) return table;
    frequencies = &table->frequencies;
  }
  SharedTable table = make_table(positions, rotary_dim, theta, frequencies);
  // The table of the same frequencies is replaced, else the older one.
  if (!(recent[0] && recent[0]->same_frequencies(rotary_dim, theta)))
    std::swap(recent[0], recent[1]);
  recent[0] = table;
  return table;
}

}  // namespace

Tensor rope(const Context& context, const Tensor& x, std::span<const int32_t> positions,
            int64_t head_dim, int64_t rotary_dim, double theta) {
  require(static_cast<int64_t>(positions.size()) == x.rows(), "rope", "{} positions for {} rows",
          positions.size(), x.rows());
  require(head_dim > 0 && x.columns() % head_dim == 0, "rope", "{} columns in heads of {}",
          x.columns(), head_dim);
  require(rotary_dim > 0 && rotary_dim % 2 == 0 && rotary_dim <= head_dim, "rope",
          "{} rotary channels in heads of {}: an even number up to the head's is needed",
          rotary_dim, head_dim);
  require(theta > 0, "rope", "theta {} is not positive", theta);
  const SharedTable table = angle_table(positions, rotary_dim, theta);
  const auto rotation = [=](bool backwards) {
    return Rotation{extent_of(x),        head_dim, rotary_dim, table->cosines.data(),
                    table->sines.data(), backwards};
  };
  Tensor y = Tensor::empty(x.shape());
  backend().pointwise().rotate(rotation(false), input_matrix(x), output_matrix(y));
  if (needs_gradient(context, y, x)) {
    context.tape->record([=] {
      if (!y.has_grad()) return;
      backend().pointwise().rotate(rotation(true), output_gradient(y), input_gradient(x));
    });
  }
  return y;
}

}  // namespace pronghorn
