#include "ops/subsample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

constexpr char kWhere[] = "subsample";

void check_scores(const Tensor& scores, const CheckedBatch& batch) {
  require(scores.columns() == 1 && scores.rows() == batch.rows() && scores.contiguous(), kWhere,
          "scores {} for {} rows", scores.shape(), batch.rows());
}

void check_rows(std::span<const int32_t> rows, int64_t count) {
  for (size_t i = 0; i < rows.size(); ++i) {
    require(rows[i] >= 0 && rows[i] < count && (i == 0 || rows[i] > rows[i - 1]), kWhere,
            "row {} is selected where {} rows are there and rows must ascend", rows[i], count);
  }
}

std::vector<int64_t> segment_lengths(const CheckedBatch& batch) {
  std::vector<int64_t> lengths;
  for (const Segment& segment : batch.segments()) lengths.push_back(segment.length);
  return lengths;
}

float weight_of(float score) { return std::clamp(score, 0.0f, 1.0f); }

// x with erf(x) = y, by Newton's method on a function without saddle; -inf or inf at the ends.
double inverse_erf(double y) {
  if (y <= -1 || y >= 1) return std::copysign(std::numeric_limits<double>::infinity(), y);
  double x = 0;
  for (int i = 0; i < 60; ++i) {
    const double slope = 2 / std::sqrt(std::numbers::pi) * std::exp(-x * x);
    const double step = (std::erf(x) - y) / slope;
    // Far out the slope vanishes; short steps stay where it does not.
    x -= std::clamp(step, -0.5, 0.5);
    if (std::abs(step) < 1e-14) break;
  }
  return x;
}

}  // namespace

RowSelection select_positive(const Tensor& scores, const CheckedBatch& batch) {
  check_scores(scores, batch);
  const PooledVector<float> values = scores.read();
  RowSelection selection;
  for (const Segment& segment : batch.segments()) {
    const size_t before = selection.rows.size();
    for (int64_t row = segment.first_row; row < segment.first_row + segment.length; ++row) {
      if (values[static_cast<size_t>(row)] > 0) selection.rows.push_back(static_cast<int32_t>(row));
    }
    selection.counts.push_back(static_cast<int64_t>(selection.rows.size() - before));
  }
  return selection;
}

RowSelection select_highest(const Tensor& scores, const CheckedBatch& batch, double keep,
                            bool reversed) {
  check_scores(scores, batch);
  require(keep > 0 && keep <= 1, kWhere, "a share of {} rows is to be kept", keep);
  const PooledVector<float> scores_read = scores.read();
  const float* values = scores_read.data();
  RowSelection selection;
  for (const Segment& segment : batch.segments()) {
    std::vector<int32_t> ranked(static_cast<size_t>(segment.length));
    std::iota(ranked.begin(), ranked.end(), static_cast<int32_t>(segment.first_row));
    std::stable_sort(ranked.begin(), ranked.end(),
                     [values](int32_t a, int32_t b) { return values[a] > values[b]; });
    const auto total = static_cast<int64_t>(ranked.size());
    // Rounded first, so that 0.64 of 100 is 64 and not, by a last bit too many, 65.
    const auto share =
        static_cast<int64_t>(std::ceil(std::round(keep * static_cast<double>(total) * 1e6) / 1e6));
    const int64_t count = std::max(share, std::min<int64_t>(1, total));
    std::vector<std::pair<int32_t, int32_t>> kept;  // row and penalty
    for (int64_t i = 0; i < count; ++i) {
      const int64_t rank = reversed ? 2 * count - 1 - i : count + i;
      kept.emplace_back(ranked[static_cast<size_t>(i)],
                        rank < total ? ranked[static_cast<size_t>(rank)] : -1);
    }
    std::sort(kept.begin(), kept.end());
    for (const auto& [row, penalty] : kept) {
      selection.rows.push_back(row);
      selection.penalties.push_back(penalty);
    }
    selection.counts.push_back(count);
  }
  return selection;
}

