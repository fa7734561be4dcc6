#include "ops/rope.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <numbers>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "base/threads.h"
#include "ops/operands.h"
#include "tensor/pool.h"

namespace pronghorn {
namespace {

constexpr char kWhere[] = "rope";

using Frequencies = std::vector<double>;

Frequencies plain_frequencies(double theta, int64_t rotary_dim) {
  Frequencies all;
  for (int64_t i = 0; i < rotary_dim / 2; ++i) {
    all.push_back(std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim)));
  }
  return all;
}

// The pair, not necessarily whole, that turns `turns` times within L tokens.
double pair_of(double turns, double theta, double rotary_dim, double original_context) {
  return rotary_dim * std::log(original_context / (turns * 2 * std::numbers::pi)) /
         (2 * std::log(theta));
}

void scale_yarn(Frequencies& frequencies, double theta, const RopeScaling& scaling) {
  const auto pairs = static_cast<double>(frequencies.size());
  const auto length = static_cast<double>(scaling.original_context);
  double low = pair_of(scaling.beta_fast, theta, 2 * pairs, length);
  double high = pair_of(scaling.beta_slow, theta, 2 * pairs, length);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, 2 * pairs - 1);
  if (low == high) high += 0.001;  // a step in place of a ramp
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] *= (1 - ramp) + ramp / scaling.factor;
  }
}

void scale_llama3(Frequencies& frequencies, const RopeScaling& scaling) {
  const double low = scaling.low_frequency_factor, high = scaling.high_frequency_factor;
  for (double& frequency : frequencies) {
    const double turns =
        static_cast<double>(scaling.original_context) * frequency / (2 * std::numbers::pi);
    if (turns > high) continue;
    const double kept = turns < low ? 0 : (turns - low) / (high - low);
    frequency *= (1 - kept) / scaling.factor + kept;
  }
}

double attention_factor(const RopeScaling& scaling) {
  using Kind = RopeScaling::Kind;
  if (scaling.kind != Kind::yarn && scaling.kind != Kind::longrope) return 1;
  if (scaling.attention_factor > 0) return scaling.attention_factor;
  if (scaling.factor <= 1) return 1;
  if (scaling.kind == Kind::yarn) return 0.1 * std::log(scaling.factor) + 1;
  return std::sqrt(1 + std::log(scaling.factor) /
                           std::log(static_cast<double>(scaling.original_context)));
}

// Cosines and sines of the angles of some rows, [rows, pairs], times the magnitude.
struct AngleTable {
  PooledVector<int32_t> positions;  // [rows, axes]
  SharedAngles angles;
  int64_t axes = 1;
  PooledVector<float> cosines, sines;

  bool is_of(const SharedAngles& other, int64_t other_axes) const {
    if (axes != other_axes) return false;
    return angles == other ||
           (angles->magnitude == other->magnitude && angles->frequencies == other->frequencies);
  }
};
using SharedTable = std::shared_ptr<const AngleTable>;

SharedTable make_table(std::span<const int32_t> positions, const SharedAngles& angles,
                       int64_t axes) {
  auto table = make_pooled<AngleTable>();
  const std::span<const double> frequencies = angles->frequencies;
  const size_t half = frequencies.size(), section = half / static_cast<size_t>(axes);
  const auto rows = static_cast<int64_t>(positions.size()) / axes;
  table->positions.assign(positions.begin(), positions.end());
  table->angles = angles;
  table->axes = axes;
  table->cosines.resize(static_cast<size_t>(rows) * half);
  table->sines.resize(static_cast<size_t>(rows) * half);
  constexpr int64_t kGrainAngles = 1024;  // a sine and a cosine take about 40 ns
  const int64_t grain = std::max<int64_t>(1, kGrainAngles / static_cast<int64_t>(half));
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int32_t* position = positions.data() + row * axes;
      const size_t first = static_cast<size_t>(row) * half;
      for (size_t i = 0; i < half; ++i) {
        const double angle =
            position[i / section] * frequencies[i % section * static_cast<size_t>(axes)];
        table->cosines[first + i] = angles->magnitude * static_cast<float>(std::cos(angle));
        table->sines[first + i] = angles->magnitude * static_cast<float>(std::sin(angle));
      }
    }
  });
  return table;
}

