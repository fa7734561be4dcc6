// WAV files in memory.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace pronghorn::testing_support {

inline std::string little_endian(uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text += static_cast<char>(value >> (8 * i) & 0xFF);
  return text;
}

struct WavKind {
  int tag = 1;  // 1: PCM, 3: numbers
  int channels = 1, rate = 16000, bits = 16;
};

// data: the samples as they are stored. claimed: bytes of them that the header speaks of; below 0:
// those there are.
inline std::string wav_of(const std::string& data, const WavKind& kind = {}, int64_t claimed = -1) {
  const auto size = claimed < 0 ? data.size() : static_cast<uint64_t>(claimed);
  const int block = kind.channels * kind.bits / 8;
  return "RIFF" + little_endian(36 + size, 4) + "WAVEfmt " + little_endian(16, 4) +
         little_endian(static_cast<uint64_t>(kind.tag), 2) +
         little_endian(static_cast<uint64_t>(kind.channels), 2) +
         little_endian(static_cast<uint64_t>(kind.rate), 4) +
         little_endian(static_cast<uint64_t>(kind.rate) * static_cast<uint64_t>(block), 4) +
         little_endian(static_cast<uint64_t>(block), 2) +
         little_endian(static_cast<uint64_t>(kind.bits), 2) + "data" + little_endian(size, 4) +
         data;
}

inline std::string pcm16(std::span<const int16_t> samples) {
  std::string data;
  for (const int16_t sample : samples) data += little_endian(static_cast<uint16_t>(sample), 2);
  return data;
}

}  // namespace pronghorn::testing_support
