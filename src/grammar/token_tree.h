// TokenTree: the tokens of a vocabulary by the bytes that they stand for.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "formats/tokenizer.h"

namespace pronghorn {

// A tree over bytes. Its nodes are in the order of a walk that visits each before what is below it,
// so that all below a node lie behind it, up to `end`.
class TokenTree {
 public:
  struct Node {
    uint32_t end = 0;          // the first node that is not below
    uint32_t first_token = 0;  // in tokens(); those of the node end where the next node's begin
    uint16_t depth = 0;        // bytes so far, from 1 on
    uint8_t byte = 0;
  };

  // tokens: bytes and ids.
  explicit TokenTree(std::vector<std::pair<std::string, int32_t>> tokens);

  std::span<const Node> nodes() const { return {nodes_.data(), nodes_.size() - 1}; }
  // Those that end at the node.
  std::span<const int32_t> tokens(size_t node) const {
    return std::span(tokens_).subspan(nodes_[node].first_token,
                                      nodes_[node + 1].first_token - nodes_[node].first_token);
  }
  size_t deepest() const { return deepest_; }

 private:
  std::vector<Node> nodes_;  // and one more, the end
  std::vector<int32_t> tokens_;
  size_t deepest_ = 0;
};

// What of a vocabulary a grammar can allow: tokens that stand for bytes, and special tokens, which
// stand for their token_mark(). Those of more than kShortToken bytes are apart: they are few, and
// decide how far ahead counts must be told apart.
struct TokenVocabulary {
  static constexpr size_t kShortToken = 24, kLongestToken = 4096;

  // vocab_size: of the model, at least the tokenizer's.
  TokenVocabulary(const Tokenizer& tokenizer, int64_t vocab_size);

  int64_t vocab_size;
  std::vector<std::string> bytes;    // of each token; empty: no grammar allows it
  std::vector<std::string> special;  // texts of special tokens
  TokenTree brief, lengthy;
};

}  // namespace pronghorn
