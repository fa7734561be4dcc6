#include "train/token_shards.h"

#include <xxhash.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/log.h"
#include "base/threads.h"
#include "train/text_source.h"

namespace pronghorn {
namespace {

namespace fs = std::filesystem;

// Text handed to the threads at once, and the longest part of a document encoded in one call. Both
// are fixed: the tokens do not depend on the machine.
constexpr size_t kBatchBytes = size_t{16} << 20;
constexpr size_t kPartBytes = size_t{4} << 20;
// How far back from a cut the end of a line is looked for.
constexpr size_t kLineSearch = size_t{1} << 16;
// The shortest part of a document that is held out: this share of all that is, within these bounds.
constexpr double kLeastShare = 0.125, kLeastBytes = 64, kEnoughBytes = 1024;

// The end of a file of tokens; at the end, since the counts are known last and tokens stay aligned.
struct Trailer {
  char magic[8];
  uint32_t version, token_bytes;
  uint64_t tokens, text_bytes, vocab_size, hash;
};
static_assert(sizeof(Trailer) == 48);
constexpr char kMagic[8] = {'P', 'H', 'T', 'O', 'K', 'E', 'N', 'S'};
constexpr uint32_t kVersion = 1;

// The place to cut at or before `at`: after a newline if one is at most so far back, else between
// characters.
size_t cut_before(std::string_view text, size_t at, size_t search = kLineSearch) {
  if (at >= text.size()) return text.size();
  const size_t newline = at == 0 ? text.npos : text.rfind('\n', at - 1);
  if (newline != text.npos && at - newline <= search) return newline + 1;
  while (at > 0 && (text[at] & 0xC0) == 0x80) --at;
  return at;
}

uint64_t hash_inputs(const std::vector<fs::path>& paths, const Tokenizer& tokenizer,
                     double fraction) {
  const uint64_t texts = hash_of_texts(paths);
  return XXH64(&texts, sizeof(texts), XXH64(&fraction, sizeof(fraction), tokenizer.fingerprint()));
}

// One file of tokens being written.
class ShardWriter {
 public:
  ShardWriter(const fs::path& path, const Tokenizer& tokenizer, uint64_t hash)
      : file_(path), trailer_{} {
    std::memcpy(trailer_.magic, kMagic, sizeof(kMagic));
    trailer_.version = kVersion;
    trailer_.vocab_size = static_cast<uint64_t>(tokenizer.vocab_size());
    trailer_.token_bytes = trailer_.vocab_size <= 65536 ? 2 : 4;
    trailer_.hash = hash;
  }

  void add(std::span<const int32_t> ids) {
    trailer_.tokens += ids.size();
    if (trailer_.token_bytes == 4) {
      file_.write(ids.data(), ids.size_bytes());
      return;
    }
    narrow_.assign(ids.begin(), ids.end());
    file_.write(narrow_.data(), narrow_.size() * sizeof(uint16_t));
  }
  void add(int32_t id) { add(std::span(&id, 1)); }
  void add_text_bytes(size_t bytes) { trailer_.text_bytes += bytes; }

  void commit() {
    // Two-byte tokens may end unaligned; the trailer is copied out when read.
    file_.write(&trailer_, sizeof(trailer_));
    file_.commit();
  }

  const Trailer& trailer() const { return trailer_; }

 private:
  AtomicFile file_;
  Trailer trailer_;
  std::vector<uint16_t> narrow_;
};

// Where each document goes, known once all have been counted.
class Split {
 public:
  Split(const std::vector<fs::path>& paths, double fraction) : fraction_(fraction) {
    for_each_document(paths, [&](std::string_view text, const std::string&) {
      ++documents_;
      bytes_ += text.size();
    });
    by_document_ = documents_ >= kManyDocuments && fraction_ * static_cast<double>(documents_) >= 1;
    const double all = fraction_ * static_cast<double>(bytes_);
    least_ = static_cast<uint64_t>(std::clamp(kLeastShare * all, kLeastBytes, kEnoughBytes));
  }

  uint64_t bytes() const { return bytes_; }

  // Calls part(text, held out?, first of its document?, last of it?) for the one or two parts of
  // the next document.
  template <typename Part>
  void next(std::string_view text, Part&& part) {
    seen_bytes_ += text.size();
    const int64_t index = seen_++;
    if (by_document_) {
      const auto before = std::floor(static_cast<double>(index) * fraction_);
      part(text, std::floor(static_cast<double>(index + 1) * fraction_) > before, true, true);
      return;
    }
    const size_t cut = cut_of(text);
    trained_ += cut;
    if (cut > 0) part(text.substr(0, cut), false, true, cut == text.size());
    if (cut < text.size()) part(text.substr(cut), true, cut == 0, true);
  }

