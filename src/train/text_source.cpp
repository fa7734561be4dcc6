#include "train/text_source.h"

#include <xxhash.h>
#include <zlib.h>

#include <algorithm>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/warning.h"
#include "formats/json.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

// A gzip file of a few bytes may claim any size.
constexpr size_t kMaxDocument = size_t{1} << 32;
constexpr size_t kMaxLine = size_t{1} << 28;

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Decompresses a gzip file (of one or more members) piece by piece.
class GzipReader {
 public:
  explicit GzipReader(const std::filesystem::path& path)
      : where_(path.string()), file_(path), rest_(as_text(file_.bytes())) {
    constexpr int kGzipOnly = 15 + 16;  // largest window; the gzip wrapper is required
    require(inflateInit2(&stream_, kGzipOnly) == Z_OK, where_, "cannot start zlib");
  }
  ~GzipReader() { inflateEnd(&stream_); }
  GzipReader(const GzipReader&) = delete;
  GzipReader& operator=(const GzipReader&) = delete;

  // Appends the next piece; false at the end of the file.
  bool read(std::string& out) {
    // Tapes and some tools fill up a file with zeros after its last member.
    if (ended_) rest_.remove_prefix(std::min(rest_.find_first_not_of('\0'), rest_.size()));
    if (ended_ && rest_.empty()) return false;
    require(!rest_.empty() || !starved_, where_, "the gzip data end early: the file is cut off");
    if (ended_) {
      inflateReset(&stream_);
      ended_ = false;
    }
    constexpr size_t kPiece = size_t{1} << 18, kInput = size_t{1} << 30;
    const size_t before = out.size();
    out.resize(before + kPiece);
    const size_t given = std::min(rest_.size(), kInput);
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(rest_.data()));
    stream_.avail_in = static_cast<uInt>(given);
    stream_.next_out = reinterpret_cast<Bytef*>(out.data() + before);
    stream_.avail_out = kPiece;
    const int code = inflate(&stream_, Z_NO_FLUSH);
    rest_.remove_prefix(given - stream_.avail_in);
    const size_t produced = kPiece - stream_.avail_out;
    out.resize(before + produced);
    require(code == Z_OK || code == Z_STREAM_END || code == Z_BUF_ERROR, where_,
            "broken gzip data near byte {}: {}", file_.bytes().size() - rest_.size(),
            stream_.msg != nullptr ? stream_.msg : "unknown error");
    ended_ = code == Z_STREAM_END;
    starved_ = !ended_ && produced == 0;
    total_ += produced;
    say_if_large();
    return true;
  }

 private:
  // A small file may hold a thousand times its size, which then takes its time.
  void say_if_large() {
    constexpr uint64_t kLarge = uint64_t{256} << 20, kGrowth = 100;
    if (total_ < kLarge || total_ / kGrowth < file_.bytes().size()) return;
    warn_once(fmt::format("{}: {} bytes hold more than {} of text, all of which is read", where_,
                          file_.bytes().size(), format_bytes(static_cast<double>(kLarge))));
  }

  std::string where_;
  MappedFile file_;
  std::string_view rest_;
  z_stream stream_{};
  uint64_t total_ = 0;  // bytes that came out
  bool ended_ = false, starved_ = false;
};

// How to make a text of a file that is none, by how it begins.
std::string_view what_to_do_with(std::string_view bytes) {
  if (bytes.starts_with("\x1f\x8b")) return "it is gzip: give it a name that ends in .gz";
  for (const char* begin : {"BZh", "\x28\xb5\x2f\xfd",
                            "\xfd"
                            "7zXZ",
                            "PK\x03\x04"}) {
    if (bytes.starts_with(begin)) return "it is compressed: unpack it, or compress it with gzip";
  }
  if (bytes.starts_with("GGUF")) return "it is a model in GGUF: texts are wanted here";
  if (bytes.starts_with("\xff\xfe") || bytes.starts_with("\xfe\xff")) {
    return "it is UTF-16: convert it to UTF-8, for example with iconv -f UTF-16 -t UTF-8";
  }
  return "convert it to UTF-8 or leave the file out";
}

