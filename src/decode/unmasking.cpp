#include "decode/unmasking.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/random.h"

namespace pronghorn {
namespace {

constexpr uint64_t kNoiseStream = stream_id("unmasking");
constexpr uint64_t kOrderStream = stream_id("unmasking order");

// Of a distribution that scores give.
struct Shape {
  double first = 0, second = 0;  // the largest probabilities
  double negative_entropy = 0;
  double largest = 0, sum = 0;  // of the scores, and of exp(score - largest)
};

Shape shape_of(std::span<const float> scores) {
  Shape shape;
  double first = -std::numeric_limits<double>::infinity(), second = first;
  for (const float score : scores) {
    const double s = score;
    if (s > first) {
      second = first;
      first = s;
    } else if (s > second) {
      second = s;
    }
  }
  double weighted = 0;
  for (const float score : scores) {
    const double above = double{score} - first, e = std::exp(above);
    shape.sum += e;
    if (e > 0) weighted += e * above;
  }
  shape.largest = first;
  shape.first = 1 / shape.sum;
  shape.second = std::exp(second - first) / shape.sum;
  shape.negative_entropy = weighted / shape.sum - std::log(shape.sum);
  return shape;
}

double rank_of(UnmaskOrder order, const Shape& shape, const Unmasking& drawn, uint64_t seed,
               uint64_t noise) {
  switch (order) {
    case UnmaskOrder::confidence:
      return drawn.probability;
    case UnmaskOrder::entropy:
      return shape.negative_entropy;
    case UnmaskOrder::margin:
      return shape.first - shape.second;
    case UnmaskOrder::random:
      break;
  }
  const auto position = static_cast<uint64_t>(drawn.position);
  return unit_interval(philox(philox(seed, noise, kOrderStream), position, kOrderStream));
}

}  // namespace

Unmasking draw_unmasking(std::span<const float> scores, int32_t mask_token, UnmaskOrder order,
                         const SamplingOptions& sampling, std::span<const int32_t> recent,
                         int64_t position, uint64_t noise) {
  std::vector<float> allowed(scores.begin(), scores.end());
  allowed.at(static_cast<size_t>(mask_token)) = -std::numeric_limits<float>::infinity();
  SamplingOptions step = sampling;
  step.seed = philox(sampling.seed, noise, kNoiseStream);
  Unmasking drawn;
  drawn.position = position;
  drawn.token = sample(allowed, step, recent, position);
  require(drawn.token != mask_token, "sampling", "no token but the one that masks can be drawn");
  const Shape shape = shape_of(allowed);
  const double score = allowed[static_cast<size_t>(drawn.token)];
  drawn.probability = std::exp(score - shape.largest) / shape.sum;
  drawn.rank = rank_of(order, shape, drawn, sampling.seed, noise);
  return drawn;
}

std::vector<Unmasking> take_unmaskings(std::vector<Unmasking> all, int64_t count,
                                       double threshold) {
  std::stable_sort(all.begin(), all.end(),
                   [](const Unmasking& a, const Unmasking& b) { return a.rank > b.rank; });
  std::vector<Unmasking> taken;
  for (int64_t i = 0; i < std::ssize(all); ++i) {
    const Unmasking& one = all[static_cast<size_t>(i)];
    if (i < count || (threshold > 0 && one.probability >= threshold)) taken.push_back(one);
  }
  return taken;
}

}  // namespace pronghorn
