#include "formats/sound.h"

#ifdef PRONGHORN_SNDFILE
#include <sndfile.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/files.h"
#include "base/quote.h"

namespace pronghorn {

#ifdef PRONGHORN_SNDFILE

namespace {

constexpr uint64_t kMaxFile = uint64_t{1} << 28;
constexpr sf_count_t kChunkFrames = 4096;

// Throws Error unless the file has all of the sound that it says it has: libsndfile reads what is
// there and is silent about the rest.
void check_whole(std::string_view bytes, std::string_view where) {
  constexpr size_t kHeader = 12, kChunkHeader = 8;
  for (uint64_t at = kHeader; at + kChunkHeader <= bytes.size();) {
    uint64_t size = 0;
    for (size_t i = 0; i < 4; ++i) {
      size |= uint64_t{static_cast<uint8_t>(bytes[at + 4 + i])} << (8 * i);
    }
    if (bytes.substr(at, 4) != "data") {
      at += kChunkHeader + size + size % 2;
      continue;
    }
    const uint64_t there = bytes.size() - at - kChunkHeader;
    // Who writes into a pipe does not know the size, and gives one that no file has.
    require(size <= there || size > kMaxFile, where, "ends after {} of the {} bytes of its sound",
            there, size);
    return;
  }
  throw Error(where, "ends before its sound");
}

// A file in memory, as libsndfile reads it.
struct MemoryFile {
  std::string_view bytes;
  sf_count_t at = 0;

  static MemoryFile& of(void* file) { return *static_cast<MemoryFile*>(file); }

  static sf_count_t length(void* file) { return std::ssize(of(file).bytes); }
  static sf_count_t tell(void* file) { return of(file).at; }
  static sf_count_t seek(sf_count_t offset, int whence, void* file) {
    MemoryFile& self = of(file);
    if (whence == SEEK_CUR) offset += self.at;
    if (whence == SEEK_END) offset += std::ssize(self.bytes);
    if (offset < 0 || offset > std::ssize(self.bytes)) return -1;
    return self.at = offset;
  }
  static sf_count_t read(void* to, sf_count_t count, void* file) {
    MemoryFile& self = of(file);
    count = std::clamp<sf_count_t>(count, 0, std::ssize(self.bytes) - self.at);
    std::memcpy(to, self.bytes.data() + self.at, static_cast<size_t>(count));
    self.at += count;
    return count;
  }
  static sf_count_t write(const void*, sf_count_t, void*) { return 0; }
};

void check_kind(const SF_INFO& info, std::string_view where) {
  const int kind = info.format & SF_FORMAT_SUBMASK;
  constexpr int kKinds[] = {SF_FORMAT_PCM_U8, SF_FORMAT_PCM_16, SF_FORMAT_PCM_24, SF_FORMAT_PCM_32,
                            SF_FORMAT_FLOAT,  SF_FORMAT_DOUBLE, SF_FORMAT_ULAW,   SF_FORMAT_ALAW};
  if (std::ranges::find(kKinds, kind) == std::end(kKinds)) {
    throw Error(where, "is a WAV file of compressed sound", "convert it to PCM of 16 bits");
  }
  require(info.channels >= 1 && info.channels <= kMaxSoundChannels, where, "{} channels (1 to {})",
          info.channels, kMaxSoundChannels);
  require(info.frames >= 1 && info.frames <= kMaxSoundSamples, where,
          "{} samples: a sound has 1 to {}", info.frames, kMaxSoundSamples);
  require(info.samplerate >= 1, where, "{} samples a second", info.samplerate);
}

}  // namespace

bool reads_sound() { return true; }

Sound decode_sound(std::string_view bytes, std::string_view where) {
  if (bytes.size() < 12 || !bytes.starts_with("RIFF") || bytes.substr(8, 4) != "WAVE") {
    throw Error(where, bytes.empty() ? "is empty" : "is no WAV file", "WAV is what can be read");
  }
  check_whole(bytes, where);
  MemoryFile memory{bytes};
  SF_VIRTUAL_IO io = {MemoryFile::length, MemoryFile::seek, MemoryFile::read, MemoryFile::write,
                      MemoryFile::tell};
  SF_INFO info{};
  const std::unique_ptr<SNDFILE, int (*)(SNDFILE*)> file(
      sf_open_virtual(&io, SFM_READ, &info, &memory), sf_close);
  if (file == nullptr) {
    throw Error(where, "cannot be read as WAV: " + printable(sf_strerror(nullptr), kQuoteLength));
  }
  check_kind(info, where);
  Sound sound;
  sound.sample_rate = info.samplerate;
  sound.samples.reserve(static_cast<size_t>(info.frames));
  const auto channels = static_cast<size_t>(info.channels);
  std::vector<float> chunk(static_cast<size_t>(kChunkFrames) * channels);
  while (std::ssize(sound.samples) < info.frames) {
    const sf_count_t wanted = std::min(kChunkFrames, info.frames - std::ssize(sound.samples));
    const sf_count_t count = sf_readf_float(file.get(), chunk.data(), wanted);
    require(count > 0, where, "ends after {} of its {} samples", sound.samples.size(), info.frames);
    for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
      double sum = 0;
      for (size_t c = 0; c < channels; ++c) sum += double{chunk[i * channels + c]};
      require(std::isfinite(sum), where, "sample {} is not a number", sound.samples.size());
      sound.samples.push_back(static_cast<float>(sum / static_cast<double>(channels)));
    }
  }
  return sound;
}

Sound read_sound_file(const std::filesystem::path& path) {
  return decode_sound(read_file(path, kMaxFile), path.string());
}

#else

bool reads_sound() { return false; }

Sound decode_sound(std::string_view, std::string_view where) {
  throw Error(where, "cannot be read: this build was made without libsndfile",
              "install libsndfile1-dev and build again");
}

Sound read_sound_file(const std::filesystem::path& path) { return decode_sound({}, path.string()); }

#endif

}  // namespace pronghorn