// All layers of a model turn the same rows by the same angles, queries and keys both, so the last
// tables are kept: two, for models that mix two kinds of angles.
SharedTable angle_table(std::span<const int32_t> positions, const SharedAngles& angles,
                        int64_t axes) {
  thread_local std::array<SharedTable, 2> recent;
  for (const SharedTable& table : recent) {
    if (table && table->is_of(angles, axes) && std::ranges::equal(table->positions, positions)) {
      return table;
    }
  }
  SharedTable table = make_table(positions, angles, axes);
  // The table of the same angles is replaced, else the older one.
  if (!(recent[0] && recent[0]->is_of(angles, axes))) std::swap(recent[0], recent[1]);
  recent[0] = table;
  return table;
}

}  // namespace

SharedAngles rotary_angles(double theta, int64_t rotary_dim, const RopeScaling& scaling,
                           bool interleaved) {
  using Kind = RopeScaling::Kind;
  require(rotary_dim > 0 && rotary_dim % 2 == 0, kWhere,
          "{} rotary channels (an even number is needed)", rotary_dim);
  require(theta > 0, kWhere, "theta {} is not positive", theta);
  auto angles = std::make_shared<RotaryAngles>();
  angles->interleaved = interleaved;
  angles->magnitude = static_cast<float>(attention_factor(scaling));
  const bool by_context = scaling.kind == Kind::dynamic_ntk || scaling.kind == Kind::longrope;
  const int64_t context = scaling.context > 0 ? scaling.context : scaling.original_context;
  const bool is_longer = context > scaling.original_context;
  if (by_context) angles->context = context;
  if (scaling.kind == Kind::dynamic_ntk && is_longer) {
    require(rotary_dim > 2, kWhere, "2 rotary channels cannot be scaled by theta");
    const auto d = static_cast<double>(rotary_dim);
    const double growth = scaling.factor * static_cast<double>(context) /
                              static_cast<double>(scaling.original_context) -
                          (scaling.factor - 1);
    theta *= std::pow(growth, d / (d - 2));
  }
  Frequencies& frequencies = angles->frequencies = plain_frequencies(theta, rotary_dim);
  if (scaling.kind == Kind::linear) {
    for (double& frequency : frequencies) frequency /= scaling.factor;
  } else if (scaling.kind == Kind::yarn) {
    require(theta > 1, kWhere, "theta {} leaves nothing to scale", theta);
    scale_yarn(frequencies, theta, scaling);
  } else if (scaling.kind == Kind::llama3) {
    scale_llama3(frequencies, scaling);
  } else if (scaling.kind == Kind::longrope) {
    const Frequencies& divisors = is_longer ? scaling.long_factors : scaling.short_factors;
    require(divisors.size() == frequencies.size(), kWhere, "{} divisors for {} pairs of channels",
            divisors.size(), frequencies.size());
    for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] /= divisors[i];
  }
  return angles;
}

Tensor rope(const Context& context, const Tensor& x, std::span<const int32_t> positions,
            int64_t head_dim, const SharedAngles& angles, int64_t axes) {
  require(axes >= 1 && static_cast<int64_t>(positions.size()) == axes * x.rows(), kWhere,
          "{} positions for {} rows", positions.size(), x.rows());
  require(head_dim > 0 && x.columns() % head_dim == 0, kWhere, "{} columns in heads of {}",
          x.columns(), head_dim);
  require(angles->rotary_dim() <= head_dim, kWhere, "{} rotary channels in heads of {}",
          angles->rotary_dim(), head_dim);
  require(angles->rotary_dim() % (2 * axes) == 0, kWhere,
          "{} rotary channels are not pairs for {} dimensions", angles->rotary_dim(), axes);
  const SharedTable table = angle_table(positions, angles, axes);
  const auto rotation = [=](bool backwards) {
    return Rotation{extent_of(x),        head_dim,  angles->rotary_dim(), table->cosines.data(),
                    table->sines.data(), backwards, angles->interleaved};
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
