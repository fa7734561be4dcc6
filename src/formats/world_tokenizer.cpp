#include "formats/world_tokenizer.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <unordered_set>

#include "base/error.h"
#include "base/lines.h"
#include "base/quote.h"
#include "formats/component.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

constexpr const char* kEndOfText = "<|endoftext|>";
// A small file takes little memory.
constexpr int64_t kMostHoles = 1 << 16;

int digit_of(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Takes an escape of Python off the front of `rest`, behind its backslash, and appends what it
// means. Those that repr() writes.
void take_escape(std::string_view& rest, bool bytes, std::string& out, const std::string& where) {
  require(!rest.empty(), where, "ends in a backslash");
  const char kind = rest[0];
  rest.remove_prefix(1);
  const size_t digits = kind == 'x' ? 2 : kind == 'u' && !bytes ? 4 : kind == 'U' && !bytes ? 8 : 0;
  if (digits == 0) {
    constexpr std::string_view kinds = "\\'\"tnr", meanings = "\\'\"\t\n\r";
    const size_t place = kinds.find(kind);
    require(place != kinds.npos, where, "{} is no escape", quote(std::string{'\\', kind}));
    out += meanings[place];
    return;
  }
  require(rest.size() >= digits, where, "an escape is cut off");
  uint32_t code = 0;
  for (size_t i = 0; i < digits; ++i) {
    const int digit = digit_of(rest[i]);
    require(digit >= 0, where, "{} is no hexadecimal digit", quote(rest.substr(i, 1)));
    code = code * 16 + static_cast<uint32_t>(digit);
  }
  rest.remove_prefix(digits);
  if (bytes) {
    out += static_cast<char>(code);
  } else {
    require(code < 0xD800 || (code > 0xDFFF && code <= 0x10FFFF), where, "{:#x} is no character",
            code);
    append_utf8(code, out);
  }
}

std::string unescaped(std::string_view rest, bool bytes, char closing, const std::string& where) {
  std::string out;
  while (!rest.empty()) {
    const char c = rest[0];
    require(c != closing, where, "a quote inside quotes");
    require(!bytes || static_cast<unsigned char>(c) < 0x80, where,
            "bytes that are not ASCII must be escaped");
    rest.remove_prefix(1);
    if (c == '\\') {
      take_escape(rest, bytes, out, where);
    } else {
      out += c;
    }
  }
  return out;
}

// 'text', "text", b'bytes' or b"bytes".
std::string literal(std::string_view text, const std::string& where) {
  const bool bytes = text.starts_with('b');
  if (bytes) text.remove_prefix(1);
  const bool quoted =
      text.size() >= 2 && (text[0] == '\'' || text[0] == '"') && text.front() == text.back();
  require(quoted, where, "{} is not in quotes", quote(text));
  return unescaped(text.substr(1, text.size() - 2), bytes, text[0], where);
}

int64_t number(std::string_view text, const std::string& where) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(error == std::errc() && end == text.data() + text.size(), where, "{} is no number",
          quote(text));
  return value;
}

class WorldTokenizer final : public Tokenizer {
 public:
  WorldTokenizer(WorldTokens tokens, const SideFiles& side, std::string where, Files files)
      : Tokenizer(std::move(files)), where_(std::move(where)), tokens_(std::move(tokens)) {
    if (tokens_.empty()) tokens_.emplace_back();
    std::vector<std::pair<std::string_view, int32_t>> texts;
    for (size_t id = 0; id < tokens_.size(); ++id) {
      texts.emplace_back(tokens_[id], static_cast<int32_t>(id));
    }
    trie_ = Trie(std::move(texts));
    read_added(side);
  }

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override {
    std::vector<int32_t> ids;
    if (options.add_special && add_bos_) ids.push_back(*bos_);
    for (const TextPart& part : matcher_.split(text, options.parse_special)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      for (std::string_view rest = part.text; !rest.empty();) {
        const auto [length, id] = trie_.longest_prefix(rest);
        require(length > 0, where_, "no token for the byte {:#04x}",
                static_cast<unsigned char>(rest[0]));
        ids.push_back(id);
        rest.remove_prefix(length);
      }
    }
    if (options.add_special && add_eos_) ids.push_back(*eos_);
    return ids;
  }

  std::string token_bytes(int32_t id, bool special) const override {
    require(id >= 0, where_, "id {} is not in the vocabulary of {}", id, vocab_size());
    if (const AddedToken* added = find_added(id)) {
      return added->special && !special ? std::string() : added->content;
    }
    return id < vocab_size() ? tokens_[static_cast<size_t>(id)] : std::string();
  }

  bool is_added(int32_t id) const override { return find_added(id) != nullptr; }
  bool is_special(int32_t id) const override {
    const AddedToken* added = find_added(id);
    return added != nullptr && added->special;
  }
  std::optional<int32_t> find_token(std::string_view text) const override {
    for (const auto& [id, added] : added_) {
      if (added.content == text) return id;
    }
    return find_bytes(text);
  }
  int64_t vocab_size() const override { return static_cast<int64_t>(tokens_.size()); }
  std::optional<int32_t> bos() const override { return bos_; }
  std::optional<int32_t> eos() const override { return eos_; }

 private:
  const AddedToken* find_added(int32_t id) const {
    const auto found = added_.find(id);
    return found == added_.end() ? nullptr : &found->second;
  }

