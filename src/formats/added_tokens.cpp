#include "formats/added_tokens.h"

#include <algorithm>

namespace pronghorn {
namespace {

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Letters, digits, underscore, and whatever is not ASCII.
bool is_word(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         (static_cast<unsigned char>(c) & 0x80) != 0;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(const std::vector<AddedToken>& tokens) : first_byte_(256) {
  for (const AddedToken& token : tokens) {
    if (!token.content.empty()) tokens_.push_back(token);
  }
  std::stable_sort(tokens_.begin(), tokens_.end(), [](const AddedToken& a, const AddedToken& b) {
    return a.content.size() > b.content.size();
  });
  for (uint32_t i = 0; i < tokens_.size(); ++i) {
    first_byte_[static_cast<unsigned char>(tokens_[i].content[0])].push_back(i);
  }
}

const AddedToken* AddedTokenMatcher::match(std::string_view text, size_t at, bool special) const {
  for (const uint32_t index : first_byte_[static_cast<unsigned char>(text[at])]) {
    const AddedToken& token = tokens_[index];
    if (token.special && !special) continue;
    if (text.substr(at, token.content.size()) != token.content) continue;
    const size_t end = at + token.content.size();
    if (token.single_word &&
        ((at > 0 && is_word(text[at - 1])) || (end < text.size() && is_word(text[end])))) {
      continue;
    }
    return &token;
  }
  return nullptr;
}

std::vector<TextPart> AddedTokenMatcher::split(std::string_view text, bool special) const {
  std::vector<TextPart> parts;
  size_t begin = 0;  // of the text since the last token
  if (!tokens_.empty()) {
    for (size_t at = 0; at < text.size();) {
      const AddedToken* token = match(text, at, special);
      if (token == nullptr) {
        ++at;
        continue;
      }
      size_t text_end = at;
      at += token->content.size();
      while (token->left_strip && text_end > begin && is_space(text[text_end - 1])) --text_end;
      while (token->right_strip && at < text.size() && is_space(text[at])) ++at;
      if (text_end > begin) parts.push_back({text.substr(begin, text_end - begin)});
      parts.push_back({text.substr(text_end, at - text_end), token->id});
      begin = at;
    }
  }
  if (begin < text.size()) parts.push_back({text.substr(begin)});
  return parts;
}

}  // namespace pronghorn