 private:
  // Where the held-out part of this document begins: then all documents so far have given their
  // share together. What one gave too much, for the sake of a line, the next gives less.
  size_t cut_of(std::string_view text) const {
    const auto train =
        static_cast<uint64_t>(std::floor(static_cast<double>(seen_bytes_) * (1 - fraction_)));
    const uint64_t at = std::min<uint64_t>(text.size(), train - std::min(train, trained_));
    const uint64_t held_out = text.size() - at;
    if (seen_ < documents_ && held_out < least_) return text.size();
    // A part of a small document becomes at most twice as long.
    return cut_before(text, at, documents_ == 1 ? kLineSearch : std::min(kLineSearch, held_out));
  }

  double fraction_;
  int64_t documents_ = 0, seen_ = 0;
  uint64_t bytes_ = 0, seen_bytes_ = 0;
  uint64_t trained_ = 0;  // bytes that are not held out
  uint64_t least_ = 0;    // of a part, but for the last document's
  bool by_document_ = false;
};

// Gathers parts of documents, encodes them on all threads, writes them in order.
class Encoder {
 public:
  Encoder(const Tokenizer& tokenizer, ShardWriter& train, ShardWriter& held_out, AtomicFile& text)
      : tokenizer_(tokenizer), train_(train), held_out_(held_out), held_out_text_(text) {
    const auto around = tokenizer.encode("");
    if (!around.empty() && tokenizer.bos() == around.front()) bos_ = tokenizer.bos();
  }

  void add(std::string_view text, bool held_out, bool first, bool last) {
    while (!text.empty()) {
      size_t length = cut_before(text, kPartBytes);
      if (length == 0) length = text.size();
      jobs_.push_back({std::string(text.substr(0, length)),
                       {},
                       held_out,
                       first,
                       last && length == text.size()});
      waiting_ += length;
      text.remove_prefix(length);
      first = false;
      if (waiting_ >= kBatchBytes) flush();
    }
  }

  void flush() {
    parallel_for(static_cast<int64_t>(jobs_.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        Job& job = jobs_[static_cast<size_t>(i)];
        // A part is no beginning: nothing is put before it, so that parts join to the document.
        job.ids = tokenizer_.encode(job.text, {.add_special = false,
                                               .parse_special = false,
                                               .after = job.first ? After::nothing : After::text});
      }
    });
    for (const Job& job : jobs_) {
      ShardWriter& shard = job.held_out ? held_out_ : train_;
      if (job.first && bos_) shard.add(*bos_);
      shard.add(job.ids);
      if (job.last && tokenizer_.eos()) shard.add(*tokenizer_.eos());
      shard.add_text_bytes(job.text.size());
      if (job.held_out) held_out_text_.write(job.text);
    }
    jobs_.clear();
    waiting_ = 0;
  }

 private:
  struct Job {
    std::string text;
    std::vector<int32_t> ids;
    bool held_out, first, last;
  };
  const Tokenizer& tokenizer_;
  ShardWriter& train_;
  ShardWriter& held_out_;
  AtomicFile& held_out_text_;
  std::optional<int32_t> bos_;
  std::vector<Job> jobs_;
  size_t waiting_ = 0;
};

// Fills in the counts if all three files are there, whole, and made from the same inputs.
bool reuse(PreparedTokens& prepared, uint64_t hash) {
  std::error_code code;
  if (!fs::exists(prepared.train, code) || !fs::exists(prepared.held_out, code)) return false;
  try {
    const TokenShard train(prepared.train), held_out(prepared.held_out);
    if (train.hash() != hash || held_out.hash() != hash) return false;
    const auto text = fs::file_size(prepared.held_out_text, code);
    if (code || text != static_cast<uint64_t>(held_out.text_bytes())) return false;
    prepared.train_tokens = train.size();
    prepared.held_out_tokens = held_out.size();
    prepared.train_bytes = train.text_bytes();
    prepared.held_out_bytes = held_out.text_bytes();
    prepared.reused = true;
    return true;
  } catch (const Error&) {
    return false;  // damaged: made anew
  }
}

}  // namespace

PreparedTokens prepare_tokens(const std::vector<fs::path>& paths, const Tokenizer& tokenizer,
                              const fs::path& directory, double held_out_fraction) {
  require(held_out_fraction > 0 && held_out_fraction <= 0.5, "held-out fraction",
          "must be above 0 and at most 0.5, is {}", held_out_fraction);
  PreparedTokens prepared;
  prepared.train = directory / "train.tokens";
  prepared.held_out = directory / "held_out.tokens";
  prepared.held_out_text = directory / "held_out.txt";
  const uint64_t hash = hash_inputs(paths, tokenizer, held_out_fraction);
  prepared.hash = hash;
  if (reuse(prepared, hash)) return prepared;

  Split split(paths, held_out_fraction);
  pronghorn::make_directories(directory);
  ShardWriter train(prepared.train, tokenizer, hash), held_out(prepared.held_out, tokenizer, hash);
  AtomicFile text(prepared.held_out_text);
  Encoder encoder(tokenizer, train, held_out, text);
  Progress progress("tokenising", static_cast<double>(split.bytes()), "B");
  uint64_t done = 0;
  for_each_document(paths, [&](std::string_view document, const std::string&) {
    split.next(document, [&](std::string_view part, bool held, bool first, bool last) {
      encoder.add(part, held, first, last);
    });
    done += document.size();
    progress.update(static_cast<double>(done));
  });
  encoder.flush();
  progress.finish();
  const Trailer &a = train.trailer(), &b = held_out.trailer();
  if (a.text_bytes == 0 || b.text_bytes == 0) {
    throw Error(paths.front().string(),
                fmt::format("{} bytes of text are too few to hold out {} of them", split.bytes(),
                            held_out_fraction),
                "give more text");
  }
  text.commit();
  held_out.commit();
  train.commit();
  prepared.train_tokens = static_cast<int64_t>(a.tokens);
  prepared.held_out_tokens = static_cast<int64_t>(b.tokens);
  prepared.train_bytes = static_cast<int64_t>(a.text_bytes);
  prepared.held_out_bytes = static_cast<int64_t>(b.text_bytes);
  return prepared;
}

