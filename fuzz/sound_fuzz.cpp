// WAV files: whatever their bytes, they end in an Error or in a spectrogram.
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "formats/log_mel.h"
#include "formats/sound.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pronghorn;
  try {
    const Sound sound = decode_sound({reinterpret_cast<const char*>(data), size}, "fuzz");
    LogMel{LogMelOptions{}}(sound.samples);
  } catch (const Error&) {
  }
  return 0;
}
