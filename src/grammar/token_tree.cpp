#include "grammar/token_tree.h"

#include <algorithm>

#include "base/error.h"
#include "grammar/grammar_rules.h"

namespace pronghorn {
namespace {

using Tokens = std::vector<std::pair<std::string, int32_t>>;

std::vector<std::string> all_bytes(const Tokenizer& tokenizer, int64_t vocab_size) {
  std::vector<std::string> bytes(static_cast<size_t>(vocab_size));
  const auto known = static_cast<int32_t>(std::min(vocab_size, tokenizer.vocab_size()));
  for (int32_t token = 0; token < known; ++token) {
    const bool special = tokenizer.is_special(token);
    std::string own = tokenizer.token_bytes(token, special);
    // A byte of marks in an ordinary token: no text of a grammar has it.
    if (own.empty() || own.find(kMark) != own.npos) continue;
    if (special) own = token_mark(own);
    if (own.size() > TokenVocabulary::kLongestToken) continue;
    bytes[static_cast<size_t>(token)] = std::move(own);
  }
  return bytes;
}

Tokens tokens_of(const std::vector<std::string>& bytes, size_t least, size_t most) {
  Tokens tokens;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i].size() >= least && bytes[i].size() <= most) {
      tokens.emplace_back(bytes[i], static_cast<int32_t>(i));
    }
  }
  return tokens;
}

std::vector<std::string> special_texts(const std::vector<std::string>& bytes) {
  std::vector<std::string> texts;
  for (const std::string& own : bytes) {
    if (own.starts_with(kMark)) texts.push_back(own.substr(1, own.size() - 2));
  }
  return texts;
}

}  // namespace

TokenTree::TokenTree(Tokens tokens) {
  std::ranges::sort(tokens);
  std::vector<size_t> path;  // nodes of the last token's bytes
  const auto close = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back()) {
      nodes_[path.back()].end = static_cast<uint32_t>(nodes_.size());
    }
  };
  std::string_view last;
  for (const auto& [bytes, token] : tokens) {
    size_t same = 0;
    while (same < last.size() && same < bytes.size() && last[same] == bytes[same]) ++same;
    close(same);
    for (size_t i = same; i < bytes.size(); ++i) {
      path.push_back(nodes_.size());
      nodes_.push_back({0, static_cast<uint32_t>(tokens_.size()), static_cast<uint16_t>(i + 1),
                        static_cast<uint8_t>(bytes[i])});
    }
    tokens_.push_back(token);
    last = bytes;
    deepest_ = std::max(deepest_, bytes.size());
  }
  close(0);
  nodes_.push_back(
      {static_cast<uint32_t>(nodes_.size()), static_cast<uint32_t>(tokens_.size()), 0, 0});
}

TokenVocabulary::TokenVocabulary(const Tokenizer& tokenizer, int64_t model_vocab_size)
    : vocab_size(model_vocab_size),
      bytes(all_bytes(tokenizer, model_vocab_size)),
      special(special_texts(bytes)),
      brief(tokens_of(bytes, 1, kShortToken)),
      lengthy(tokens_of(bytes, kShortToken + 1, kLongestToken)) {}

}  // namespace pronghorn
