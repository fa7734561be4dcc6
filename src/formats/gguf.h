// GGUF: named tensors and typed metadata in one file, or in the parts of a split one. Layout
// (version 2 and 3): the magic word, version, number of tensors and of metadata; each key with its
// value; each tensor's name, sizes (the innermost first), type and offset; then the tensors' bytes,
// each at a multiple of the alignment. Source: docs/gguf.md of ggml.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"

namespace pronghorn {

// How the numbers of a tensor are stored: the type's number in files, what it is called, and the
// numbers and bytes of one block.
struct GgufTensorType {
  uint32_t id;
  std::string_view name;  // "Q4_K"; "F32", "F16", "BF16" as in safetensors
  int64_t block, block_bytes;
};

// Null if there is none.
const GgufTensorType* find_gguf_type(uint32_t id);
const GgufTensorType* find_gguf_type(std::string_view name);

enum class GgufKind : uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12
};

std::string_view gguf_kind_name(GgufKind kind);

// One value of the metadata, as its bytes in the file: a number, a text, or an array of either.
// Arrays are views; nothing is copied before it is asked for.
class GgufValue {
 public:
  GgufValue() = default;
  GgufValue(GgufKind kind, GgufKind element, uint64_t count, std::span<const std::byte> bytes,
            std::shared_ptr<const void> owner = nullptr)
      : kind_(kind), element_(element), count_(count), bytes_(bytes), owner_(std::move(owner)) {}

  // Values to be written, which hold their own bytes.
  static GgufValue text(std::string_view value);
  static GgufValue u32(uint32_t value);
  static GgufValue u16(uint16_t value);
  static GgufValue i32(int32_t value);
  static GgufValue f32(float value);
  static GgufValue boolean(bool value);
  static GgufValue texts(std::span<const std::string> values);
  static GgufValue i32s(std::span<const int32_t> values);
  static GgufValue f32s(std::span<const float> values);
  static GgufValue booleans(const std::vector<bool>& values);

  GgufKind kind() const { return kind_; }
  // Of an array: the kind of its elements and how many there are.
  GgufKind element() const { return element_; }
  uint64_t count() const { return count_; }
  // Without the kind, and of an array without the kind and number of its elements; of a text
  // without its length.
  std::span<const std::byte> bytes() const { return bytes_; }

  // Whole numbers of any kind that the int64_t holds, any numbers, a truth value, a text; nothing
  // if the value is of another kind. In an array: of all its elements.
  std::optional<int64_t> as_integer() const;
  std::optional<double> as_number() const;
  std::optional<bool> as_boolean() const;
  std::optional<std::string_view> as_text() const;
  std::optional<std::vector<int64_t>> as_integers() const;
  std::optional<std::vector<float>> as_numbers() const;
  std::optional<std::vector<std::string_view>> as_texts() const;

  // "u32 7", "array of 3 string": for messages and listings.
  std::string description() const;

 private:
  GgufKind kind_ = GgufKind::u8, element_ = GgufKind::u8;
  uint64_t count_ = 0;
  std::span<const std::byte> bytes_;
  std::shared_ptr<const void> owner_;
};

// The metadata of a file. Getters throw Error naming the file, the key and the value where it is of
// another kind or out of range; a getter without a fallback requires the key. Texts and arrays of
// texts are views that live as long as the metadata.
class GgufMetadata {
 public:
  explicit GgufMetadata(std::string where) : where_(std::move(where)) {}

  bool has(std::string_view key) const { return find(key) != nullptr; }
  // Null if there is no such key.
  const GgufValue* find(std::string_view key) const;

  int64_t integer(std::string_view key, std::optional<int64_t> fallback = {},
                  int64_t minimum = INT64_MIN, int64_t maximum = INT64_MAX) const;
  double number(std::string_view key, std::optional<double> fallback = {}) const;
  bool boolean(std::string_view key, std::optional<bool> fallback = {}) const;
  std::string_view text(std::string_view key, std::optional<std::string_view> fallback = {}) const;
  // Empty if the key is absent.
  std::vector<int64_t> integers(std::string_view key) const;
  std::vector<float> numbers(std::string_view key) const;
  std::vector<std::string_view> texts(std::string_view key) const;

