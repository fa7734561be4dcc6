// Tokens by id and ids by token, and the interface of the models that cut a piece into tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/text_index.h"

namespace pronghorn {

class Vocabulary {
 public:
  Vocabulary() = default;
  // "vocab" of a tokenizer.json: {token: id}. Ids may leave holes, but none so large that a small
  // file takes much memory. Throws Error.
  Vocabulary(const nlohmann::json& tokens, const std::string& where);
  // Tokens in the order of their ids; of equal ones the last is found.
  explicit Vocabulary(std::vector<std::string> tokens);

  // Number of ids, holes included.
  size_t size() const { return tokens_.size(); }
  // Empty for a hole.
  const std::string& token(size_t id) const { return tokens_[id]; }
  std::optional<int32_t> find(std::string_view token) const {
    const int32_t id = ids_.find(token);
    return id < 0 ? std::nullopt : std::optional<int32_t>(id);
  }
  // Bytes of the longest token.
  size_t longest() const { return longest_; }

 private:
  void index();

  std::vector<std::string> tokens_;
  TextIndex ids_;  // views tokens_
  size_t longest_ = 0;
};

// What cuts one piece of text into tokens.
class SubwordModel {
 public:
  explicit SubwordModel(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}
  virtual ~SubwordModel() = default;
  SubwordModel(const SubwordModel&) = delete;
  SubwordModel& operator=(const SubwordModel&) = delete;

  // Appends the ids of one piece, which is UTF-8 and not empty. Throws Error where a character is
  // not in the vocabulary and the file names no token for that.
  virtual void encode(std::string_view piece, std::vector<int32_t>& ids) const = 0;

  // Length of the beginning of `text`, at least one character, that can be encoded apart from the
  // rest with the same result.
  virtual size_t independent_part(std::string_view text) const { return text.size(); }

  const Vocabulary& vocabulary() const { return vocabulary_; }

 protected:
  const Vocabulary vocabulary_;
};

// The "model" of a tokenizer.json: BPE, Unigram, WordPiece or WordLevel. Throws Error.
std::unique_ptr<SubwordModel> make_subword_model(const nlohmann::json& model,
                                                 const std::string& where);

}  // namespace pronghorn
