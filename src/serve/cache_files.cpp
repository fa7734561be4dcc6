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

namespace pronghorn {
namespace {

constexpr const char* kSuffix = ".state";

}  // namespace

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
  const std::string where = path.string();
  const KeptState kept = read_kept_state(path, options_.form);
  const PrefixCache::Place place = place_of(cache_, kept);
  require(!PrefixCache::is_kept(place), where, "holds a state that another file has as well");
  // The newest is read first, and goes last.
  files_[place.get()] = {path, static_cast<int64_t>(std::filesystem::file_size(path)), -++written_};
  bytes_ += files_[place.get()].bytes;
  cache_.keep(place, kept.state);
  require(PrefixCache::is_kept(place), where, "is larger than the cache");
}

std::string CacheFiles::head_of(const PrefixCache::Place& place) const {
  return kept_state_head(options_.form.fingerprint, PrefixCache::salt(place),
                         PrefixCache::pieces(place));
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
