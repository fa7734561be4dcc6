// Files: read whole, mapped, and written so that a half-written file never replaces a good one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace pronghorn {

// The bytes of a file. Throws Error if it cannot be read or is larger than `limit` bytes.
std::string read_file(const std::filesystem::path& path, uint64_t limit = uint64_t{1} << 32);

// Replaces `path` with `bytes`: written beside it, synced to disk, then renamed over it. Throws
// Error (disk full, no permission) and leaves an existing file untouched.
void write_file(const std::filesystem::path& path, std::string_view bytes);

// A file being written beside its final place; commit() syncs and renames it there. Destroyed
// without commit, it is removed. finish() is commit's first half, for several files that are to
// appear together: all is on disk, and the file is closed. Every member throws Error when the disk
// refuses.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* bytes, size_t count);
  void write(std::string_view bytes) { write(bytes.data(), bytes.size()); }
  void finish();
  void commit();
  // Of files of one folder, which appear within so short a time that hardly a signal comes between.
  static void commit_together(std::deque<AtomicFile>& files);

 private:
  void flush();
  void appear();

  std::filesystem::path path_, temporary_;  // the latter empty when it is renamed
  std::string buffer_;
  int descriptor_ = -1;
};

// Removes the half-written files that killed processes left in `directory`, and below it if so
// asked: those of AtomicFile whose process is gone. Does nothing if there is no such directory.
void remove_abandoned_files(const std::filesystem::path& directory, bool below = true);
// The same of one file: those beside it that would have become `path`, or parts of it
// (write_split_gguf).
void remove_abandoned_versions(const std::filesystem::path& path);

// From here on SIGINT, SIGTERM and SIGHUP remove the files that are being written before they end
// the process; those that are ignored, or handled by somebody, stay so. Once in a process.
void remove_partial_files_at_signals();

// A file mapped for reading. Throws Error if it cannot be opened; an empty file maps to no bytes.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Whether `part` lies in this file.
  bool holds(std::span<const std::byte> part) const;

  // Lets the system have the memory of a part back, whole pages of it and those around its ends.
  // The bytes stay what they are: whoever reads them again gets them from the file.
  void release(std::span<const std::byte> part) const;

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Whether the name ends in `ending`, a dot and small letters; letters of the name may be large.
bool ends_in(const std::filesystem::path& path, std::string_view ending);

// Creates a directory and its parents. Throws Error.
void make_directories(const std::filesystem::path& path);

}  // namespace pronghorn
