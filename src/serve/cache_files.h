// The states of a prefix cache in files, so that they survive the process.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <unordered_map>

#include "base/directory_lock.h"
#include "model/model.h"
#include "serve/prefix_cache.h"

namespace pronghorn {

// What a model computes of a fixed text, hashed: other weights, kernels or a way of rounding give
// another number, and states of one must not be taken for those of the other. (Of experts that the
// text does not reach it knows nothing.)
uint64_t computed_fingerprint(const Model& model, DType cache_type, Precision precision);

class CacheFiles {
 public:
  // Holds the directory; throws Error if another process does. The cache is given the states of all
  // files of this fingerprint, the newest first, as far as they fit. What is damaged or of another
  // fingerprint is deleted; damage is warned of.
  CacheFiles(std::filesystem::path directory, uint64_t fingerprint,
             std::shared_ptr<const StateLayout> layout, int64_t vocab_size, PrefixCache& cache);
  // Writes what is not yet written.
  ~CacheFiles();
  CacheFiles(const CacheFiles&) = delete;
  CacheFiles& operator=(const CacheFiles&) = delete;

  // Writes one state that is in no file yet; false if there is none. A disk that refuses is warned
  // of once, and nothing more is written.
  bool write_one();

 private:
  void read_all(int64_t vocab_size);
  void read(const std::filesystem::path& file, int64_t vocab_size);
  std::string contents(const PrefixCache::Place& place) const;

  std::filesystem::path directory_;
  DirectoryLock lock_;
  uint64_t fingerprint_;
  std::shared_ptr<const StateLayout> layout_;
  PrefixCache& cache_;
  std::unordered_map<const PrefixCache::Node*, std::filesystem::path> files_;
  bool refused_ = false;
};

}  // namespace pronghorn