Batch selected_batch(const CheckedBatch& batch, const RowSelection& selection) {
  require(selection.counts.size() == batch.segments().size(), kWhere,
          "a selection of {} segments for {}", selection.counts.size(), batch.segments().size());
  check_rows(selection.rows, batch.rows());
  Batch inner;
  for (const int32_t row : selection.rows) {
    inner.positions.push_back(batch.positions()[static_cast<size_t>(row)]);
    const int64_t count = batch.coordinate_count();
    const auto first = batch.coordinates().begin() + row * count;
    inner.coordinates.insert(inner.coordinates.end(), first, first + count);
  }
  int64_t first = 0;
  for (size_t s = 0; s < batch.segments().size(); ++s) {
    const Segment& outer = batch.segments()[s];
    Segment segment{outer.state, first, selection.counts[s], outer.mask, {}};
    if (!outer.parents.empty()) {
      // nearest[i]: index of node i, or of its nearest selected ancestor, among the selected nodes.
      std::vector<int32_t> nearest(outer.parents.size());
      const int32_t* next = selection.rows.data() + first;
      for (size_t node = 0; node < nearest.size(); ++node) {
        const int32_t parent = outer.parents[node];
        const int32_t above = parent < 0 ? -1 : nearest[static_cast<size_t>(parent)];
        const auto index = static_cast<int32_t>(segment.parents.size());
        const bool selected =
            index < segment.length && next[index] == outer.first_row + static_cast<int64_t>(node);
        nearest[node] = selected ? index : above;
        if (selected) segment.parents.push_back(above);
      }
    }
    first += segment.length;
    inner.segments.push_back(std::move(segment));
  }
  return inner;
}

Tensor gather_rows(const Context& context, const Tensor& x, std::span<const int32_t> rows) {
  check_rows(rows, x.rows());
  return embedding(context, x, rows);
}

Tensor selected_weights(const Context& context, const Tensor& scores,
                        const RowSelection& selection) {
  const std::vector<int32_t>&rows = selection.rows, &penalties = selection.penalties;
  require(penalties.empty() || penalties.size() == rows.size(), kWhere, "{} penalties for {} rows",
          penalties.size(), rows.size());
  const PooledVector<float> read = scores.read();
  const float* s = read.data();
  PooledVector<float> kept(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const bool penalised = !penalties.empty() && penalties[i] >= 0;
    kept[i] = weight_of(s[rows[i]]) - (penalised ? weight_of(s[penalties[i]]) : 0);
  }
  const Tensor weights = Tensor::from(kept, {static_cast<int64_t>(rows.size()), 1});
  if (needs_gradient(context, weights, scores)) {
    context.tape->record([scores, weights, rows, penalties] {
      if (!weights.has_grad()) return;
      const PooledVector<float> gradient = weights.grad().read(), values = scores.read();
      const GradTarget target = scores.grad_target();
      PooledVector<float> sum = gradient_so_far(target);
      const auto pass = [&](int32_t row, float g) {
        if (row < 0) return;
        const auto index = static_cast<size_t>(row);
        if (values[index] >= 0 && values[index] <= 1) sum[index] += g;
      };
      for (size_t i = 0; i < rows.size(); ++i) {
        pass(rows[i], gradient[i]);
        if (!penalties.empty()) pass(penalties[i], -gradient[i]);
      }
      target.tensor.write(sum);
    });
  }
  return weights;
}

Tensor selection_loss(const Context& context, const Tensor& logits, const RowSelection& selection) {
  require(logits.columns() == 1 && logits.rows() > 0, "selection_loss", "logits {}",
          logits.shape());
  check_rows(selection.rows, logits.rows());
  const PooledVector<float> z = logits.read();
  std::vector<bool> selected(z.size());
  for (const int32_t row : selection.rows) selected[static_cast<size_t>(row)] = true;
  double sum = 0;
  for (size_t i = 0; i < z.size(); ++i) {
    const double against = selected[i] ? -double{z[i]} : double{z[i]};
    sum += std::max(against, 0.0) + std::log1p(std::exp(-std::abs(against)));
  }
  const auto count = static_cast<double>(z.size());
  const Tensor loss = Tensor::full({1}, static_cast<float>(sum / count));
  if (!needs_gradient(context, loss, logits)) return loss;
  context.tape->record([logits, loss, selected = std::move(selected), count] {
    if (!loss.has_grad()) return;
    const double gradient = double{loss.grad().read()[0]} / count;
    const PooledVector<float> values = logits.read();
    const GradTarget target = logits.grad_target();
    PooledVector<float> to = gradient_so_far(target);
    for (size_t i = 0; i < to.size(); ++i) {
      const double probability = 1 / (1 + std::exp(-double{values[i]}));
      to[i] += static_cast<float>(gradient * (probability - (selected[i] ? 1 : 0)));
    }
    target.tensor.write(to);
  });
  return loss;
}

