#include "formats/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "formats/jinja/text.h"
#include "formats/utf8.h"

namespace pronghorn::jinja {
namespace {

using Kind = Token::Kind;

// Longer ones first.
constexpr std::array<std::string_view, 27> kSymbols = {
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]",
    "(",  ")",  "{",  "}",  ">",  "<",  "=", ".", ":", "|", ",", ";", "!"};

// Line ends as \n, and the last one dropped.
std::string with_plain_line_ends(std::string_view source) {
  std::string text;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      text += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      text += source[i];
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : text_(with_plain_line_ends(source)) {}

  std::vector<Token> run() {
    while (at_ < text_.size()) {
      const size_t tag = find_tag();
      if (tag == std::string::npos) {
        data(text_.substr(at_));
        advance(text_.size() - at_);
        break;
      }
      open_tag(tag);
    }
    tokens_.push_back({Kind::end, line_});
    return std::move(tokens_);
  }

 private:
  std::string_view rest() const { return std::string_view(text_).substr(at_); }
  bool next_is(std::string_view wanted) const { return rest().starts_with(wanted); }

  void advance(size_t count) {
    line_ += static_cast<int>(std::count(text_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         text_.begin() + static_cast<std::ptrdiff_t>(at_ + count),
                                         '\n'));
    at_ += count;
    if (count > 0) line_starting_ = text_[at_ - 1] == '\n';
  }

  void skip_space() {
    const std::string_view left = rest();
    advance(left.size() - strip(left, true, false).size());
  }

  size_t find_tag() const {
    for (size_t i = at_; (i = text_.find('{', i)) != std::string::npos; ++i) {
      const char next = i + 1 < text_.size() ? text_[i + 1] : 0;
      if (next == '{' || next == '%' || next == '#') return i;
    }
    return std::string::npos;
  }

  void data(std::string_view text) {
    if (!text.empty()) tokens_.push_back({Kind::data, line_, std::string(text)});
  }

  // The text before a tag, without the white space that the tag takes away.
  void data_before(size_t tag, char sign, bool is_variable) {
    std::string_view text = std::string_view(text_).substr(at_, tag - at_);
    const size_t whole = text.size();
    if (sign == '-') {
      text = strip(text, false, true);
    } else if (sign != '+' && !is_variable) {
      // Of a line that has nothing but white space before the tag.
      const size_t line = text.rfind('\n') + 1;  // npos + 1 is 0
      if ((line > 0 || line_starting_) && strip(text.substr(line)).empty()) {
        text = text.substr(0, line);
      }
    }
    data(text);
    advance(whole);
  }

  void open_tag(size_t tag) {
    const char type = text_[tag + 1];
    char sign = tag + 2 < text_.size() ? text_[tag + 2] : 0;
    if (sign != '-' && sign != '+') sign = 0;
    data_before(tag, sign, type == '{');
    const int line = line_;
    advance(sign == 0 ? 2 : 3);
    if (type == '#') return comment(line);
    if (type == '%' && raw_block()) return;
    tokens_.push_back({type == '{' ? Kind::variable_begin : Kind::block_begin, line});
    inside(type == '{');
  }

  void comment(int line) {
    const size_t end = text_.find("#}", at_);
    if (end == std::string::npos) throw SyntaxFailure("Missing end of comment tag", line);
    const char sign = end > at_ ? text_[end - 1] : 0;
    advance(end + 2 - at_);
    after_block(sign);
  }

  // What the end of a block or comment takes away behind itself.
  void after_block(char sign) {
    if (sign == '-') {
      skip_space();
    } else if (sign != '+' && next_is("\n")) {
      advance(1);
    }
  }

  // {% raw %} ... {% endraw %}: text without tags. False if this is another block.
  bool raw_block() {
    std::string_view left = strip(rest(), true, false);
    if (!left.starts_with("raw")) return false;
    left = strip(left.substr(3), true, false);
    const bool strips = left.starts_with("-%}");
    if (!strips && !left.starts_with("%}")) return false;
    const int line = line_;
    advance(rest().size() - left.size() + (strips ? 3 : 2));
    if (strips) skip_space();
    for (size_t i = at_; (i = text_.find("{%", i)) != std::string::npos; i += 2) {
      std::string_view end = std::string_view(text_).substr(i + 2);
      const char sign = end.empty() || (end[0] != '-' && end[0] != '+') ? 0 : end[0];
      if (sign != 0) end.remove_prefix(1);
      end = strip(end, true, false);
      if (!end.starts_with("endraw")) continue;
      end = strip(end.substr(6), true, false);
      const char close = end.empty() || (end[0] != '-' && end[0] != '+') ? 0 : end[0];
      if (close != 0) end.remove_prefix(1);
      if (!end.starts_with("%}")) continue;
      data_before(i, sign, false);
      advance(rest().size() - end.size() + 2);
      after_block(close);
      return true;
    }
    throw SyntaxFailure("Missing end of raw directive", line);
  }

  // Tokens up to the end of the tag.
  void inside(bool is_variable) {
    const std::string_view close = is_variable ? "}}" : "%}";
    const int line = line_;
    std::string open;  // brackets
    while (true) {
      skip_space();
      if (at_ >= text_.size()) {
        throw SyntaxFailure(is_variable ? "the {{ is never closed" : "the {% is never closed",
                            line);
      }
      if (open.empty()) {
        const bool minus = next_is("-") && rest().substr(1).starts_with(close);
        const bool plus = !is_variable && next_is("+") && rest().substr(1).starts_with(close);
        if (minus || plus || next_is(close)) {
          tokens_.push_back({is_variable ? Kind::variable_end : Kind::block_end, line_});
          const char sign = minus ? '-' : plus ? '+' : 0;
          advance(sign == 0 ? 2 : 3);
          if (is_variable) {
            if (minus) skip_space();
          } else {
            after_block(sign);
          }
          return;
        }
      }
      token(open);
    }
  }

  void token(std::string& open) {
    const char c = text_[at_];
    if (c >= '0' && c <= '9') return number();
    if (c == '"' || c == '\'') return string();
    if (const size_t length = name_length(); length > 0) {
      tokens_.push_back({Kind::name, line_, std::string(rest().substr(0, length))});
      return advance(length);
    }
    for (const std::string_view symbol : kSymbols) {
      if (!next_is(symbol) || symbol == "!") continue;
      balance(symbol, open);
      tokens_.push_back({Kind::symbol, line_, std::string(symbol)});
      return advance(symbol.size());
    }
    throw SyntaxFailure(fmt::format("unexpected char {}", repr(character_at(rest(), 0))), line_);
  }

  void balance(std::string_view symbol, std::string& open) {
    constexpr std::string_view kOpening = "([{", kClosing = ")]}";
    if (const size_t i = kOpening.find(symbol); i != kOpening.npos) open += kClosing[i];
    if (kClosing.find(symbol) == kClosing.npos) return;
    if (open.empty()) throw SyntaxFailure(fmt::format("unexpected '{}'", symbol), line_);
    const char expected = open.back();
    open.pop_back();
    if (symbol[0] != expected) {
      throw SyntaxFailure(fmt::format("unexpected '{}', expected '{}'", symbol, expected), line_);
    }
  }

  size_t name_length() const {
    size_t length = 0;
    while (at_ + length < text_.size()) {
      const std::string_view character = character_at(rest().substr(length), 0);
      if (!every_character(character, is_word)) break;
      length += character.size();
    }
    return length;
  }

  static bool is_decimal(char c) { return c >= '0' && c <= '9'; }

  // Digits with single underscores between them.
  size_t digits(size_t from, bool (*wanted)(char)) const {
    size_t end = from;
    while (end < text_.size() &&
           (wanted(text_[end]) || (text_[end] == '_' && end > from && text_[end - 1] != '_' &&
                                   end + 1 < text_.size() && wanted(text_[end + 1])))) {
      ++end;
    }
    return end;
  }

  void number() {
    const auto prefixed = [&](char letter) {
      return text_[at_] == '0' && at_ + 1 < text_.size() && (text_[at_ + 1] | 32) == letter;
    };
    int base = 10;
    size_t end = 0;
    bool fraction = false;
    if (prefixed('x')) {
      base = 16;
      end = digits(at_ + 2,
                   [](char c) { return is_decimal(c) || ((c | 32) >= 'a' && (c | 32) <= 'f'); });
    } else if (prefixed('o')) {
      base = 8;
      end = digits(at_ + 2, [](char c) { return c >= '0' && c <= '7'; });
    } else if (prefixed('b')) {
      base = 2;
      end = digits(at_ + 2, [](char c) { return c == '0' || c == '1'; });
    } else {
      end = digits(at_, is_decimal);
      // "a.0.1" names places of a list, so digits after a point end there.
      const bool behind_point = !tokens_.empty() && tokens_.back().kind == Kind::symbol &&
                                tokens_.back().text == "." && at_ > 0 && text_[at_ - 1] == '.';
      if (!behind_point && end + 1 < text_.size() && text_[end] == '.' &&
          is_decimal(text_[end + 1])) {
        fraction = true;
        end = digits(end + 1, is_decimal);
      }
      if (!behind_point && end < text_.size() && (text_[end] | 32) == 'e') {
        const size_t sign =
            end + 1 < text_.size() && (text_[end + 1] == '+' || text_[end + 1] == '-') ? 1 : 0;
        const size_t stop = digits(end + 1 + sign, is_decimal);
        if (stop > end + 1 + sign) {
          fraction = true;
          end = stop;
        }
      }
    }
    std::string plain;
    for (size_t i = at_ + (base == 10 ? 0 : 2); i < end; ++i) {
      if (text_[i] != '_') plain += text_[i];
    }
    Token token{Kind::constant, line_};
    const char* const last = plain.data() + plain.size();
    if (fraction) {
      double value = 0;
      std::from_chars(plain.data(), last, value);
      token.value = value;
    } else {
      int64_t value = 0;
      const auto [stop, code] = std::from_chars(plain.data(), last, value, base);
      if (code != std::errc() || stop != last) throw SyntaxFailure("not a 64-bit number", line_);
      token.value = value;
    }
    tokens_.push_back(std::move(token));
    advance(end - at_);
  }

  void string() {
    const char quote = text_[at_];
    size_t end = at_ + 1;
    while (end < text_.size() && text_[end] != quote) end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size()) throw SyntaxFailure("a string is never closed", line_);
    Token token{Kind::constant, line_};
    token.value = Value(unescape(std::string_view(text_).substr(at_ + 1, end - at_ - 1)));
    tokens_.push_back(std::move(token));
    advance(end + 1 - at_);
  }

