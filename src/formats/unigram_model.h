// Unigram language models: of all ways to cut a text into tokens the one whose scores have the
// greatest sum (Kudo, "Subword regularization", 2018), by Viterbi's algorithm.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/component.h"
#include "formats/trie.h"
#include "formats/vocabulary.h"

namespace pronghorn {

// A piece of the best cut.
struct UnigramPiece {
  std::string_view text;
  int32_t id;  // of the unknown token where no token fits
};

// Cuts texts by scores. Two libraries do that, and sums are rounded as each has it.
class UnigramCutter {
 public:
  // texts: what can be a piece, with its id; scores: by id. unknown: the id for a character that no
  // text covers, or -1; unknown_score: what it counts. in_float: sums are kept in f32, as
  // SentencePiece does; otherwise in f64, as the tokenizers library does.
  UnigramCutter(std::vector<std::pair<std::string_view, int32_t>> texts, std::vector<double> scores,
                int32_t unknown, double unknown_score, bool in_float);

  // Counts a piece as its length times `highest`, the highest score of the others or a little more
  // than 0, less 0.1, so that it wins: SentencePiece's user-defined pieces.
  void prefer(int32_t id, float highest);

  // Throws Error(where) if no piece covers a character and there is no unknown token.
  std::vector<UnigramPiece> cut(std::string_view text, const std::string& where) const;

 private:
  // Sum: float or double.
  template <typename Sum>
  std::vector<UnigramPiece> cut_by(std::string_view text, const std::string& where) const;

  Trie trie_;
  std::vector<double> scores_;
  std::vector<bool> preferred_;
  float highest_ = 0;
  int32_t unknown_;
  double unknown_score_;
  bool in_float_;
};

class UnigramModel final : public SubwordModel {
 public:
  // scores: by id. unknown: -1 if there is none. Throws Error.
  UnigramModel(Vocabulary vocabulary, std::vector<double> scores, int32_t unknown,
               bool byte_fallback, const std::string& where);

  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;

 private:
  std::string where_;
  int32_t unknown_;
  bool byte_fallback_;
  std::array<int32_t, 256> byte_ids_{};  // -1 if there is none
  UnigramCutter cutter_;
};

// The "model" of type Unigram of a tokenizer.json. Throws Error.
std::unique_ptr<SubwordModel> make_unigram_model(const Component& model);

// Longest text of a piece. Cutting takes time in proportion to the longest.
constexpr size_t kLongestUnigram = 4096;

}  // namespace pronghorn
