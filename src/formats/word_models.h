// Models that look words up: WordPiece, which takes the longest beginning that is a token again and
// again (Wu et al., "Google's neural machine translation system", 2016), and WordLevel, which knows
// whole words only.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "formats/component.h"
#include "formats/vocabulary.h"

namespace pronghorn {

struct WordPieceOptions {
  std::string unknown = "[UNK]";  // for a word that cannot be cut into tokens
  std::string prefix = "##";      // of tokens inside a word
  size_t longest_word = 100;      // in characters; a longer word is unknown
};

class WordPieceModel final : public SubwordModel {
 public:
  WordPieceModel(Vocabulary vocabulary, WordPieceOptions options, const std::string& where);
  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;

 private:
  std::string where_;
  WordPieceOptions options_;
};

class WordLevelModel final : public SubwordModel {
 public:
  WordLevelModel(Vocabulary vocabulary, std::string unknown, const std::string& where);
  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;

 private:
  std::string where_, unknown_;
};

// The "model" of these types of a tokenizer.json. Throws Error.
std::unique_ptr<SubwordModel> make_word_piece_model(const Component& model);
std::unique_ptr<SubwordModel> make_word_level_model(const Component& model);

}  // namespace pronghorn