  std::string unescape(std::string_view text) const {
    std::string out;
    const auto code = [&](size_t at, size_t count, int base) {
      uint32_t value = 0;
      const std::string_view digits = text.substr(std::min(at, text.size()), count);
      const auto [stop, error] =
          std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
      const bool surrogate = value >= 0xD800 && value < 0xE000;
      if (error != std::errc() || stop != digits.data() + digits.size() || digits.size() != count ||
          value > 0x10FFFF || surrogate) {
        throw SyntaxFailure("a string holds an escape that is no character", line_);
      }
      append_utf8(value, out);
    };
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\' || i + 1 == text.size()) {
        out += text[i];
        continue;
      }
      constexpr std::string_view kFrom = "abfnrtv\\'\"", kTo = "\a\b\f\n\r\t\v\\'\"";
      const char next = text[++i];
      if (const size_t simple = kFrom.find(next); simple != kFrom.npos) {
        out += kTo[simple];
      } else if (next == '\n') {
        continue;
      } else if (next == 'x') {
        code(i + 1, 2, 16);
        i += 2;
      } else if (next == 'u') {
        code(i + 1, 4, 16);
        i += 4;
      } else if (next == 'U') {
        code(i + 1, 8, 16);
        i += 8;
      } else if (next >= '0' && next <= '7') {
        size_t count = 1;
        while (count < 3 && i + count < text.size() && text[i + count] >= '0' &&
               text[i + count] <= '7') {
          ++count;
        }
        code(i, count, 8);
        i += count - 1;
      } else {
        (out += '\\') += next;
      }
    }
    return out;
  }

  std::string text_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  const size_t invalid = find_invalid_utf8(source);
  if (invalid != source.npos) {
    throw SyntaxFailure(fmt::format("not UTF-8 at byte {}", invalid), 1);
  }
  return Lexer(source).run();
}

}  // namespace pronghorn::jinja
