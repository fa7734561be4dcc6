// Safetensors files: each input is one. Whatever it is must be an Error, or a file whose every
// tensor can be read.
//
// safetensors_fuzz -max_len=4096 tests/model/golden (its model.safetensors files)
#include <vector>

#include "base/error.h"
#include "formats/safetensors.h"
#include "memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace pronghorn;
  static MemoryFile memory;
  try {
    const SafetensorsFile file(memory.hold(data, size));
    for (const std::string& name : file.names()) {
      const SafetensorsEntry* entry = file.find(name);
      if (entry == nullptr) __builtin_trap();
      unsigned sum = 0;
      for (const std::byte byte : entry->bytes) sum += static_cast<unsigned>(byte);
      static volatile unsigned kept;
      kept = sum;
      std::vector<float> numbers(static_cast<size_t>(entry->elements()));
      to_f32(*entry, numbers.data());
    }
  } catch (const Error&) {
  }
  return 0;
}