// Drops a byte order mark, and refuses what is not text. offset: of `text` in the file.
std::string_view checked_text(std::string_view text, const std::string& where, size_t offset = 0) {
  if (offset == 0 && text.starts_with("\xEF\xBB\xBF")) {
    text.remove_prefix(3);
    offset = 3;
  }
  const size_t invalid = find_invalid_utf8(text), zero = text.find('\0');
  if (const size_t at = std::min(invalid, zero); at != text.npos) {
    throw Error(where,
                fmt::format("{} at byte {}: not a text",
                            at == zero ? "a zero byte" : "invalid UTF-8", offset + at),
                what_to_do_with(text));
  }
  return text;
}

using Callback = std::function<void(std::string_view, const std::string&)>;

// Runs over the lines of one JSON lines file.
class JsonLines {
 public:
  JsonLines(std::string name, const Callback& document)
      : name_(std::move(name)), document_(document) {}

  void line(std::string_view line) {
    ++number_;
    if (number_ == 1 && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
    if (line.find_first_not_of(" \t\r") == line.npos) return;
    const std::string where = fmt::format("{}: line {}", name_, number_);
    const nlohmann::json parsed = parse_json(line, where, kMaxLine);
    const auto text = parsed.is_object() ? parsed.find("text") : parsed.end();
    require(parsed.is_object() && text != parsed.end() && text->is_string(), where,
            "must be an object with a string \"text\"");
    const auto& content = text->get_ref<const std::string&>();
    if (!content.empty()) document_(checked_text(content, where), where);
  }

  // The whole lines of `bytes`; what follows the last newline is left in it.
  void take_lines(std::string& bytes) {
    size_t begin = 0;
    while (true) {
      const size_t end = bytes.find('\n', std::max(begin, searched_));
      if (end == bytes.npos) break;
      line(std::string_view(bytes).substr(begin, end - begin));
      begin = end + 1;
      searched_ = 0;
    }
    bytes.erase(0, begin);
    searched_ = bytes.size();
    require(bytes.size() <= kMaxLine, name_, "line {} is longer than {} bytes", number_ + 1,
            kMaxLine);
  }

 private:
  std::string name_;
  const Callback& document_;
  int64_t number_ = 0;
  size_t searched_ = 0;  // bytes known to hold no newline
};

void read_plain(const TextFile& file, const Callback& document) {
  const std::string where = file.path.string();
  if (file.gzip) {
    GzipReader reader(file.path);
    std::string text;
    while (reader.read(text)) {
      require(text.size() <= kMaxDocument, where, "more than {} bytes of text in one document",
              kMaxDocument);
    }
    const std::string_view checked = checked_text(text, where);
    if (!checked.empty()) document(checked, where);
    return;
  }
  const MappedFile mapped(file.path);
  const std::string_view text = checked_text(as_text(mapped.bytes()), where);
  if (!text.empty()) document(text, where);
}

void read_json_lines(const TextFile& file, const Callback& document) {
  JsonLines lines(file.path.string(), document);
  std::string bytes;
  if (file.gzip) {
    GzipReader reader(file.path);
    while (reader.read(bytes)) lines.take_lines(bytes);
    lines.line(bytes);
    return;
  }
  const MappedFile mapped(file.path);
  std::string_view rest = as_text(mapped.bytes());
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    lines.line(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
}

TextFile classify(const std::filesystem::path& path) {
  const bool gzip = ends_in(path, ".gz");
  return {path, ends_in(gzip ? path.stem() : path, ".jsonl"), gzip};
}

void list_folder(const std::filesystem::path& folder, std::vector<TextFile>& files) {
  namespace fs = std::filesystem;
  std::vector<fs::path> found;
  try {
    for (auto it = fs::recursive_directory_iterator(folder); it != fs::end(it); ++it) {
      if (it->path().filename().string().starts_with('.')) {
        it.disable_recursion_pending();
        continue;
      }
      std::error_code code;
      const fs::file_status status = fs::status(it->path(), code);
      if (code || !fs::exists(status)) {
        // A link to nothing, or one that leads back to itself.
        warn_once(fmt::format("{}: passed over: {}", it->path().string(),
                              code ? code.message() : "a link to what is not there"));
      } else if (fs::is_regular_file(status) && fs::file_size(it->path()) > 0) {
        found.push_back(it->path());
      }
    }
  } catch (const fs::filesystem_error& error) {
    throw Error(folder.string(), fmt::format("cannot list the folder: {}", error.code().message()),
                "check its permissions");
  }
  require(!found.empty(), folder.string(), "the folder holds no text");
  std::sort(found.begin(), found.end());
  for (const auto& path : found) files.push_back(classify(path));
}

}  // namespace

std::vector<TextFile> list_text_files(const std::vector<std::filesystem::path>& paths) {
  std::vector<TextFile> files;
  require(!paths.empty(), "data", "no path of a text is given");
  for (const auto& path : paths) {
    std::error_code code;
    const auto status = std::filesystem::status(path, code);
    if (code && code != std::errc::no_such_file_or_directory) {
      throw Error(path.string(), code.message(), "check the path");
    }
    if (!std::filesystem::exists(status)) {
      throw Error(path.string(), "no such file or folder", "check the path");
    }
    if (std::filesystem::is_directory(status)) {
      list_folder(path, files);
      continue;
    }
    if (!std::filesystem::is_regular_file(status)) {
      throw Error(path.string(), "is a pipe or a device, not a file or folder",
                  "texts are read more than once: copy what it gives into a file");
    }
    require(std::filesystem::file_size(path) > 0, path.string(), "the file is empty");
    files.push_back(classify(path));
  }
  return files;
}

uint64_t hash_of_texts(const std::vector<std::filesystem::path>& paths) {
  const std::vector<TextFile> files = list_text_files(paths);
  double total = 0, done = 0;
  for (const TextFile& file : files) {
    total += static_cast<double>(std::filesystem::file_size(file.path));
  }
  Progress progress("looking for changes in the texts", total, "B");
  uint64_t hash = 0;
  for (const TextFile& file : files) {
    const MappedFile mapped(file.path);
    std::span<const std::byte> rest = mapped.bytes();
    const uint64_t head[] = {hash, rest.size(), uint64_t{file.json_lines}, uint64_t{file.gzip}};
    hash = XXH3_64bits(head, sizeof(head));
    while (!rest.empty()) {
      constexpr size_t kPiece = size_t{64} << 20;
      const auto piece = rest.first(std::min(kPiece, rest.size()));
      hash = XXH3_64bits_withSeed(piece.data(), piece.size(), hash);
      rest = rest.subspan(piece.size());
      done += static_cast<double>(piece.size());
      progress.update(done);
    }
  }
  return hash;
}

void for_each_document(const std::vector<std::filesystem::path>& paths, const Callback& document) {
  bool any = false;
  const Callback counted = [&](std::string_view text, const std::string& where) {
    any = true;
    document(text, where);
  };
  for (const TextFile& file : list_text_files(paths)) {
    if (file.json_lines) {
      read_json_lines(file, counted);
    } else {
      read_plain(file, counted);
    }
  }
  require(any, paths.front().string(), "no text in it");
}

std::vector<std::string> read_documents(const std::vector<std::filesystem::path>& paths,
                                        int64_t limit) {
  std::vector<std::string> texts;
  auto left = static_cast<size_t>(std::max<int64_t>(limit, 0));
  for_each_document(paths, [&](std::string_view text, const std::string&) {
    size_t take = std::min(text.size(), left);
    while (take > 0 && take < text.size() && (text[take] & 0xC0) == 0x80) --take;
    if (take > 0) texts.emplace_back(text.substr(0, take));
    left -= take < text.size() ? left : take;
  });
  return texts;
}

std::string read_text(const std::vector<std::filesystem::path>& paths, int64_t limit) {
  std::string text;
  for (const std::string& document : read_documents(paths, limit)) text += document;
  return text;
}

}  // namespace pronghorn
