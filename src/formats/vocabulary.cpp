#include "formats/vocabulary.h"

#include <algorithm>

#include "base/error.h"
#include "base/quote.h"
#include "formats/bpe_model.h"
#include "formats/component.h"
#include "formats/unigram_model.h"
#include "formats/word_models.h"

namespace pronghorn {

using nlohmann::json;

Vocabulary::Vocabulary(const json& tokens, const std::string& where) {
  require(tokens.is_object() && !tokens.empty(), where, "'vocab' must be an object with tokens");
  const uint64_t limit = 4 * tokens.size() + 65536;
  std::vector<bool> taken;
  for (const auto& item : tokens.items()) {
    require(item.value().is_number_unsigned() && item.value().get<uint64_t>() < limit, where,
            "'vocab': the id of {} must be a whole number below {}", quote(item.key()), limit);
    const auto id = item.value().get<uint64_t>();
    if (id >= tokens_.size()) tokens_.resize(id + 1);
    if (id >= taken.size()) taken.resize(std::max<size_t>(id + 1, 2 * taken.size()));
    require(!taken[id], where, "'vocab': id {} belongs to two tokens", id);
    taken[id] = true;
    tokens_[id] = item.key();
  }
  index();
}

Vocabulary::Vocabulary(std::vector<std::string> tokens) : tokens_(std::move(tokens)) { index(); }

void Vocabulary::index() {
  ids_ = TextIndex(tokens_.size());
  for (size_t id = tokens_.size(); id-- > 0;) {  // of equal texts the last counts
    longest_ = std::max(longest_, tokens_[id].size());
    if (!tokens_[id].empty()) ids_.add(tokens_[id], static_cast<int32_t>(id));
  }
}

std::unique_ptr<SubwordModel> make_subword_model(const json& description,
                                                 const std::string& where) {
  const Component model(description, where + ": model");
  std::string type = model.type();
  if (type.empty()) {  // as old files have it
    type = !model.member("merges").is_null()  ? "BPE"
           : model.member("vocab").is_array() ? "Unigram"
           : !model.member("unk_token").is_null() &&
                   model.member("continuing_subword_prefix").is_null()
               ? "WordLevel"
               : "WordPiece";
  }
  if (type == "BPE") return make_bpe_model(model);
  if (type == "Unigram") return make_unigram_model(model);
  if (type == "WordPiece") return make_word_piece_model(model);
  if (type == "WordLevel") return make_word_level_model(model);
  model.refuse_type();
}

}  // namespace pronghorn
