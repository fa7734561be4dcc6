#include "formats/added_tokens.h"

#include <algorithm>
#include <charconv>
#include <unordered_set>

#include "base/error.h"
#include "base/quote.h"
#include "formats/component.h"
#include "formats/unicode.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

using nlohmann::json;

constexpr size_t kMaxAdded = 65536;  // ids beyond the vocabulary
constexpr size_t kLongestAdded = 4096;

size_t begin_of_last(std::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return begin;
}

bool ends_with_word(std::string_view text) {
  return !text.empty() && is_word_character(decode_utf8(text.substr(begin_of_last(text))));
}

uint32_t first_code(std::string_view text) {
  return decode_utf8(text.substr(0, std::max<size_t>(utf8_character(text.substr(0, 4)), 1)));
}

bool starts_with_word(std::string_view text) {
  return !text.empty() && is_word_character(first_code(text));
}

// Where the spaces at the end of the text begin, and where those at its start end.
size_t before_spaces(std::string_view text) {
  while (!text.empty()) {
    const size_t begin = begin_of_last(text);
    if (!is_unicode_space(decode_utf8(text.substr(begin)))) break;
    text = text.substr(0, begin);
  }
  return text.size();
}
size_t after_spaces(std::string_view text) {
  size_t at = 0;
  while (at < text.size() && is_unicode_space(first_code(text.substr(at)))) {
    at += std::max<size_t>(utf8_character(text.substr(at, 4)), 1);
  }
  return at;
}

AddedToken token_of(const json& entry, std::string content, bool special) {
  const auto flag = [&](const char* key, bool fallback) {
    const json& value = member_or_null(entry, key);
    return value.is_boolean() ? value.get<bool>() : fallback;
  };
  AddedToken token;
  token.content = std::move(content);
  token.special = flag("special", special);
  // A token is normalised unless it is special or says otherwise.
  token.normalized = flag("normalized", !token.special);
  token.left_strip = flag("lstrip", false);
  token.right_strip = flag("rstrip", false);
  token.single_word = flag("single_word", false);
  return token;
}

