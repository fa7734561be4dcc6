#include "formats/log_mel.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>

#include "base/error.h"
#include "base/threads.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "log-mel spectrogram";
constexpr int64_t kMaxWindow = 1 << 13, kMaxBands = 512;
constexpr int64_t kFactors[] = {5, 3, 2};
constexpr int64_t kFramesPerTask = 16;

using Complex = std::complex<double>;

// out[k] = sum_i in[i step] e^{-2 pi j i k / size}, size the product of the factors: of each
// factor's residue classes first, then their sum (Cooley and Tukey, 1965). rotations: of the whole
// transform, of which this is every `step`-th.
void transform(const Complex* in, size_t step, std::span<const int64_t> factors,
               std::span<const Complex> rotations, std::span<Complex> out) {
  if (factors.empty()) {
    out[0] = in[0];
    return;
  }
  const auto factor = static_cast<size_t>(factors[0]);
  const size_t part = out.size() / factor;
  for (size_t r = 0; r < factor; ++r) {
    transform(in + r * step, step * factor, factors.subspan(1), rotations,
              out.subspan(r * part, part));
  }
  std::array<Complex, kFactors[0]> turned;
  for (size_t k = 0; k < part; ++k) {
    for (size_t r = 0; r < factor; ++r) turned[r] = out[r * part + k] * rotations[r * k * step];
    for (size_t q = 0; q < factor; ++q) {
      Complex sum = turned[0];
      for (size_t r = 1; r < factor; ++r) {
        sum += turned[r] * rotations[r * q % factor * part * step];
      }
      out[q * part + k] = sum;
    }
  }
}

// Slaney's mel scale: 15 mels to 1000 Hz, then 27 for each factor of 6.4.
constexpr double kHzPerMel = 200.0 / 3, kLinearEnd = 1000, kLinearMels = kLinearEnd / kHzPerMel;
const double kLogStep = std::log(6.4) / 27;

double mel_of(double hz) {
  return hz < kLinearEnd ? hz / kHzPerMel : kLinearMels + std::log(hz / kLinearEnd) / kLogStep;
}

double hz_of(double mel) {
  return mel < kLinearMels ? mel * kHzPerMel
                           : kLinearEnd * std::exp(kLogStep * (mel - kLinearMels));
}

}  // namespace

LogMel::LogMel(const LogMelOptions& options) : options_(options) {
  const int64_t window = options.window;
  require(options.sample_rate > 0 && window >= 2 && window <= kMaxWindow && options.hop > 0 &&
              options.mels > 0 && options.mels <= kMaxBands && options.range >= 0,
          kWhere, "windows of {} samples, {} apart, of {} a second, in {} bands", window,
          options.hop, options.sample_rate, options.mels);
  int64_t rest = window;
  for (const int64_t factor : kFactors) {
    for (; rest % factor == 0; rest /= factor) factors_.push_back(factor);
  }
  if (rest != 1) {
    throw Error(kWhere, fmt::format("windows of {} samples", window),
                "choose a number that is made of factors 2, 3 and 5, such as 400 or 512");
  }
  for (int64_t i = 0; i < window; ++i) {
    const double angle =
        2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(window);
    hann_.push_back((1 - std::cos(angle)) / 2);
    rotations_.emplace_back(std::cos(angle), -std::sin(angle));
  }
  const auto rate = static_cast<double>(options.sample_rate);
  std::vector<double> corners;
  for (int64_t i = 0; i < options.mels + 2; ++i) {
    corners.push_back(
        hz_of(mel_of(rate / 2) * static_cast<double>(i) / static_cast<double>(options.mels + 1)));
  }
  for (size_t m = 0; m + 2 < corners.size(); ++m) {
    const double low = corners[m], centre = corners[m + 1], high = corners[m + 2];
    Band band;
    for (int64_t k = 0; k <= window / 2; ++k) {
      const double hz = static_cast<double>(k) * rate / static_cast<double>(window);
      const double weight = std::min((hz - low) / (centre - low), (high - hz) / (high - centre));
      if (weight <= 0) continue;
      if (band.weights.empty()) band.first = k;
      band.weights.push_back(weight * 2 / (high - low));
    }
    bands_.push_back(std::move(band));
  }
}

void LogMel::frame(std::span<const float> samples, int64_t t, float* out) const {
  constexpr double kLeast = 1e-10;
  const auto count = std::ssize(samples);
  std::vector<Complex> in, spectrum(hann_.size());
  for (int64_t i = 0; i < options_.window; ++i) {
    int64_t at = t * options_.hop - options_.window / 2 + i;
    if (at < 0) at = -at;
    if (at >= count) at = 2 * (count - 1) - at;
    in.emplace_back(hann_[static_cast<size_t>(i)] * double{samples[static_cast<size_t>(at)]});
  }
  transform(in.data(), 1, factors_, rotations_, spectrum);
  for (size_t m = 0; m < bands_.size(); ++m) {
    double sum = 0;
    const Band& band = bands_[m];
    for (size_t k = 0; k < band.weights.size(); ++k) {
      sum += band.weights[k] * std::norm(spectrum[static_cast<size_t>(band.first) + k]);
    }
    out[m] = static_cast<float>(std::log10(std::max(sum, kLeast)));
  }
}

std::vector<float> LogMel::operator()(std::span<const float> samples) const {
  // Every sample that is asked for beyond the ends has a mirror image.
  const auto count = std::ssize(samples);
  const int64_t least = std::max(options_.window / 2 + 1, options_.hop);
  require(count >= least, kWhere, "{} samples are fewer than the {} of a frame", count, least);
  const int64_t total = frames(count);
  require(total <= kMaxLogMel / options_.mels, kWhere, "{} frames of {} bands are too many", total,
          options_.mels);
  std::vector<float> out(static_cast<size_t>(total * options_.mels));
  parallel_for(total, kFramesPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) frame(samples, t, out.data() + t * options_.mels);
  });
  const float floor = options_.range == 0
                          ? std::numeric_limits<float>::lowest()
                          : *std::ranges::max_element(out) - static_cast<float>(options_.range);
  for (float& value : out) value = (std::max(value, floor) + 4) / 4;
  return out;
}

}  // namespace pronghorn
