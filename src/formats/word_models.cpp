#include "formats/word_models.h"

#include <algorithm>

#include "base/error.h"
#include "base/quote.h"

namespace pronghorn {
namespace {

int32_t unknown_id(const Vocabulary& vocabulary, const std::string& name, std::string_view word,
                   const std::string& where) {
  const auto id = vocabulary.find(name);
  require(id.has_value(), where, "its unk_token {} is not in the vocabulary, and {} is neither",
          quote(name), quote(word));
  return *id;
}

}  // namespace

WordPieceModel::WordPieceModel(Vocabulary vocabulary, WordPieceOptions options,
                               const std::string& where)
    : SubwordModel(std::move(vocabulary)), where_(where), options_(std::move(options)) {}

void WordPieceModel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  const auto characters = static_cast<size_t>(std::count_if(piece.begin(), piece.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
  const size_t before = ids.size();
  bool known = characters <= options_.longest_word;
  std::string part;
  for (size_t begin = 0; known && begin < piece.size();) {
    // Nothing longer than the longest token needs a look.
    size_t end = std::min(piece.size(), begin + vocabulary_.longest());
    const auto inside = [&](size_t at) {
      return at < piece.size() && (static_cast<unsigned char>(piece[at]) & 0xC0) == 0x80;
    };
    while (inside(end)) --end;
    known = false;
    while (end > begin && !known) {
      part = begin > 0 ? options_.prefix : "";
      part += piece.substr(begin, end - begin);
      if (const auto id = vocabulary_.find(part)) {
        ids.push_back(*id);
        begin = end;
        known = true;
        break;
      }
      do --end;
      while (end > begin && inside(end));
    }
  }
  if (known) return;
  ids.resize(before);
  ids.push_back(unknown_id(vocabulary_, options_.unknown, piece, where_));
}

WordLevelModel::WordLevelModel(Vocabulary vocabulary, std::string unknown, const std::string& where)
    : SubwordModel(std::move(vocabulary)), where_(where), unknown_(std::move(unknown)) {}

void WordLevelModel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  const auto id = vocabulary_.find(piece);
  ids.push_back(id ? *id : unknown_id(vocabulary_, unknown_, piece, where_));
}

std::unique_ptr<SubwordModel> make_word_piece_model(const Component& model) {
  WordPieceOptions options;
  options.unknown = model.text("unk_token", options.unknown);
  options.prefix = model.text("continuing_subword_prefix", options.prefix);
  options.longest_word = model.count("max_input_chars_per_word", options.longest_word);
  return std::make_unique<WordPieceModel>(Vocabulary(model.member("vocab"), model.where()),
                                          std::move(options), model.where());
}

std::unique_ptr<SubwordModel> make_word_level_model(const Component& model) {
  return std::make_unique<WordLevelModel>(Vocabulary(model.member("vocab"), model.where()),
                                          model.text("unk_token", "<unk>"), model.where());
}

}  // namespace pronghorn
