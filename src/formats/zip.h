// ZIP archives of numbers: entries are found through the central directory, and used where they lie
// in the mapped file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/files.h"

namespace pronghorn {

// Bytes of an entry: a part of the mapped file, or inflated memory.
struct ZipBytes {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;  // of inflated bytes; null: they lie in the file
};

class ZipArchive {
 public:
  // Whether the file begins as an archive does.
  static bool is_archive(std::span<const std::byte> bytes);

  // Reads the directory. where: for messages. Throws Error for what is not a whole archive on one
  // disk, in ZIP or ZIP64: sizes and places are checked against the file.
  ZipArchive(std::shared_ptr<const MappedFile> file, std::string where);

  // In the order of the alphabet.
  const auto& entries() const { return entries_; }
  bool has(std::string_view name) const { return entries_.contains(std::string(name)); }

  // Throws Error if there is no such entry, for encrypted ones and those in a compression other
  // than deflate, for damaged ones, and when all inflated bytes together exceed 16 times the file
  // and a megabyte.
  ZipBytes read(std::string_view name);

 private:
  struct Entry {
    uint16_t flags = 0, method = 0;
    uint32_t checksum = 0;
    uint64_t stored_bytes = 0, bytes = 0, header = 0;  // header: place of the local header
  };

  std::span<const std::byte> stored(const std::string& name, const Entry& entry) const;

  std::shared_ptr<const MappedFile> file_;
  std::string where_;
  std::map<std::string, Entry> entries_;
  uint64_t inflated_ = 0;
};

}  // namespace pronghorn
