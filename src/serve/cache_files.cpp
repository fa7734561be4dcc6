#include "serve/cache_files.h"

#include <xxhash.h>

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/warning.h"
#include "tensor/bytes.h"

namespace pronghorn {
namespace {

constexpr uint64_t kMagic = 0x3130485341435000;  // "\0PCASH01"
constexpr const char* kSuffix = ".state";

// Before the pieces: which model, and whose text.
std::string head_of(uint64_t fingerprint, const std::string& salt) {
  std::string out;
  put(out, kMagic);
  put(out, fingerprint);
  put_string(out, salt);
  return out;
}

PrefixCache::Piece take_piece(std::span<const std::byte>& in, const std::string& where,
                              int64_t vocab_size) {
  PrefixCache::Piece piece;
  piece.exact = take<uint8_t>(in, where) != 0;
  const auto count = take<uint32_t>(in, where);
  require(
      count > 0 && count <= static_cast<uint32_t>(kPiece) && count <= in.size() / sizeof(int32_t),
      where, "has a piece of {} tokens", count);
  for (uint32_t i = 0; i < count; ++i) {
    piece.tokens.push_back(take<int32_t>(in, where));
    require(piece.tokens.back() >= 0 && piece.tokens.back() < vocab_size, where,
            "holds token {} of a vocabulary of {}", piece.tokens.back(), vocab_size);
  }
  return piece;
}

}  // namespace

uint64_t computed_fingerprint(const Model& model, DType cache_type, Precision precision) {
  // Long enough for the kernels of long pieces; then an exact step.
  constexpr int64_t kTokens = 4 * kExactStep + 1;
  std::vector<int32_t> tokens(static_cast<size_t>(kTokens));
  for (int64_t i = 0; i < kTokens; ++i) {
    tokens[static_cast<size_t>(i)] = static_cast<int32_t>(i * 7919 % model.config().vocab_size);
  }
  Context context;
  context.precision = precision;
  SequenceState state = model.new_state(cache_type);
  std::string bytes;
  for (const int64_t count : {kTokens - kExactStep, kExactStep}) {
    const auto from = static_cast<size_t>(state.length());
    const Batch batch = continue_sequence(
        state, std::span<const int32_t>(tokens).subspan(from, static_cast<size_t>(count)));
    const Tensor hidden = model.forward(context, batch);
    for (const float score : model.logits(context, hidden.row_slice(count - 1, 1)).values()) {
      put(bytes, score);
    }
  }
  put(bytes, model.layout(cache_type)->fingerprint);
  put(bytes, kPiece);
  put(bytes, static_cast<int32_t>(precision));
  return XXH3_64bits(bytes.data(), bytes.size());
}

CacheFiles::CacheFiles(std::filesystem::path directory, uint64_t fingerprint,
                       std::shared_ptr<const StateLayout> layout, int64_t vocab_size,
                       PrefixCache& cache)
    : directory_(std::move(directory)),
      lock_(directory_),
      fingerprint_(fingerprint),
      layout_(std::move(layout)),
      cache_(cache) {
  remove_abandoned_files(directory_);
  read_all(vocab_size);
  cache_.on_drop = [this](const PrefixCache::Place& place) {
    const auto file = files_.find(place.get());
    if (file == files_.end()) return;
    std::error_code ignored;
    std::filesystem::remove(file->second, ignored);
    files_.erase(file);
  };
}

CacheFiles::~CacheFiles() {
  while (write_one()) {
  }
  cache_.on_drop = nullptr;
}

void CacheFiles::read_all(int64_t vocab_size) {
  std::vector<std::pair<std::filesystem::file_time_type, std::filesystem::path>> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
    if (entry.path().extension() != kSuffix || !entry.is_regular_file()) continue;
    files.emplace_back(entry.last_write_time(), entry.path());
  }
  std::sort(files.rbegin(), files.rend());
  const int64_t before = cache_.evictions();
  for (const auto& [time, file] : files) {
    if (cache_.evictions() == before) {
      try {
        read(file, vocab_size);
        continue;
      } catch (const Error& error) {
        warn_once(fmt::format("{}; the file is removed", error.what()));
      }
    }
    std::error_code ignored;
    std::filesystem::remove(file, ignored);
  }
}

void CacheFiles::read(const std::filesystem::path& file, int64_t vocab_size) {
  const MappedFile mapped(file);
  const std::string where = file.string();
  std::span<const std::byte> in = mapped.bytes();
  require(take<uint64_t>(in, where) == kMagic, where, "is not a kept state");
  require(take<uint64_t>(in, where) == fingerprint_, where,
          "is of another model, or of another way to compute it");
  PrefixCache::Place place = cache_.root(take_string(in, where));
  const auto count = take<uint64_t>(in, where);
  for (uint64_t i = 0; i < count; ++i) {
    const PrefixCache::Piece piece = take_piece(in, where, vocab_size);
    place = cache_.follow(place, piece.exact, piece.tokens);
  }
  const auto head = static_cast<size_t>(in.data() - mapped.bytes().data());
  require(take<uint64_t>(in, where) == XXH3_64bits(mapped.bytes().data(), head), where,
          "is damaged: its checksum differs");
  const SequenceState state = SequenceState::load(in, layout_, where);
  require(state.length() == PrefixCache::length(place), where, "holds {} tokens and a state of {}",
          PrefixCache::length(place), state.length());
  cache_.keep(place, state);
  if (PrefixCache::is_kept(place)) files_[place.get()] = file;
}

std::string CacheFiles::contents(const PrefixCache::Place& place) const {
  std::string out = head_of(fingerprint_, PrefixCache::salt(place));
  const std::vector<PrefixCache::Piece> pieces = PrefixCache::pieces(place);
  put(out, static_cast<uint64_t>(pieces.size()));
  for (const PrefixCache::Piece& piece : pieces) {
    put(out, static_cast<uint8_t>(piece.exact ? 1 : 0));
    put(out, static_cast<uint32_t>(piece.tokens.size()));
    for (const int32_t token : piece.tokens) put(out, token);
  }
  put(out, static_cast<uint64_t>(XXH3_64bits(out.data(), out.size())));
  return out;
}

bool CacheFiles::write_one() {
  if (refused_) return false;
  for (const PrefixCache::Place& place : cache_.kept()) {
    if (files_.contains(place.get())) continue;
    std::string out = contents(place);
    const auto path =
        directory_ / fmt::format("{:016x}{}", XXH3_64bits(out.data(), out.size()), kSuffix);
    out += PrefixCache::state(place).save();
    try {
      write_file(path, out);
    } catch (const Error& error) {
      warn_once(error.what());
      refused_ = true;
      return false;
    }
    files_[place.get()] = path;
    return true;
  }
  return false;
}

}  // namespace pronghorn
