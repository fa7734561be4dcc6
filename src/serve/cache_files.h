// The states of a prefix cache in files, so that they survive the process.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "base/directory_lock.h"
#include "serve/kept_state.h"

namespace pronghorn {

// Files are written by a thread of their own, and read when the process begins.
class CacheFiles {
 public:
  struct Options {
    std::filesystem::path directory;
    int64_t bytes = 0;  // of all files at most; the oldest go first
    KeptStateForm form;
  };
  // Holds the directory; throws Error if another process does. The cache is given the states of all
  // files of this fingerprint, the newest first, as far as they fit. Other files are removed: with
  // a warning what is damaged or of another fingerprint, with a message what did not fit.
  CacheFiles(Options options, PrefixCache& cache);
  // Writes what is not yet written.
  ~CacheFiles();
  CacheFiles(const CacheFiles&) = delete;
  CacheFiles& operator=(const CacheFiles&) = delete;

  // Hands a state that has no file to the thread that writes, unless that is busy; false if there
  // is none. Where states go back, the longest of a text is enough. A disk that refuses is warned
  // of once, and nothing more is written.
  bool write_one();
  // Lets go of what has been written.
  void release_written();

 private:
  struct File {
    std::filesystem::path path;
    int64_t bytes = 0, number = 0;
  };
  struct Job {
    std::filesystem::path path;
    std::string head;
    SequenceState state;
  };

  void read_all();
  void read(const std::filesystem::path& path);
  std::string head_of(const PrefixCache::Place& place) const;
  PrefixCache::Place next_place() const;
  void make_room(int64_t bytes);
  void remove(const PrefixCache::Node* node);
  void write_jobs();

  Options options_;
  DirectoryLock lock_;
  PrefixCache& cache_;
  std::unordered_map<const PrefixCache::Node*, File> files_;
  // Kept states that are to have no file: it went for want of room, or a longer one replaced it.
  std::unordered_set<const PrefixCache::Node*> left_out_;
  int64_t bytes_ = 0, written_ = 0;

  // The mutex guards what follows.
  std::mutex mutex_;
  std::condition_variable changed_;
  // What is being written, and was written. Its state is let go by the thread that steps: who sees
  // that nobody else has a page writes to it.
  std::optional<Job> job_;
  bool job_done_ = false;
  bool unwanted_ = false;  // it was dropped meanwhile
  bool refused_ = false, ending_ = false;
  std::jthread writer_;
};

}  // namespace pronghorn