// Keys are sorted as text; tokens are added in the order of their ids.
void sort_by_id(std::vector<AddedToken>& tokens) {
  std::stable_sort(tokens.begin(), tokens.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
}

void check_id(uint64_t id, size_t vocabulary, const std::string& where) {
  require(id < vocabulary + kMaxAdded, where, "id {} is too far beyond the vocabulary of {}", id,
          vocabulary);
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  std::vector<std::pair<std::string_view, int32_t>> texts;
  for (size_t i = tokens_.size(); i-- > 0;) {  // of equal texts the first counts
    texts.emplace_back(tokens_[i].content, static_cast<int32_t>(i));
  }
  trie_ = Trie(std::move(texts));
}

std::vector<TextPart> AddedTokenMatcher::split(std::string_view text, bool special) const {
  std::vector<TextPart> parts;
  if (text.empty()) return parts;
  size_t begin = 0;  // of the text since the last token
  if (!tokens_.empty()) {
    for (size_t at = 0; at < text.size();) {
      const auto [length, index] = trie_.longest_prefix(text.substr(at));
      if (length == 0) {
        ++at;
        continue;
      }
      const AddedToken& token = tokens_[static_cast<size_t>(index)];
      size_t from = at, to = at + length;
      at = to;
      if (token.special && !special) continue;
      if (token.single_word &&
          (ends_with_word(text.substr(0, from)) || starts_with_word(text.substr(to)))) {
        continue;
      }
      if (token.left_strip) {
        from = std::max(begin,
                        begin + before_spaces(text.substr(begin, std::max(from, begin) - begin)));
      }
      if (token.right_strip) to += after_spaces(text.substr(to));
      if (begin < from) parts.push_back({text.substr(begin, from - begin)});
      parts.push_back({text.substr(from, to - from), token.id});
      begin = to;
    }
  }
  if (begin < text.size()) parts.push_back({text.substr(begin)});
  return parts;
}

std::vector<AddedToken> read_added_tokens(const json& list, const std::string& where,
                                          size_t vocabulary) {
  require(list.is_array() || list.is_object(), where, "must be an array or an object");
  std::vector<AddedToken> tokens;
  for (const auto& item : list.items()) {
    const json& entry = item.value();
    const json& content = entry.is_string() ? entry : member_or_null(entry, "content");
    require(content.is_string(), where, "entry {} has no content", quote(item.key()));
    require(content.get_ref<const std::string&>().size() <= kLongestAdded, where,
            "the content of entry {} is longer than {} bytes", quote(item.key()), kLongestAdded);
    uint64_t id = 0;
    if (list.is_array()) {
      const json& value = member_or_null(entry, "id");
      require(value.is_number_unsigned(), where, "entry {} has no id", item.key());
      id = value.get<uint64_t>();
    } else {
      const char* end = item.key().data() + item.key().size();
      const auto result = std::from_chars(item.key().data(), end, id);
      require(result.ec == std::errc() && result.ptr == end, where, "{} is not an id",
              quote(item.key()));
    }
    check_id(id, vocabulary, where);
    tokens.push_back(token_of(entry, content.get<std::string>(), false));
    tokens.back().id = static_cast<int32_t>(id);
  }
  sort_by_id(tokens);
  return tokens;
}

SideTokens read_side_tokens(const json& config, const json& special_map, const json& added,
                            const std::string& where, size_t vocabulary) {
  SideTokens side;
  json names = json::object();
  const auto name_all = [&](const json& file) {
    if (!file.is_object()) return;
    for (const auto& item : file.items()) {
      const std::string& key = item.key();
      const bool list = key == "additional_special_tokens" || key == "extra_special_tokens";
      const bool text =
          item.value().is_string() || member_or_null(item.value(), "content").is_string();
      if (list || (key.ends_with("_token") && text)) names[key] = item.value();
    }
  };
  name_all(config);
  const json& decoder = member_or_null(config, "added_tokens_decoder");
  if (decoder.is_null()) name_all(special_map);
  const auto content_of = [](const json& entry) {
    const json& content = entry.is_string() ? entry : member_or_null(entry, "content");
    return content.is_string() ? content.get<std::string>() : std::string();
  };
  std::unordered_set<std::string> known;
  const auto add = [&](const json& entry) {
    std::string content = content_of(entry);
    if (content.empty() || content.size() > kLongestAdded || !known.insert(content).second) return;
    AddedToken token = token_of(entry, std::move(content), true);
    token.special = true;
    token.id = -1;
    side.named.push_back(std::move(token));
  };
  for (const auto& item : names.items()) {
    if (item.key().ends_with("_token")) {
      add(item.value());
    } else if (item.value().is_array() || item.value().is_object()) {
      for (const json& entry : item.value()) add(entry);
    }
  }
  side.bos = content_of(member_or_null(names, "bos_token"));
  side.eos = content_of(member_or_null(names, "eos_token"));
  side.unknown = content_of(member_or_null(names, "unk_token"));

  if (!decoder.is_null()) {
    side.by_id = read_added_tokens(decoder, where + ": added_tokens_decoder", vocabulary);
    return side;
  }
  if (!added.is_object()) return side;
  const std::string place = where + ": added_tokens.json";
  for (const auto& item : added.items()) {  // {"text": id}
    require(item.value().is_number_unsigned(), place, "the id of {} must be a whole number",
            quote(item.key()));
    const auto id = item.value().get<uint64_t>();
    check_id(id, vocabulary, place);
    side.by_id.push_back(token_of({}, item.key(), known.contains(item.key())));
    side.by_id.back().id = static_cast<int32_t>(id);
  }
  sort_by_id(side.by_id);
  return side;
}

}  // namespace pronghorn
