// Sound from WAV files (libsndfile).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

namespace pronghorn {

struct Sound {
  int64_t sample_rate = 0;     // samples a second
  std::vector<float> samples;  // one channel, from -1 to 1

  double seconds() const {
    return static_cast<double>(samples.size()) / static_cast<double>(sample_rate);
  }
};

// Whether this build reads sound: it was made with libsndfile.
bool reads_sound();

// What is in a WAV file: PCM of 8 to 32 bits, numbers of 32 or 64 bits, a-law or mu-law, of up to
// kMaxSoundChannels channels, of which the mean is taken. where: the file's name, for messages.
// Throws Error for anything else, for truncated files, numbers that are not finite, more than
// kMaxSoundSamples samples a channel, and in builds without libsndfile.
Sound decode_sound(std::string_view bytes, std::string_view where);
Sound read_sound_file(const std::filesystem::path& path);

constexpr int64_t kMaxSoundSamples = int64_t{1} << 24;  // 17 minutes at 16 kHz
constexpr int64_t kMaxSoundChannels = 16;

}  // namespace pronghorn
