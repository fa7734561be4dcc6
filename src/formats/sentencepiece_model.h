// SentencePiece models: what a model file holds, and encoding as the SentencePiece library does it.
// The library itself trusts its files, and is used to train only. Field numbers:
// sentencepiece_model.proto of SentencePiece 0.1.97.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/charsmap.h"
#include "formats/text_index.h"
#include "formats/trie.h"
#include "formats/unigram_model.h"
#include "formats/word_cuts.h"

namespace pronghorn {

enum class PieceType : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

struct SentencePieceModel {
  enum class Kind : uint8_t { unigram = 1, bpe, word, character };

  std::vector<std::string> pieces;  // by id, as are the next two
  std::vector<float> scores;
  std::vector<PieceType> types;
  Kind kind = Kind::unigram;
  bool byte_fallback = false;
  bool space_is_suffix = false;                    // treat_whitespace_as_suffix
  std::string unknown_surface = " \xE2\x81\x87 ";  // what the unknown piece stands for
  std::string bos_piece = "<s>", eos_piece = "</s>";
  // Normalisation.
  Charsmap rules;
  std::string rules_bytes;  // the same as files have it
  bool add_dummy_prefix = true, remove_extra_spaces = true, escape_spaces = true;
};

// Reads a model file. Throws Error for what is malformed.
SentencePieceModel read_sentencepiece_model(std::string_view bytes, const std::string& where);
// The bytes of a model file.
std::string write_sentencepiece_model(const SentencePieceModel& model);

class SentencePieceEncoder {
 public:
  // Views the model, which must outlive it. Throws Error if its pieces do not fit together.
  SentencePieceEncoder(const SentencePieceModel& model, const std::string& where);

  // begins: false for a text that continues another: its spaces are kept as they stand.
  // dummy_prefix: put a space before it, if the model says so.
  std::string normalize(std::string_view text, bool begins, bool dummy_prefix) const;
  // Appends the ids of a normalised text.
  void encode_normalized(std::string_view text, std::vector<int32_t>& ids) const;

  // The id of a piece; -1 if there is none of that text.
  int32_t find(std::string_view piece) const;
  int32_t unknown() const { return unknown_; }
  // The id of each byte's piece; -1 where there is none.
  const std::array<int32_t, 256>& byte_ids() const { return byte_ids_; }

 private:
  using Pieces = std::vector<UnigramPiece>;

  // The first rule that applies, or the first character: what replaces it, and its length.
  std::pair<std::string_view, size_t> normalize_prefix(std::string_view text) const;
  void merge(std::string_view text, Pieces& out) const;
  void look_up(std::string_view text, Pieces& out) const;
  void append_ids(const Pieces& pieces, std::vector<int32_t>& ids) const;

  std::string where_;
  const SentencePieceModel& model_;
  TextIndex pieces_, others_;  // others_: control, byte, unknown
  Trie user_defined_;
  std::array<bool, 128> plain_{};  // ASCII that no rule and no user-defined piece begins with
  std::array<int32_t, 256> byte_ids_{};
  int32_t unknown_ = -1;
  std::optional<UnigramCutter> cutter_;
  WordCuts cuts_;
  bool cuts_at_marks_ = false;
};

}  // namespace pronghorn
