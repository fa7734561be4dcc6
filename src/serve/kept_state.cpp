#include "serve/kept_state.h"

#include <xxhash.h>

#include "base/error.h"
#include "base/files.h"
#include "decode/reading_plan.h"
#include "tensor/bytes.h"

namespace pronghorn {
namespace {

constexpr uint64_t kMagic = 0x3130485341435000;  // "\0PCASH01"

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

std::string kept_state_head(uint64_t fingerprint, const std::string& salt,
                            const std::vector<PrefixCache::Piece>& pieces) {
  std::string out;
  put(out, kMagic);
  put(out, fingerprint);
  put_string(out, salt);
  put(out, static_cast<uint64_t>(pieces.size()));
  for (const PrefixCache::Piece& piece : pieces) {
    put(out, static_cast<uint8_t>(piece.exact ? 1 : 0));
    put(out, static_cast<uint32_t>(piece.tokens.size()));
    for (const int32_t token : piece.tokens) put(out, token);
  }
  put(out, static_cast<uint64_t>(XXH3_64bits(out.data(), out.size())));
  return out;
}

KeptState read_kept_state(const std::filesystem::path& path, const KeptStateForm& form) {
  const MappedFile mapped(path);
  const std::string where = path.string();
  std::span<const std::byte> in = mapped.bytes();
  require(take<uint64_t>(in, where) == kMagic, where, "is not a kept state");
  require(take<uint64_t>(in, where) == form.fingerprint, where,
          "is of another model, or of another way to compute it");
  KeptState kept;
  kept.salt = take_string(in, where);
  const auto count = take<uint64_t>(in, where);
  int64_t length = 0;
  for (uint64_t i = 0; i < count; ++i) {
    kept.pieces.push_back(take_piece(in, where, form.vocab_size));
    length += std::ssize(kept.pieces.back().tokens);
  }
  const auto head = static_cast<size_t>(in.data() - mapped.bytes().data());
  require(take<uint64_t>(in, where) == XXH3_64bits(mapped.bytes().data(), head), where,
          "is damaged: its checksum differs");
  kept.state = SequenceState::load(in, form.layout, where);
  require(kept.state.length() == length, where, "holds {} tokens and a state of {}", length,
          kept.state.length());
  return kept;
}

PrefixCache::Place place_of(PrefixCache& cache, const KeptState& kept) {
  PrefixCache::Place place = cache.root(kept.salt);
  for (const PrefixCache::Piece& piece : kept.pieces) {
    place = cache.follow(place, piece.exact, piece.tokens);
  }
  return place;
}

}  // namespace pronghorn
