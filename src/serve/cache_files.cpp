#include "serve/cache_files.h"

#include <xxhash.h>

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/warning.h"
#include "tensor/bytes.h"

namespace pronghorn {
namespace {

constexpr uint64_t kMagic = 0x3130485341435000;  // "\0PCASH01"
constexpr const char* kSuffix = ".state";

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

uint64_t computed_fingerprint(const Model& model, const CacheOptions& kv_cache,
                              Precision precision) {
  // Long enough for the kernels of long pieces; then an exact step.
  constexpr int64_t kTokens = 4 * kExactStep + 1;
  std::vector<int32_t> tokens(static_cast<size_t>(kTokens));
  for (int64_t i = 0; i < kTokens; ++i) {
    tokens[static_cast<size_t>(i)] = static_cast<int32_t>(i * 7919 % model.config().vocab_size);
  }
  Context context;
  context.precision = precision;
  SequenceState state = model.new_state(kv_cache);
  std::string bytes;
  for (const int64_t count : {kTokens - kExactStep, kExactStep}) {
    const auto from = static_cast<size_t>(state.length());
    const Batch batch = continue_sequence(
        state, std::span<const int32_t>(tokens).subspan(from, static_cast<size_t>(count)));
    const Tensor hidden = model.forward(context, batch);
    const Tensor scores = model.logits(context, hidden.row_slice(count - 1, 1));
    for (const float score : scores.values()) put(bytes, score);
  }
  put(bytes, model.layout(kv_cache)->fingerprint);
  put(bytes, kPiece);
  put(bytes, static_cast<int32_t>(precision));
  return XXH3_64bits(bytes.data(), bytes.size());
}

CacheFiles::CacheFiles(Options options, PrefixCache& cache)
    : options_(std::move(options)), lock_(options_.directory), cache_(cache) {
  cache_.on_drop = [this](const PrefixCache::Place& place) {
    left_out_.erase(place.get());
    remove(place.get());
  };
  remove_abandoned_files(options_.directory);
  read_all();
  writer_ = std::jthread([this] { write_jobs(); });
}

CacheFiles::~CacheFiles() {
  const auto wait = [this] {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !job_ || job_done_; });
  };
  wait();
  while (write_one()) wait();
  {
    const std::scoped_lock lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  writer_.join();
  cache_.on_drop = nullptr;
}

void CacheFiles::read_all() {
  std::vector<std::pair<std::filesystem::file_time_type, std::filesystem::path>> files;
  for (const auto& entry : std::filesystem::directory_iterator(options_.directory)) {
    if (entry.path().extension() != kSuffix || !entry.is_regular_file()) continue;
    files.emplace_back(entry.last_write_time(), entry.path());
  }
  std::sort(files.rbegin(), files.rend());
  const int64_t before = cache_.evictions();
  int64_t did_not_fit = 0;
  for (const auto& [time, file] : files) {
    const bool fits = cache_.evictions() == before;
    if (fits) {
      try {
        read(file);
        continue;
      } catch (const Error& error) {
        warn_once(fmt::format("{}; the file is removed", error.what()));
      }
    }
    if (!fits) ++did_not_fit;
    std::error_code ignored;
    std::filesystem::remove(file, ignored);
  }
  if (did_not_fit > 0) {
    spdlog::info("{}: {} states that do not fit into the cache are removed",
                 options_.directory.string(), did_not_fit);
  }
}

void CacheFiles::read(const std::filesystem::path& path) {
  const MappedFile mapped(path);
  const std::string where = path.string();
  std::span<const std::byte> in = mapped.bytes();
  require(take<uint64_t>(in, where) == kMagic, where, "is not a kept state");
  require(take<uint64_t>(in, where) == options_.fingerprint, where,
          "is of another model, or of another way to compute it");
  PrefixCache::Place place = cache_.root(take_string(in, where));
  const auto count = take<uint64_t>(in, where);
  for (uint64_t i = 0; i < count; ++i) {
    const PrefixCache::Piece piece = take_piece(in, where, options_.vocab_size);
    place = cache_.follow(place, piece.exact, piece.tokens);
  }
  const auto head = static_cast<size_t>(in.data() - mapped.bytes().data());
  require(take<uint64_t>(in, where) == XXH3_64bits(mapped.bytes().data(), head), where,
          "is damaged: its checksum differs");
  const SequenceState state = SequenceState::load(in, options_.layout, where);
  require(state.length() == PrefixCache::length(place), where, "holds {} tokens and a state of {}",
          PrefixCache::length(place), state.length());
  require(!PrefixCache::is_kept(place), where, "holds a state that another file has as well");
  // The newest is read first, and goes last.
  files_[place.get()] = {path, static_cast<int64_t>(mapped.bytes().size()), -++written_};
  bytes_ += files_[place.get()].bytes;
  cache_.keep(place, state);
  require(PrefixCache::is_kept(place), where, "is larger than the cache");
}

std::string CacheFiles::head_of(const PrefixCache::Place& place) const {
  std::string out;
  put(out, kMagic);
  put(out, options_.fingerprint);
  put_string(out, PrefixCache::salt(place));
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

PrefixCache::Place CacheFiles::next_place() const {
  for (const PrefixCache::Place& place : cache_.kept()) {
    if (files_.contains(place.get()) || left_out_.contains(place.get())) continue;
    if (cache_.goes_back() && cache_.has_kept_below(place)) continue;
    return place;
  }
  return nullptr;
}

// Where one goes that is still kept, it is not written again.
void CacheFiles::make_room(int64_t bytes) {
  while (!files_.empty() && bytes_ + bytes > options_.bytes) {
    const auto oldest =
        std::ranges::min_element(files_, {}, [](const auto& entry) { return entry.second.number; });
    const PrefixCache::Node* node = oldest->first;
    left_out_.insert(node);
    remove(node);
  }
}

void CacheFiles::remove(const PrefixCache::Node* node) {
  const auto file = files_.find(node);
  if (file == files_.end()) return;
  bytes_ -= file->second.bytes;
  {
    const std::scoped_lock lock(mutex_);
    if (job_ && !job_done_ && job_->path == file->second.path) {
      unwanted_ = true;
    } else {
      std::error_code ignored;
      std::filesystem::remove(file->second.path, ignored);
    }
  }
  files_.erase(file);
}

void CacheFiles::release_written() {
  const std::scoped_lock lock(mutex_);
  if (job_done_) job_.reset();
  job_done_ = false;
}

bool CacheFiles::write_one() {
  release_written();
  {
    const std::scoped_lock lock(mutex_);
    if (refused_ || job_) return false;
  }
  const PrefixCache::Place place = next_place();
  if (place == nullptr) return false;
  Job job;
  job.head = head_of(place);
  job.path = options_.directory /
             fmt::format("{:016x}{}", XXH3_64bits(job.head.data(), job.head.size()), kSuffix);
  job.state = PrefixCache::state(place);
  const int64_t bytes = std::ssize(job.head) + job.state.bytes();
  if (bytes > options_.bytes) {
    left_out_.insert(place.get());
    return true;
  }
  make_room(bytes);
  if (cache_.goes_back()) {
    for (const PrefixCache::Node* before : cache_.kept_before(place)) remove(before);
  }
  files_[place.get()] = {job.path, bytes, ++written_};
  bytes_ += bytes;
  {
    const std::scoped_lock lock(mutex_);
    job_ = std::move(job);
    unwanted_ = false;
  }
  changed_.notify_all();
  return true;
}

void CacheFiles::write_jobs() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return (job_ && !job_done_) || ending_; });
    if (!job_ || job_done_) return;
    lock.unlock();
    bool refused = false;
    try {
      write_file(job_->path, job_->head + job_->state.save());
    } catch (const std::exception& error) {
      warn_once(error.what());
      refused = true;
    }
    lock.lock();
    refused_ |= refused;
    if (unwanted_) {
      std::error_code ignored;
      std::filesystem::remove(job_->path, ignored);
    }
    job_done_ = true;
    changed_.notify_all();
  }
}

}  // namespace pronghorn
