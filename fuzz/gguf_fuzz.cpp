// GGUF files: each input is one. Whatever it is must be an Error, or a file whose every value and
// byte can be read.
//
//   cmake --preset fuzz && cmake --build --preset fuzz
//   build-fuzz/fuzz/gguf_fuzz -max_len=4096 -malloc_limit_mb=64 -max_total_time=600
#include "base/error.h"
#include "formats/gguf.h"
#include "memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static pronghorn::MemoryFile memory;
  try {
    const pronghorn::GgufFile file(memory.hold(data, size));
    unsigned sum = 0;
    for (const auto& [key, value] : file.metadata().all()) {
      sum += static_cast<unsigned>(value.description().size());
      if (const auto texts = value.as_texts()) {
        for (const std::string_view text : *texts) {
          for (const char c : text) sum += static_cast<unsigned char>(c);
        }
      }
      if (const auto numbers = value.as_numbers()) sum += static_cast<unsigned>(numbers->size());
      if (const auto whole = value.as_integers()) sum += static_cast<unsigned>(whole->size());
    }
    for (const pronghorn::GgufTensor& tensor : file.tensors()) {
      for (const std::byte byte : tensor.bytes) sum += static_cast<unsigned>(byte);
      if (file.find(tensor.name) != &tensor) __builtin_trap();
    }
    static volatile unsigned kept;
    kept = sum;
  } catch (const pronghorn::Error&) {
  }
  return 0;
}