  std::optional<int32_t> find_bytes(std::string_view bytes) const {
    const auto [length, id] = trie_.longest_prefix(bytes);
    if (bytes.empty() || length != bytes.size()) return {};
    return id;
  }

  void add(AddedToken token) {
    // Texts here are any bytes, which have no words and no spaces.
    require(!token.left_strip && !token.right_strip && !token.single_word, where_,
            "lstrip, rstrip and single_word of the token {} are not supported",
            quote(token.content));
    const auto id = static_cast<size_t>(token.id);
    if (id >= tokens_.size()) tokens_.resize(id + 1);
    added_.insert_or_assign(token.id, std::move(token));
  }

  void read_added(const SideFiles& side) {
    SideTokens named =
        read_side_tokens(side.config, side.special_map, side.added, where_, tokens_.size());
    for (AddedToken& token : named.by_id) add(std::move(token));
    // Token 0 has no line, but a name: that of a text's beginning or end.
    for (AddedToken& token : named.named) {
      if (find_token(token.content)) continue;
      const bool end = token.content == named.bos || token.content == named.eos ||
                       token.content == named.unknown;
      require(end, where_, "the special token {} has no id", quote(token.content));
      const AddedToken* other = find_added(0);
      require(other == nullptr, where_, "token 0 is named {} and {}",
              quote(other == nullptr ? "" : other->content), quote(token.content));
      token.id = 0;
      add(std::move(token));
    }
    if (!added_.contains(0) && tokens_[0].empty()) {
      add({.id = 0, .content = kEndOfText, .special = true});
    }
    bos_ = named.bos.empty() ? std::nullopt : find_token(named.bos);
    eos_ = named.eos.empty() ? std::optional<int32_t>(0) : find_token(named.eos);
    add_bos_ = bos_ && member_or_null(side.config, "add_bos_token") == true;
    add_eos_ = eos_ && member_or_null(side.config, "add_eos_token") == true;
    std::vector<AddedToken> all;
    for (const auto& [id, token] : added_) all.push_back(token);
    matcher_ = AddedTokenMatcher(std::move(all));
  }

  std::string where_;
  WorldTokens tokens_;
  Trie trie_;
  std::map<int32_t, AddedToken> added_;
  AddedTokenMatcher matcher_;
  std::optional<int32_t> bos_, eos_;
  bool add_bos_ = false, add_eos_ = false;
};

}  // namespace

WorldTokens read_world_vocabulary(std::string_view text, const std::string& where) {
  WorldTokens tokens(1);
  const int64_t most = std::count(text.begin(), text.end(), '\n') + kMostHoles;
  std::unordered_set<std::string> known;
  for (int64_t line = 1; !text.empty(); ++line) {
    const std::string place = fmt::format("{}: line {}", where, line);
    const std::string_view row = take_line(text);
    const size_t first = row.find(' '), last = row.rfind(' ');
    require(first != row.npos && first < last, place, "must be an id, a token and its length");
    const int64_t id = number(row.substr(0, first), place);
    require(id >= static_cast<int64_t>(tokens.size()) && id <= most, place,
            "id {} after {} and {} lines", id, tokens.size() - 1, most - kMostHoles);
    std::string bytes = literal(row.substr(first + 1, last - first - 1), place);
    const int64_t length = number(row.substr(last + 1), place);
    require(!bytes.empty() && length == static_cast<int64_t>(bytes.size()), place,
            "a token of {} bytes that says {}", bytes.size(), length);
    require(known.insert(bytes).second, place, "the token of id {} occurs twice", id);
    tokens.resize(static_cast<size_t>(id));
    tokens.push_back(std::move(bytes));
  }
  require(tokens.size() > 1, where, "has no tokens");
  return tokens;
}

std::string write_world_vocabulary(const WorldTokens& tokens) {
  std::string text;
  for (size_t id = 1; id < tokens.size(); ++id) {
    const std::string& bytes = tokens[id];
    if (bytes.empty()) continue;
    const bool ascii = std::all_of(bytes.begin(), bytes.end(),
                                   [](char c) { return static_cast<unsigned char>(c) < 0x80; });
    const bool only_single = bytes.find('\'') != bytes.npos && bytes.find('"') == bytes.npos;
    const char mark = only_single ? '"' : '\'';
    text += fmt::format("{} {}{}{}{} {}\n", id, ascii ? "" : "b", mark, escape_world_token(bytes),
                        mark, bytes.size());
  }
  return text;
}

std::string escape_world_token(std::string_view bytes) {
  // As repr() does: the quote around the bytes is the one that they do not have.
  const bool both = bytes.find('\'') != bytes.npos && bytes.find('"') != bytes.npos;
  std::string text;
  for (const char c : bytes) {
    constexpr std::string_view plain = "\t\n\r\\", letters = "tnr\\";
    const size_t place = plain.find(c);
    if (place != plain.npos) {
      text += {'\\', letters[place]};
    } else if (c == '\'' && both) {
      text += "\\'";
    } else if (c < 0x20 || c >= 0x7F) {  // of signed characters: beyond ASCII too
      text += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      text += c;
    }
  }
  return text;
}

std::string unescape_world_token(std::string_view text, const std::string& where) {
  return unescaped(text, true, '\0', where);
}

std::unique_ptr<Tokenizer> make_world_tokenizer(WorldTokens tokens, const SideFiles& side,
                                                const std::string& where, Tokenizer::Files files) {
  return std::make_unique<WorldTokenizer>(std::move(tokens), side, where, std::move(files));
}

}  // namespace pronghorn
