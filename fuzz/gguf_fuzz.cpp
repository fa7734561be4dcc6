// GGUF files: each input is one. Whatever it is must be an Error, or a file whose every value and
// byte can be read.
//
//   cmake --preset fuzz && cmake --build --preset fuzz
//   build-fuzz/fuzz/gguf_fuzz -max_len=4096 -malloc_limit_mb=64 -max_total_time=600
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <string>

#include "base/error.h"
#include "formats/gguf.h"

namespace {

// A file in memory, so that the disk does not set the pace.
class MemoryFile {
 public:
  MemoryFile() : descriptor_(::memfd_create("fuzz.gguf", 0)) {
    path_ = "/proc/self/fd/" + std::to_string(descriptor_);
  }
  const std::filesystem::path& hold(const uint8_t* data, size_t size) {
    if (::ftruncate(descriptor_, 0) != 0 ||
        ::pwrite(descriptor_, data, size, 0) != static_cast<ssize_t>(size)) {
      __builtin_trap();
    }
    return path_;
  }

 private:
  int descriptor_;
  std::filesystem::path path_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static MemoryFile memory;
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
