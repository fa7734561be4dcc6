// Files of torch.save: whatever their bytes, they end in an Error or in tensors that can be read.
//
// pickle_fuzz -max_len=4096 tests/formats/golden/torch
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <vector>

#include "base/error.h"
#include "formats/pickle.h"

namespace {

const std::filesystem::path& scratch() {
  static const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("pickle_fuzz." + std::to_string(::getpid()));
  return path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::ofstream(scratch(), std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const pronghorn::TorchFile file(scratch());
    for (const auto& [name, entry] : file.entries()) {
      std::vector<float> numbers(static_cast<size_t>(entry.elements()));
      pronghorn::to_f32(entry, numbers.data());
    }
  } catch (const pronghorn::Error&) {
  }
  return 0;
}
