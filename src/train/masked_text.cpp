#include "train/masked_text.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/random.h"
#include "ops/subsample.h"

namespace pronghorn {
namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;
// The least t: 1 / t is how often a loss counts.
constexpr double kLeastNoise = 1e-3;

double fraction(double x) { return x - std::floor(x); }

// Calls part(number, begin, end) for each block, or for the whole sequence.
template <typename Part>
void for_each_block(const DiffusionConfig& config, int64_t length, const Part& part) {
  const int64_t block = config.block > 0 ? config.block : std::max<int64_t>(1, length);
  for (int64_t begin = 0; begin < length; begin += block) {
    part(begin / block, begin, std::min(length, begin + block));
  }
}

int64_t block_count(const DiffusionConfig& config, int64_t length) {
  return config.block > 0 ? (length + config.block - 1) / config.block : 1;
}

}  // namespace

MaskWeights training_mask(const DiffusionConfig& config, uint64_t seed, uint64_t index,
                          int64_t sequences, int64_t length) {
  const auto count = static_cast<uint64_t>(sequences);
  const int64_t blocks = block_count(config, length);
  Random step(seed + index / count * kGolden, "noise of a step");
  const double offset = step.uniform();
  Random random(seed + index * kGolden, "masked tokens");
  MaskWeights weights(static_cast<size_t>(length));
  for_each_block(config, length, [&](int64_t number, int64_t begin, int64_t end) {
    const double place = static_cast<double>(index % count) * static_cast<double>(blocks) +
                         static_cast<double>(number);
    const double even = fraction(offset + place / static_cast<double>(sequences * blocks));
    const double t = config.block == 1 ? 1 : (1 - kLeastNoise) * even + kLeastNoise;
    for (int64_t i = begin; i < end; ++i) {
      const bool masked = random.uniform() < t && !(config.shift && i == 0);
      weights[static_cast<size_t>(i)] = masked ? static_cast<float>(1 / t) : 0.0f;
    }
  });
  return weights;
}

MaskWeights bound_mask(const DiffusionConfig& config, uint64_t sample, int64_t length) {
  constexpr double kGoldenRatio = 0.6180339887498949;
  const int64_t blocks = block_count(config, length);
  Random random(sample * kGolden, "masked tokens of the bound");
  MaskWeights weights(static_cast<size_t>(length));
  for_each_block(config, length, [&](int64_t number, int64_t begin, int64_t end) {
    std::vector<int64_t> places(static_cast<size_t>(end - std::max<int64_t>(1, begin)));
    if (places.empty()) return;
    std::iota(places.begin(), places.end(), std::max<int64_t>(1, begin));
    const auto most = static_cast<double>(places.size());
    const double turn =
        static_cast<double>(sample) * static_cast<double>(blocks) + static_cast<double>(number);
    const auto masked = static_cast<size_t>(1 + most * fraction((turn + 0.5) * kGoldenRatio));
    for (size_t i = 0; i < std::min(masked, places.size()); ++i) {
      std::swap(places[i], places[i + random.below(places.size() - i)]);
      weights[static_cast<size_t>(places[i])] =
          static_cast<float>(most / static_cast<double>(masked));
    }
  });
  return weights;
}

void MaskedText::add(std::span<const int32_t> tokens, const MaskWeights& weights) {
  std::vector<int32_t> noisy(tokens.begin(), tokens.end());
  for (size_t i = 0; i < noisy.size(); ++i) {
    if (weights[i] > 0) noisy[i] = config_.mask_token;
  }
  auto first = static_cast<int32_t>(batch_.rows());
  if (config_.block > 0) {
    add_fresh_segment(batch_, tokens);
    add_fresh_segment(batch_, noisy);
    batch_.segments.pop_back();
    Segment& both = batch_.segments.back();
    both.length *= 2;
    both.mask = Mask::two_copies;
    both.block = config_.block;
    first += static_cast<int32_t>(tokens.size());
  } else {
    add_fresh_segment(batch_, noisy);
  }
  for (size_t i = 0; i < noisy.size(); ++i) {
    if (weights[i] == 0) continue;
    const auto place = static_cast<int32_t>(i);
    rows_.push_back(first + (config_.shift ? std::max(0, place - 1) : place));
    targets_.push_back(tokens[i]);
    weights_.push_back(weights[i]);
  }
}

CrossEntropy MaskedText::loss(const Model& model, const Context& context, double gradient_scale,
                              double z_loss_weight, const ForwardObserver& observer) const {
  if (batch_.rows() == 0) return {};
  const Tensor hidden = model.forward(context, batch_, observer);
  if (rows_.empty()) return {};
  return model.cross_entropy(context, gather_rows(context, hidden, rows_), targets_, gradient_scale,
                             z_loss_weight, weights_);
}

}  // namespace pronghorn
