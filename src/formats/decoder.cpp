#include "formats/decoder.h"

#include <algorithm>
#include <array>
#include <utility>

#include "formats/byte_alphabet.h"
#include "formats/component.h"
#include "formats/normalizer.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

using nlohmann::json;

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// English as it is written: no space before punctuation and shortened words.
std::string clean_up(std::string text) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kRules = {{
      {" .", "."},
      {" ?", "?"},
      {" !", "!"},
      {" ,", ","},
      {" ' ", "'"},
      {" n't", "n't"},
      {" 'm", "'m"},
      {" do not", " don't"},
      {" 's", "'s"},
      {" 've", "'ve"},
      {" 're", "'re"},
  }};
  for (const auto& [from, to] : kRules) text = replace_all(text, from, to);
  return text;
}

std::string join(const std::vector<std::string>& tokens, std::string_view between) {
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) text += between;
    text += tokens[i];
  }
  return text;
}

std::string replace(const Regex& pattern, const std::string& token, const std::string& to) {
  // A byte that is part of a character is left to what joins it with the others.
  if (token.empty() || find_invalid_utf8(token) != token.npos) return token;
  std::string out;
  size_t at = 0;
  for (const auto& [begin, end] : pattern.find_all(token)) {
    out.append(token, at, begin - at).append(to);
    at = end;
  }
  return out.append(token, at);
}

// At most `start` times the character at the front, and `stop` times at the end.
std::string strip(const std::string& token, const std::string& character, uint64_t start,
                  uint64_t stop) {
  std::string_view rest = token;
  for (; start > 0 && rest.starts_with(character); --start) rest.remove_prefix(character.size());
  for (; stop > 0 && rest.ends_with(character); --stop) rest.remove_suffix(character.size());
  return std::string(rest);
}

}  // namespace

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t valid = std::min(find_invalid_utf8(text), text.size());
    out += text.substr(0, valid);
    text.remove_prefix(valid);
    if (text.empty()) break;
    size_t length = 1;
    while (length < std::min<size_t>(text.size(), 3) &&
           utf8_incomplete(text.substr(0, length + 1))) {
      ++length;
    }
    out += kReplacement;
    text.remove_prefix(length);
  }
  return out;
}

TokenDecoder::TokenDecoder(const json& description, const std::string& where)
    : absent_(description.is_null()) {
  for (const Component& part : steps_of(description, "decoders", where + ": decoder")) {
    const std::string& type = part.type();
    Step step;
    if (type == "ByteLevel") {
      step.kind = Kind::byte_level;
    } else if (type == "ByteFallback") {
      step.kind = Kind::byte_fallback;
    } else if (type == "Fuse") {
      step.kind = Kind::fuse;
    } else if (type == "BPEDecoder") {
      step.kind = Kind::bpe;
      step.text = part.text("suffix", "</w>");
    } else if (type == "WordPiece") {
      step.kind = Kind::word_piece;
      step.text = part.text("prefix", "##");
      step.flag = part.flag("cleanup", true);
    } else if (type == "CTC") {
      step.kind = Kind::ctc;
      step.text = part.text("pad_token", "<pad>");
      step.delimiter = part.text("word_delimiter_token", "|");
      step.flag = part.flag("cleanup", true);
    } else if (type == "Metaspace") {
      step.kind = Kind::metaspace;
      step.text = part.character("replacement", "\xE2\x96\x81");
      step.flag = part.text("prepend_scheme",
                            part.flag("add_prefix_space", true) ? "always" : "never") != "never";
    } else if (type == "Replace") {
      step.kind = Kind::replace;
      step.pattern = std::make_shared<Regex>(part.pattern());
      step.text = part.text("content");
    } else if (type == "Strip") {
      step.kind = Kind::strip;
      step.text = part.character("content", " ");
      step.start = part.count("start", 0);
      step.stop = part.count("stop", 0);
    } else {
      part.refuse_type();
    }
    steps_.push_back(std::move(step));
  }
}

