// A state of a text with the pieces that led to it, and its file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "model/model.h"
#include "serve/prefix_cache.h"
#include "tensor/sequence_state.h"

namespace pronghorn {

struct KeptState {
  std::string salt;
  std::vector<PrefixCache::Piece> pieces;
  SequenceState state;
};

// What a file must fit.
struct KeptStateForm {
  uint64_t fingerprint = 0;  // computed_fingerprint()
  std::shared_ptr<const StateLayout> layout;
  int64_t vocab_size = 0;
};

// The bytes of a file up to the state's own, with a checksum.
std::string kept_state_head(uint64_t fingerprint, const std::string& salt,
                            const std::vector<PrefixCache::Piece>& pieces);
// Throws Error, naming the file, if it is damaged or of another form.
KeptState read_kept_state(const std::filesystem::path& path, const KeptStateForm& form);

// The place of a cache that the pieces lead to.
PrefixCache::Place place_of(PrefixCache& cache, const KeptState& kept);

// What a model computes of a fixed text, hashed: other weights, kernels or a way of rounding give
// another number, and states of one must not be taken for those of the other. (Of experts that the
// text does not reach it knows nothing.)
uint64_t computed_fingerprint(const Model& model, const CacheOptions& kv_cache,
                              Precision precision);

}  // namespace pronghorn
