// Safetensors: named tensors in one file. Layout: eight bytes of header length (little endian), a
// JSON header, then the tensors' bytes without gaps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"

namespace pronghorn {

// Bytes an element of a safetensors dtype ("F32", "BF16", "I64"...); 0 for an unknown name.
int64_t safetensors_dtype_bytes(std::string_view dtype);

// One tensor of a file. The bytes need not be aligned to the dtype.
struct SafetensorsEntry {
  std::string dtype;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
  std::shared_ptr<const MappedFile> file = {};  // that the bytes are part of, or null:
  std::shared_ptr<const void> owner = {};       // memory that keeps them

  int64_t elements() const;
};

// Converts an F64, F32, F16 or BF16 tensor to float32. out: room for entry.elements() values.
// where: for the Error that any other dtype throws.
void to_f32(const SafetensorsEntry& entry, float* out, std::string_view where = "tensor");

// A file mapped for reading, checked completely when opened: Error names the file, the tensor and
// the value for anything that is not a well-formed file whose tensors fill it without overlap.
class SafetensorsFile {
 public:
  using Entry = SafetensorsEntry;

  explicit SafetensorsFile(const std::filesystem::path& path);

  // In the order of the alphabet.
  std::vector<std::string> names() const;
  // Null if there is no such tensor.
  const Entry* find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  void parse_header(std::string_view header, std::span<const std::byte> data);

  std::filesystem::path path_;
  std::shared_ptr<const MappedFile> file_;
  std::map<std::string, Entry, std::less<>> entries_;
  std::map<std::string, std::string> metadata_;
};

struct TensorToWrite {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  const void* data;
  uint64_t bytes;
};

// Writes a file whose bytes depend only on the arguments: tensors sorted by element size (largest
// first, so that each is aligned to its dtype) and then by name. Throws Error if a name occurs
// twice, a shape does not match its bytes, or the disk refuses.
void write_safetensors(const std::filesystem::path& path, std::vector<TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace pronghorn
