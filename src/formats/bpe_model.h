// Byte-pair encoding: merges of neighbouring symbols in order of rank (Sennrich et al., "Neural
// machine translation of rare words with subword units", 2016).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/byte_alphabet.h"
#include "formats/component.h"
#include "formats/vocabulary.h"
#include "formats/word_cuts.h"

namespace pronghorn {

struct BpeOptions {
  std::vector<std::pair<std::string, std::string>> merges;  // first ranks first
  std::string unknown;         // the token for characters that are not in the vocabulary, if any
  bool fuse_unknown = false;   // one of it for a run of such characters
  bool byte_fallback = false;  // tokens such as "<0x0A>" for the bytes of such a character
  bool ignore_merges = false;  // a piece that is a token becomes that token
  std::string prefix, suffix;  // of symbols inside a word, and of its last
};

class BpeModel final : public SubwordModel {
 public:
  // Throws Error(where) for a merge of or into tokens that are not there.
  BpeModel(Vocabulary vocabulary, const BpeOptions& options, const std::string& where);

  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;
  size_t independent_part(std::string_view text) const override;

 private:
  struct Merge {
    uint64_t pair = kNoPair;
    int32_t rank = 0, merged = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};
  static constexpr size_t kFewSymbols = 32;

  void read_merges(const BpeOptions& options);
  void insert_merge(const Merge& merge);
  const Merge* find_merge(int32_t left, int32_t right) const;
  int32_t find_character(std::string_view character) const;
  // The symbols that a piece starts as.
  void split_symbols(std::string_view piece, std::vector<int32_t>& symbols) const;
  void merge_few(std::vector<int32_t>& symbols) const;
  void merge_many(std::vector<int32_t>& symbols) const;

  std::string where_, prefix_, suffix_;
  bool byte_fallback_, ignore_merges_, fuse_unknown_;
  int32_t unknown_ = -1;
  std::array<int32_t, 256> byte_ids_{};                 // the fallback token of a byte; -1 if none
  std::array<int32_t, kByteAlphabetEnd> characters_{};  // tokens of one character; -1 if none
  std::vector<Merge> merges_;                           // open addressing, a power of two
  WordCuts cuts_;
  bool cuts_at_marks_ = false;
};

// The "model" of type BPE of a tokenizer.json. Its dropout, which makes training random, is not
// applied. Throws Error.
std::unique_ptr<SubwordModel> make_bpe_model(const Component& model);

}  // namespace pronghorn