Tensor upsample(const Context& context, const Tensor& x, const Tensor& y, const Tensor& weights,
                const Tensor& bypass_scale, std::span<const int32_t> rows) {
  const auto count = static_cast<int64_t>(rows.size());
  check_rows(rows, x.rows());
  require(y.rows() == count && y.columns() == x.columns() && weights.size() == count &&
              bypass_scale.size() == x.columns(),
          "upsample", "{} of {} weights for {} rows of {} with a scale of {}", y.shape(),
          weights.size(), count, x.shape(), bypass_scale.size());
  require(weights.contiguous(), "upsample", "weights {} have gaps", weights.shape());
  const Tensor out = Tensor::empty(x.shape());
  const auto arguments = [=](const std::vector<int32_t>& kept) {
    return Upsampling{extent_of(x),       static_cast<int64_t>(kept.size()),
                      kept.data(),        input_matrix(x),
                      input_matrix(y),    weights.data(),
                      bypass_scale.data()};
  };
  std::vector<int32_t> kept(rows.begin(), rows.end());
  backend().pointwise().upsample(arguments(kept), output_matrix(out));
  if (needs_gradient(context, out, x, y, weights, bypass_scale)) {
    context.tape->record([=, kept = std::move(kept)] {
      if (!out.has_grad()) return;
      const Matrix dx = input_gradient(x), dy = input_gradient(y);
      Matrix dweights = input_gradient(weights);
      dweights.stride = 1;
      backend().pointwise().upsample_backward(arguments(kept), output_gradient(out), dx, dy,
                                              dweights, vector_gradient(bypass_scale));
    });
  }
  return out;
}

Tensor pooling_weights(const Context& context, const Tensor& scores, int64_t channels) {
  require(scores.size() > 0 && channels > 0, "pooling_weights", "scores {} for {} channels",
          scores.shape(), channels);
  const PooledVector<float> values = scores.read();
  const float most = *std::max_element(values.begin(), values.end());
  std::vector<double> shares;
  double sum = 0;
  for (const float value : values) sum += shares.emplace_back(std::exp(double{value} - most));
  for (double& share : shares) share /= sum;
  const size_t taps = shares.size();
  PooledVector<float> all(taps * static_cast<size_t>(channels));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<float>(shares[i % taps]);
  const Tensor weights = Tensor::from(all, {channels, static_cast<int64_t>(taps)});
  if (needs_gradient(context, weights, scores)) {
    context.tape->record([scores, weights, shares = std::move(shares)] {
      if (!weights.has_grad()) return;
      const PooledVector<float> gradient = weights.grad().read();
      const size_t count = shares.size();
      std::vector<double> totals(count);
      for (size_t i = 0; i < gradient.size(); ++i) totals[i % count] += double{gradient[i]};
      double mean = 0;
      for (size_t j = 0; j < count; ++j) mean += shares[j] * totals[j];
      const GradTarget target = scores.grad_target();
      PooledVector<float> to = gradient_so_far(target);
      for (size_t j = 0; j < count; ++j) {
        to[j] += static_cast<float>(shares[j] * (totals[j] - mean));
      }
      target.tensor.write(to);
    });
  }
  return weights;
}

Tensor limit(const Context& context, const Tensor& x, float low, float high) {
  PooledVector<float> limited = x.read();
  for (float& value : limited) value = std::clamp(value, low, high);
  const Tensor y = Tensor::from(limited, x.shape());
  if (needs_gradient(context, y, x)) {
    context.tape->record([=] {
      if (!y.has_grad()) return;
      const PooledVector<float> dy = y.grad().read(), values = x.read();
      const GradTarget target = x.grad_target();
      PooledVector<float> sum = gradient_so_far(target);
      for (size_t i = 0; i < values.size(); ++i) {
        const float value = values[i], g = dy[i];
        if ((value < low && g > 0) || (value > high && g < 0)) continue;
        sum[i] += g;
      }
      target.tensor.write(sum);
    });
  }
  return y;
}

Tensor balance(const Context& context, const Tensor& scores, const BalanceBounds& bounds) {
  require(scores.contiguous(), "balance", "scores {} have gaps", scores.shape());
  if (context.tape == nullptr || !scores.requires_grad()) return scores;
  const Tensor balanced = scores.detach();
  balanced.set_requires_grad(true);
  context.tape->record([scores, balanced, bounds] {
    if (!balanced.has_grad()) return;
    const PooledVector<float> incoming = balanced.grad().read();
    const std::vector<float> push = balance_gradient(scores.read(), bounds);
    const GradTarget target = scores.grad_target();
    PooledVector<float> sum = gradient_so_far(target);
    for (size_t i = 0; i < sum.size(); ++i) {
      sum[i] += incoming[i] + std::abs(incoming[i]) * push[i];
    }
    target.tensor.write(sum);
  });
  return balanced;
}

