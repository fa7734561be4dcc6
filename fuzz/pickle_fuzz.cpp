// Files of torch.save: whatever their bytes, they end in an Error or in tensors that can be read.
//
// pickle_fuzz -max_len=4096 tests/formats/golden/torch
#include <vector>

#include "base/error.h"
#include "formats/pickle.h"
#include "memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static pronghorn::MemoryFile memory;
  try {
    const pronghorn::TorchFile file(memory.hold(data, size));
    for (const auto& [name, entry] : file.entries()) {
      std::vector<float> numbers(static_cast<size_t>(entry.elements()));
      pronghorn::to_f32(entry, numbers.data());
    }
  } catch (const pronghorn::Error&) {
  }
  return 0;
}