TokenShard::TokenShard(const fs::path& path) : path_(path), file_(path) {
  const std::string where = path.string();
  const auto bytes = file_.bytes();
  Trailer trailer;
  require(bytes.size() >= sizeof(trailer), where, "{} bytes are too few for a file of tokens",
          bytes.size());
  const uint64_t data = bytes.size() - sizeof(trailer);
  std::memcpy(&trailer, bytes.data() + data, sizeof(trailer));
  require(std::memcmp(trailer.magic, kMagic, sizeof(kMagic)) == 0, where,
          "not a file of tokens, or cut off");
  require(trailer.version == kVersion, where, "version {} of the format, {} is known",
          trailer.version, kVersion);
  require(trailer.token_bytes == 2 || trailer.token_bytes == 4, where, "tokens of {} bytes",
          trailer.token_bytes);
  require(data % trailer.token_bytes == 0 && trailer.tokens == data / trailer.token_bytes, where,
          "{} tokens of {} bytes do not make {} bytes", trailer.tokens, trailer.token_bytes, data);
  constexpr uint64_t kMost = uint64_t{1} << 62;
  require(trailer.vocab_size > 0 && trailer.vocab_size <= uint64_t{1} << 31 &&
              trailer.text_bytes < kMost,
          where, "impossible counts: vocabulary {}, {} bytes of text", trailer.vocab_size,
          trailer.text_bytes);
  tokens_ = static_cast<int64_t>(trailer.tokens);
  text_bytes_ = static_cast<int64_t>(trailer.text_bytes);
  vocab_size_ = static_cast<int64_t>(trailer.vocab_size);
  token_bytes_ = trailer.token_bytes;
  hash_ = trailer.hash;
}

void TokenShard::read(int64_t begin, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  require(begin >= 0 && count <= tokens_ && begin <= tokens_ - count, path_.string(),
          "{} tokens from {} on, of {}", count, begin, tokens_);
  const std::byte* from = file_.bytes().data() + begin * token_bytes_;
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i, from += token_bytes_) {
    uint32_t id = 0;
    if (token_bytes_ == 2) {
      uint16_t narrow;
      std::memcpy(&narrow, from, sizeof(narrow));
      id = narrow;
    } else {
      std::memcpy(&id, from, sizeof(id));
    }
    largest = std::max(largest, id);
    out[static_cast<size_t>(i)] = static_cast<int32_t>(id);
  }
  require(count == 0 || largest < vocab_size_, path_.string(), "id {} in a vocabulary of {}",
          largest, vocab_size_);
}

double gzip_bits_per_byte(const fs::path& path, int level) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  const std::string where = path.string();
  require(!bytes.empty(), where, "the file is empty");
  z_stream stream{};
  constexpr int kGzip = 15 + 16, kMemory = 8;  // the gzip wrapper, zlib's usual memory level
  require(deflateInit2(&stream, level, Z_DEFLATED, kGzip, kMemory, Z_DEFAULT_STRATEGY) == Z_OK,
          where, "cannot compress at level {}", level);
  std::vector<Bytef> out(size_t{1} << 18);
  constexpr size_t kPiece = size_t{1} << 24;
  uint64_t compressed = 0;
  size_t at = 0;
  int code = Z_OK;
  while (code != Z_STREAM_END) {
    if (stream.avail_in == 0) {
      const size_t piece = std::min(kPiece, bytes.size() - at);
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(bytes.data() + at));
      stream.avail_in = static_cast<uInt>(piece);
      at += piece;
    }
    stream.next_out = out.data();
    stream.avail_out = static_cast<uInt>(out.size());
    code = deflate(&stream, at == bytes.size() ? Z_FINISH : Z_NO_FLUSH);
    compressed += out.size() - stream.avail_out;
    if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR) break;
  }
  deflateEnd(&stream);
  require(code == Z_STREAM_END, where, "zlib fails with {}", code);
  return 8.0 * static_cast<double>(compressed) / static_cast<double>(bytes.size());
}

}  // namespace pronghorn