float excess_bias(std::span<const float> scores, double keep) {
  // At the share 0.64; at 0.5 and 0.8 it is 0.40 and 0.28.
  constexpr double kDensity = 0.37;
  double positive = 0, squares = 0;
  for (const double s : scores) {
    positive += s > 0;
    squares += s * s;
  }
  const auto count = static_cast<double>(scores.size());
  return static_cast<float>((positive / count - keep) * std::sqrt(squares / count) / kDensity);
}

Tensor balance_share(const Context& context, const Tensor& scores, const CheckedBatch& batch,
                     const Tensor& bias, double keep) {
  check_scores(scores, batch);
  require(bias.size() == 1, "balance", "a bias {} is not one number", bias.shape());
  if (context.tape == nullptr || !scores.requires_grad() || !bias.requires_grad()) return scores;
  const Tensor balanced = scores.detach();
  balanced.set_requires_grad(true);
  context.tape->record([scores, balanced, bias, keep, lengths = segment_lengths(batch)] {
    const GradTarget bias_target = bias.grad_target(), target = scores.grad_target();
    PooledVector<float> excess = gradient_so_far(bias_target), sum = gradient_so_far(target);
    const PooledVector<float> values = scores.read();
    const PooledVector<float> gradient =
        balanced.has_grad() ? balanced.grad().read() : PooledVector<float>();
    size_t first = 0;
    for (const int64_t length : lengths) {
      if (length == 0) continue;
      const auto count = static_cast<size_t>(length);
      excess[0] += excess_bias(std::span(values).subspan(first, count), keep);
      if (!gradient.empty()) {
        const auto incoming = std::span(gradient).subspan(first, count);
        const auto to = std::span(sum).subspan(first, count);
        const double mean =
            std::accumulate(incoming.begin(), incoming.end(), 0.0) / static_cast<double>(length);
        for (size_t i = 0; i < count; ++i) to[i] += incoming[i] - static_cast<float>(mean);
      }
      first += count;
    }
    bias_target.tensor.write(excess);
    target.tensor.write(sum);
  });
  return balanced;
}

Tensor centre(const Context& context, const Tensor& x, const CheckedBatch& batch,
              const Tensor& shift) {
  require(x.rows() == batch.rows(), "centre", "{} rows for a batch of {}", x.rows(), batch.rows());
  const Tensor centred = add_bias(context, x, shift.detach());
  if (context.tape == nullptr || !shift.requires_grad()) return centred;
  context.tape->record([centred, shift, lengths = segment_lengths(batch)] {
    const GradTarget target = shift.grad_target();
    PooledVector<float> excess = gradient_so_far(target);
    const PooledVector<float> values = centred.read();
    auto value = values.begin();
    for (const int64_t length : lengths) {
      for (int64_t i = 0; i < length; ++i) {
        for (float& sum : excess) sum += *value++ / static_cast<float>(length);
      }
    }
    target.tensor.write(excess);
  });
  return centred;
}

std::vector<float> balance_gradient(std::span<const float> scores, const BalanceBounds& bounds) {
  const auto count = static_cast<double>(scores.size());
  double sum = 0, squares = 0;
  for (const double s : scores) {
    sum += s;
    squares += s * s;
  }
  constexpr double kLeast = 1e-20;
  const double mean = sum / count, square = std::max(squares / count, kLeast);
  const double deviation = std::sqrt(std::max(square - mean * mean, kLeast));
  const double m = mean / deviation, rms = std::sqrt(square);
  const auto share_bound = [](double share) {
    return std::numbers::sqrt2 * inverse_erf(2 * share - 1);
  };
  const double of_magnitude = std::sqrt(std::numbers::pi / 2);
  const auto side = [](double value, double low, double high) {
    return value < low ? -1.0 : value > high ? 1.0 : 0.0;
  };
  const double m_side = side(m, share_bound(bounds.least_share), share_bound(bounds.most_share));
  const double rms_side =
      side(rms, of_magnitude * bounds.least_magnitude, of_magnitude * bounds.most_magnitude);
  std::vector<double> gradient;
  double gradient_squares = 0;
  for (const double s : scores) {
    const double of_m = (1 - m * (s - mean) / deviation) / (count * deviation);
    const double of_log_rms = s / (count * square);
    gradient.push_back(m_side * of_m + rms_side * of_log_rms);
    gradient_squares += gradient.back() * gradient.back();
  }
  const double gradient_rms = std::max(std::sqrt(gradient_squares / count), kLeast);
  std::vector<float> scaled;
  for (const double g : gradient) {
    scaled.push_back(static_cast<float>(g * bounds.gradient_scale / gradient_rms));
  }
  return scaled;
}

}  // namespace pronghorn