  // Replaces a value that is there.
  void set(std::string_view key, GgufValue value);
  const std::map<std::string, GgufValue, std::less<>>& all() const { return values_; }
  // The file's name, and "FILE: key 'KEY'", for messages about a value.
  const std::string& where() const { return where_; }
  std::string path(std::string_view key) const;

 private:
  [[noreturn]] void refuse(std::string_view key, std::string_view wanted) const;

  std::string where_;
  std::map<std::string, GgufValue, std::less<>> values_;
};

// One tensor of a file. The bytes are rows of whole blocks and lie at a multiple of the alignment.
struct GgufTensor {
  std::string_view name;
  const GgufTensorType* type = nullptr;
  std::array<int64_t, 4> sizes{};  // the outermost first, as everywhere else; `rank` of them
  int rank = 0;
  std::span<const std::byte> bytes;
  size_t part = 0;  // of a split file

  std::vector<int64_t> shape() const { return {sizes.begin(), sizes.begin() + rank}; }
  int64_t elements() const;
};

// A file, or all parts of a split one (NAME-00001-of-0000N.gguf, any of which may be named), mapped
// for reading and checked completely when opened: Error names the file, the field and the value for
// anything that is not well formed, such as a tensor that leaves the file or overlaps another.
class GgufFile {
 public:
  explicit GgufFile(const std::filesystem::path& path);

  // Of the first part.
  const GgufMetadata& metadata() const { return metadata_; }
  // In the order of the alphabet.
  std::span<const GgufTensor> tensors() const { return tensors_; }
  // Null if there is no such tensor.
  const GgufTensor* find(std::string_view name) const;
  // What the tensor's bytes are part of.
  const std::shared_ptr<const MappedFile>& file_of(const GgufTensor& tensor) const {
    return files_[tensor.part];
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  void read_part(const std::filesystem::path& path, size_t part, size_t parts);
  void check_places(size_t part, size_t first_tensor) const;

  std::filesystem::path path_;
  std::vector<std::shared_ptr<const MappedFile>> files_;
  GgufMetadata metadata_;
  std::vector<GgufTensor> tensors_;
};

// The GGUF file that `path` means: a file whose name ends in .gguf or that begins as one, or the
// only one (or the first part of the only split one) in a directory without a config.json. Nothing
// if it means none. Throws Error for a directory with several.
std::optional<std::filesystem::path> find_gguf(const std::filesystem::path& path);

// A tensor to be written. Its bytes are asked for when their turn comes, and dropped afterwards.
struct GgufTensorToWrite {
  struct Bytes {
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> owner;
  };
  std::string name;
  const GgufTensorType* type = nullptr;
  std::vector<int64_t> shape;  // the outermost size first
  std::function<Bytes()> bytes;
};

// Writes a file of version 3, tensors in the order given, whose bytes depend only on the arguments.
// Throws Error if a name occurs twice, a row is not whole blocks, a tensor has other bytes than its
// shape says, or the disk refuses.
void write_gguf(const std::filesystem::path& path, const GgufMetadata& metadata,
                const std::vector<GgufTensorToWrite>& tensors);

// The same in parts of at most `part_bytes` bytes, NAME-00001-of-0000N.gguf for a path NAME.gguf,
// if one file would be larger. The first has the metadata; a tensor that is larger by itself has a
// part of its own. Parts get their names when all are written. Returns the files. Throws Error,
// too, if one of them is there already, or there would be more than 4096.
std::vector<std::filesystem::path> write_split_gguf(const std::filesystem::path& path,
                                                    const GgufMetadata& metadata,
                                                    const std::vector<GgufTensorToWrite>& tensors,
                                                    uint64_t part_bytes);

}  // namespace pronghorn
