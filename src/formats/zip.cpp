#include "formats/zip.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/quote.h"

namespace pronghorn {
namespace {

// APPNOTE.TXT of PKWARE, sections 4.3 and 4.5.3: signatures and sizes of the fixed parts.
constexpr uint32_t kLocal = 0x04034b50, kCentral = 0x02014b50, kEnd = 0x06054b50,
                   kEnd64 = 0x06064b50, kLocator64 = 0x07064b50;
constexpr uint64_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22, kEnd64Bytes = 56,
                   kLocator64Bytes = 20, kLongestComment = 65535;
constexpr uint16_t kExtra64 = 1, kEncrypted = 1, kStored = 0, kDeflated = 8;
constexpr uint32_t kIn64 = 0xffffffff;  // the value is in the ZIP64 record
constexpr uint64_t kLargestGrowth = 16, kSmallGrowth = uint64_t{1} << 20;

template <typename T>
T number_at(std::span<const std::byte> bytes, uint64_t place) {
  T value;
  std::memcpy(&value, bytes.data() + place, sizeof(T));
  return value;
}

// Whether `count` bytes from `place` on lie within `size` bytes.
bool fits(uint64_t place, uint64_t count, uint64_t size) {
  return place <= size && count <= size - place;
}

struct Directory {
  uint64_t entries = 0, place = 0, bytes = 0;
};

std::optional<uint64_t> find_end(std::span<const std::byte> bytes) {
  if (bytes.size() < kEndBytes) return {};
  const uint64_t last = bytes.size() - kEndBytes;
  const uint64_t first = last > kLongestComment ? last - kLongestComment : 0;
  for (uint64_t place = last + 1; place-- > first;) {
    if (number_at<uint32_t>(bytes, place) != kEnd) continue;
    if (number_at<uint16_t>(bytes, place + 20) == bytes.size() - place - kEndBytes) return place;
  }
  return {};
}

Directory find_directory(std::span<const std::byte> bytes, const std::string& where) {
  const std::optional<uint64_t> end = find_end(bytes);
  require(end.has_value(), where, "not a whole ZIP archive: its directory is missing");
  Directory directory{number_at<uint16_t>(bytes, *end + 10), number_at<uint32_t>(bytes, *end + 16),
                      number_at<uint32_t>(bytes, *end + 12)};
  const bool in64 =
      *end >= kLocator64Bytes && number_at<uint32_t>(bytes, *end - kLocator64Bytes) == kLocator64;
  if (in64) {
    const auto place = number_at<uint64_t>(bytes, *end - kLocator64Bytes + 8);
    require(fits(place, kEnd64Bytes, bytes.size()) && number_at<uint32_t>(bytes, place) == kEnd64,
            where, "no ZIP64 directory at byte {}", place);
    directory = {number_at<uint64_t>(bytes, place + 32), number_at<uint64_t>(bytes, place + 48),
                 number_at<uint64_t>(bytes, place + 40)};
  }
  require(fits(directory.place, directory.bytes, bytes.size()), where,
          "a directory of {} bytes at byte {} leaves the file of {}", directory.bytes,
          directory.place, bytes.size());
  return directory;
}

}  // namespace

bool ZipArchive::is_archive(std::span<const std::byte> bytes) {
  return bytes.size() >= sizeof(uint32_t) && number_at<uint32_t>(bytes, 0) == kLocal;
}

ZipArchive::ZipArchive(std::shared_ptr<const MappedFile> file, std::string where)
    : file_(std::move(file)), where_(std::move(where)) {
  const Directory directory = find_directory(file_->bytes(), where_);
  const auto bytes = file_->bytes().subspan(directory.place, directory.bytes);
  uint64_t place = 0;
  for (uint64_t i = 0; i < directory.entries; ++i) {
    require(
        fits(place, kCentralBytes, bytes.size()) && number_at<uint32_t>(bytes, place) == kCentral,
        where_, "entry {} of {} in the directory is damaged", i + 1, directory.entries);
    Entry entry;
    entry.flags = number_at<uint16_t>(bytes, place + 8);
    entry.method = number_at<uint16_t>(bytes, place + 10);
    entry.checksum = number_at<uint32_t>(bytes, place + 16);
    entry.stored_bytes = number_at<uint32_t>(bytes, place + 20);
    entry.bytes = number_at<uint32_t>(bytes, place + 24);
    entry.header = number_at<uint32_t>(bytes, place + 42);
    const auto name_bytes = number_at<uint16_t>(bytes, place + 28);
    const auto extra_bytes = number_at<uint16_t>(bytes, place + 30);
    const auto comment_bytes = number_at<uint16_t>(bytes, place + 32);
    const uint64_t whole = kCentralBytes + name_bytes + extra_bytes + comment_bytes;
    require(fits(place, whole, bytes.size()), where_, "entry {} of {} leaves the directory", i + 1,
            directory.entries);
    const std::string name(reinterpret_cast<const char*>(bytes.data() + place + kCentralBytes),
                           name_bytes);
    auto extra = bytes.subspan(place + kCentralBytes + name_bytes, extra_bytes);
    while (extra.size() >= 4) {
      const auto id = number_at<uint16_t>(extra, 0), size = number_at<uint16_t>(extra, 2);
      extra = extra.subspan(4);
      require(size <= extra.size(), where_, "entry {}: a damaged extra field", quote(name));
      auto part = extra.first(size);
      extra = extra.subspan(size);
      if (id != kExtra64) continue;
      for (uint64_t* value : {&entry.bytes, &entry.stored_bytes, &entry.header}) {
        if (*value != kIn64) continue;
        require(part.size() >= sizeof(uint64_t), where_, "entry {}: a damaged ZIP64 field",
                quote(name));
        *value = number_at<uint64_t>(part, 0);
        part = part.subspan(sizeof(uint64_t));
      }
    }
    place += whole;
    require(entries_.emplace(name, entry).second, where_, "entry {} occurs twice", quote(name));
  }
}

std::span<const std::byte> ZipArchive::stored(const std::string& name, const Entry& entry) const {
  const auto bytes = file_->bytes();
  const std::string where = fmt::format("{}: entry {}", where_, quote(name));
  require(fits(entry.header, kLocalBytes, bytes.size()) &&
              number_at<uint32_t>(bytes, entry.header) == kLocal,
          where, "no header at byte {}", entry.header);
  const uint64_t data = entry.header + kLocalBytes + number_at<uint16_t>(bytes, entry.header + 26) +
                        number_at<uint16_t>(bytes, entry.header + 28);
  require(fits(data, entry.stored_bytes, bytes.size()), where,
          "{} bytes at byte {} leave the file of {}", entry.stored_bytes, data, bytes.size());
  return bytes.subspan(data, entry.stored_bytes);
}

ZipBytes ZipArchive::read(std::string_view name) {
  const auto found = entries_.find(std::string(name));
  require(found != entries_.end(), where_, "no entry {}", quote(name));
  const Entry& entry = found->second;
  const std::string where = fmt::format("{}: entry {}", where_, quote(name));
  require((entry.flags & kEncrypted) == 0, where, "is encrypted");
  const std::span<const std::byte> from = stored(found->first, entry);
  if (entry.method == kStored) {
    require(entry.stored_bytes == entry.bytes, where, "stored as {} bytes of {}",
            entry.stored_bytes, entry.bytes);
    return {from, nullptr};
  }
  require(entry.method == kDeflated, where, "compressed by method {} (stored and deflate are read)",
          entry.method);
  const uint64_t most = kLargestGrowth * file_->bytes().size() + kSmallGrowth;
  require(entry.bytes <= most - inflated_, where,
          "would grow from {} to {} bytes, and with others beyond {} times the file",
          entry.stored_bytes, entry.bytes, kLargestGrowth);
  inflated_ += entry.bytes;

  const auto out = std::make_shared<std::vector<std::byte>>(entry.bytes);
  z_stream stream{};
  require(::inflateInit2(&stream, -MAX_WBITS) == Z_OK, where, "cannot be inflated");
  constexpr uint64_t kPiece = std::numeric_limits<uInt>::max();
  uint64_t read = 0, written = 0;
  int code = Z_OK;
  while (code == Z_OK) {
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(from.data() + read));
    stream.avail_in = static_cast<uInt>(std::min(kPiece, from.size() - read));
    stream.next_out = reinterpret_cast<Bytef*>(out->data() + written);
    stream.avail_out = static_cast<uInt>(std::min(kPiece, out->size() - written));
    const uInt in = stream.avail_in, room = stream.avail_out;
    code = ::inflate(&stream, Z_NO_FLUSH);
    read += in - stream.avail_in;
    written += room - stream.avail_out;
  }
  ::inflateEnd(&stream);
  const uint32_t checksum =
      static_cast<uint32_t>(::crc32_z(0, reinterpret_cast<const Bytef*>(out->data()), out->size()));
  require(code == Z_STREAM_END && written == out->size() && checksum == entry.checksum, where,
          "is damaged: it does not inflate to what the directory says");
  return {*out, out};
}

}  // namespace pronghorn
