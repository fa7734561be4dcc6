#include "formats/resample.h"

#ifdef PRONGHORN_SAMPLERATE
#include <samplerate.h>
#endif

#include <fmt/format.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace pronghorn {
namespace {

std::string other_rate(const Sound& sound, int64_t rate) {
  return fmt::format("has {} samples a second in place of {}", sound.sample_rate, rate);
}

}  // namespace

#ifdef PRONGHORN_SAMPLERATE

bool resamples_sound() { return true; }

Sound resampled(Sound sound, int64_t rate, std::string_view where) {
  if (sound.sample_rate == rate || sound.samples.empty()) return sound;
  if (sound.sample_rate > rate * kMostRateChange || rate > sound.sample_rate * kMostRateChange) {
    throw Error(where, other_rate(sound, rate),
                fmt::format("rates are changed by a factor of up to {}", kMostRateChange));
  }
  const double ratio = static_cast<double>(rate) / static_cast<double>(sound.sample_rate);
  const double count = std::ceil(static_cast<double>(sound.samples.size()) * ratio);
  require(count <= static_cast<double>(kMaxSoundSamples), where,
          "is {:.0f} samples long at {} a second: a sound has up to {}", count, rate,
          kMaxSoundSamples);
  Sound result{rate, std::vector<float>(static_cast<size_t>(count))};
  SRC_DATA data{};
  data.data_in = sound.samples.data();
  data.input_frames = static_cast<long>(sound.samples.size());
  data.data_out = result.samples.data();
  data.output_frames = static_cast<long>(result.samples.size());
  data.src_ratio = ratio;
  const int error = src_simple(&data, SRC_SINC_MEDIUM_QUALITY, 1);
  require(error == 0, where, "cannot be resampled: {}", src_strerror(error));
  result.samples.resize(static_cast<size_t>(data.output_frames_gen));
  return result;
}

#else

bool resamples_sound() { return false; }

Sound resampled(Sound sound, int64_t rate, std::string_view where) {
  if (sound.sample_rate == rate) return sound;
  throw Error(where, other_rate(sound, rate),
              fmt::format("install libsamplerate0-dev and build again to have it resampled, or "
                          "convert it, for example with sox IN.wav -r {} OUT.wav",
                          rate));
}

#endif

}  // namespace pronghorn
