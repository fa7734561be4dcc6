// Sound at another rate (libsamplerate).
#pragma once

#include <cstdint>
#include <string_view>

#include "formats/sound.h"

namespace pronghorn {

// Whether this build changes rates: it was made with libsamplerate.
bool resamples_sound();

// A sound at `rate` samples a second, by a windowed sinc (libsamplerate's medium quality: 121 dB
// of signal to noise): itself if that is its rate. where: its name, for messages. Throws Error for
// rates more than kMostRateChange times as high or low, for results of more than kMaxSoundSamples,
// and in builds without libsamplerate for every other rate.
Sound resampled(Sound sound, int64_t rate, std::string_view where);

constexpr int64_t kMostRateChange = 256;  // the library's limit

}  // namespace pronghorn