void TokenDecoder::apply(const Step& step, std::vector<std::string>& tokens) {
  switch (step.kind) {
    case Kind::byte_level: {
      std::string bytes;
      for (const std::string& token : tokens) bytes += from_byte_alphabet(token).value_or(token);
      tokens = {replace_invalid_utf8(bytes)};
      return;
    }
    case Kind::fuse:
      tokens = {join(tokens, "")};
      return;
    case Kind::byte_fallback: {
      // A run of bytes is text if it is UTF-8, otherwise as many replacement characters.
      std::vector<std::string> out;
      std::string run;
      const auto flush = [&] {
        if (run.empty()) return;
        if (find_invalid_utf8(run) == run.npos) {
          out.push_back(run);
        } else {
          for (size_t i = 0; i < run.size(); ++i) out.emplace_back(kReplacement);
        }
        run.clear();
      };
      for (std::string& token : tokens) {
        if (const auto byte = parse_byte_token(token)) {
          run += static_cast<char>(*byte);
          continue;
        }
        flush();
        out.push_back(std::move(token));
      }
      flush();
      tokens = std::move(out);
      return;
    }
    case Kind::ctc: {
      tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
      for (std::string& token : tokens) {
        token = replace_all(token, step.text, "");
        if (step.flag) token = replace_all(clean_up(std::move(token)), step.delimiter, " ");
      }
      std::erase_if(tokens, [](const std::string& token) { return token.empty(); });
      return;
    }
    case Kind::bpe:
    case Kind::metaspace:
    case Kind::replace:
    case Kind::strip:
    case Kind::word_piece:
      break;
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::string& token = tokens[i];
    switch (step.kind) {
      case Kind::bpe:
        token = replace_all(token, step.text, i + 1 == tokens.size() ? "" : " ");
        break;
      case Kind::metaspace:
        token = replace_all(token, step.text, i == 0 && step.flag ? "" : " ");
        break;
      case Kind::replace:
        token = replace(*step.pattern, token, step.text);
        break;
      case Kind::strip:
        token = strip(token, step.text, step.start, step.stop);
        break;
      default:  // word_piece
        if (i > 0) {
          token = token.starts_with(step.text) ? token.substr(step.text.size()) : " " + token;
        }
        if (step.flag) token = clean_up(std::move(token));
        break;
    }
  }
}

std::string TokenDecoder::decode(std::vector<std::string> tokens) const {
  if (absent_) return join(tokens, " ");
  for (const Step& step : steps_) apply(step, tokens);
  return join(tokens, "");
}

std::string TokenDecoder::piece(std::string token, bool first, const std::string* previous) const {
  if (absent_) return first ? token : " " + token;
  bool whole = false;  // what follows a step that joins all tokens sees the whole text
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::byte_level:
        token = from_byte_alphabet(token).value_or(token);
        whole = true;
        break;
      case Kind::fuse:
        whole = true;
        break;
      case Kind::byte_fallback:
        if (const auto byte = parse_byte_token(token))
          token = std::string(1, static_cast<char>(*byte));
        break;
      case Kind::ctc:
        if (previous != nullptr && *previous == token) return {};
        token = replace_all(token, step.text, "");
        if (step.flag) token = replace_all(clean_up(std::move(token)), step.delimiter, " ");
        break;
      case Kind::bpe: {
        // The space after a word is written before the next one: the last word has none.
        const bool spaced =
            !first && previous != nullptr && !step.text.empty() && previous->ends_with(step.text);
        token = (spaced ? " " : "") + replace_all(token, step.text, "");
        break;
      }
      case Kind::metaspace:
        token = replace_all(token, step.text, (first || whole) && step.flag ? "" : " ");
        break;
      case Kind::replace:
        token = replace(*step.pattern, token, step.text);
        break;
      case Kind::strip:
        if (!whole) {
          token = strip(token, step.text, step.start, step.stop);
        } else if (first) {
          token = strip(token, step.text, step.start, 0);
        }
        break;
      case Kind::word_piece:
        if (!first && !whole) {
          token = token.starts_with(step.text) ? token.substr(step.text.size()) : " " + token;
        }
        if (step.flag) token = clean_up(std::move(token));
        break;
    }
  }
  return token;
}

}  // namespace pronghorn
