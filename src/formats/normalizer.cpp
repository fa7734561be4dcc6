#include "formats/normalizer.h"

#include <algorithm>
#include <optional>
#include <unordered_map>

#include "base/base64.h"
#include "base/error.h"
#include "formats/byte_alphabet.h"
#include "formats/component.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

using nlohmann::json;

// Calls take(code, character) for each character of a text that is UTF-8.
template <typename Take>
void for_each_character(std::string_view text, const Take& take) {
  while (!text.empty()) {
    const size_t length = std::max<size_t>(utf8_character(text.substr(0, 4)), 1);
    take(decode_utf8(text.substr(0, length)), text.substr(0, length));
    text.remove_prefix(length);
  }
}

// Characters that are dropped, and those that become a space (Nmt).
bool is_nmt_removed(uint32_t code) {
  return (code >= 0x01 && code <= 0x08) || code == 0x0B || (code >= 0x0E && code <= 0x1F) ||
         code == 0x7F || code == 0x8F || code == 0x9F;
}
bool is_nmt_space(uint32_t code) {
  return code == 0x09 || code == 0x0A || code == 0x0C || code == 0x0D || code == 0x1680 ||
         (code >= 0x200B && code <= 0x200F) || code == 0x2028 || code == 0x2029 || code == 0x2581 ||
         code == 0xFEFF || code == 0xFFFD;
}

std::string without(std::string_view text, bool (*removed)(uint32_t)) {
  std::string out;
  out.reserve(text.size());
  for_each_character(text, [&](uint32_t code, std::string_view character) {
    if (!removed(code)) out += character;
  });
  return out;
}

std::string strip(std::string text, bool left, bool right) {
  if (right) {
    size_t end = text.size();
    while (end > 0) {
      size_t begin = end - 1;
      while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
      if (!is_unicode_space(decode_utf8(std::string_view(text).substr(begin, end - begin)))) break;
      end = begin;
    }
    text.resize(end);
  }
  if (left) {
    size_t begin = 0;
    while (begin < text.size()) {
      const std::string_view rest = std::string_view(text).substr(begin, 4);
      const size_t length = std::max<size_t>(utf8_character(rest), 1);
      if (!is_unicode_space(decode_utf8(rest.substr(0, length)))) break;
      begin += length;
    }
    text.erase(0, begin);
  }
  return text;
}

}  // namespace

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(text.size());
  while (!from.empty()) {
    const size_t at = text.find(from);
    if (at == text.npos) break;
    out.append(text.substr(0, at)).append(to);
    text.remove_prefix(at + from.size());
  }
  return out.append(text);
}

Normalizer::Normalizer(const json& description, const std::string& where) {
  static const std::unordered_map<std::string, Step> kPlain = {
      {"NFC", {.kind = Kind::form, .form = NormalForm::nfc}},
      {"NFD", {.kind = Kind::form, .form = NormalForm::nfd}},
      {"NFKC", {.kind = Kind::form, .form = NormalForm::nfkc}},
      {"NFKD", {.kind = Kind::form, .form = NormalForm::nfkd}},
      {"Lowercase", {.kind = Kind::lowercase}},
      {"Nmt", {.kind = Kind::nmt}},
      {"StripAccents", {.kind = Kind::strip_accents}},
      {"ByteLevel", {.kind = Kind::byte_level}}};
  for (const Component& part : steps_of(description, "normalizers", where + ": normalizer")) {
    const std::string& type = part.type();
    if (const auto plain = kPlain.find(type); plain != kPlain.end()) {
      steps_.push_back(plain->second);
      continue;
    }
    Step step{};
    if (type == "Prepend") {
      step.kind = Kind::prepend;
      step.text = part.text("prepend");
    } else if (type == "Replace") {
      step.kind = Kind::replace;
      step.pattern = std::make_shared<Regex>(part.pattern());
      step.text = part.text("content");
    } else if (type == "Strip") {
      step.kind = Kind::strip;
      step.left = part.flag("strip_left", true);
      step.right = part.flag("strip_right", true);
    } else if (type == "Precompiled") {
      step.kind = Kind::precompiled;
      const std::optional<std::string> bytes = from_base64(part.text("precompiled_charsmap"));
      require(bytes.has_value(), part.where(), "'precompiled_charsmap' is not base64");
      step.rules = std::make_shared<Charsmap>(*bytes, part.where());
    } else if (type == "BertNormalizer") {
      step.kind = Kind::bert;
      step.clean = part.flag("clean_text", true);
      step.cjk = part.flag("handle_chinese_chars", true);
      step.lower = part.flag("lowercase", true);
      step.accents = part.flag("strip_accents", step.lower);
    } else {
      part.refuse_type();
    }
    steps_.push_back(std::move(step));
  }
}

std::string Normalizer::apply(const Step& step, std::string text, bool begins) {
  switch (step.kind) {
    case Kind::form:
      return normalize(text, step.form);
    case Kind::lowercase:
      return lower_case(text);
    case Kind::strip_accents:
      return without(text, is_combining_mark);
    case Kind::strip:
      return strip(std::move(text), step.left, step.right);
    case Kind::precompiled:
      return step.rules->apply(text);
    case Kind::byte_level: {
      std::string written;
      append_byte_alphabet(text, written);
      return written;
    }
    case Kind::prepend:
      return begins && !text.empty() ? step.text + text : text;
    case Kind::nmt: {
      std::string out;
      for_each_character(text, [&](uint32_t code, std::string_view character) {
        if (!is_nmt_removed(code)) out += is_nmt_space(code) ? " " : character;
      });
      return out;
    }
    case Kind::replace: {
      if (text.empty()) return text;
      std::string out;
      size_t at = 0;
      for (const auto& [begin, end] : step.pattern->find_all(text)) {
        out.append(text, at, begin - at).append(step.text);
        at = end;
      }
      return out.append(text, at);
    }
    case Kind::bert:
      break;
  }
  if (step.clean) {
    std::string out;
    for_each_character(text, [&](uint32_t code, std::string_view character) {
      if (code == 0 || is_removed_by_bert(code)) return;
      out += is_unicode_space(code) ? " " : character;
    });
    text = std::move(out);
  }
  if (step.cjk) {
    std::string out;
    for_each_character(text, [&](uint32_t code, std::string_view character) {
      const bool apart = is_cjk(code);
      if (apart) out += ' ';
      out += character;
      if (apart) out += ' ';
    });
    text = std::move(out);
  }
  if (step.accents) text = without(normalize(text, NormalForm::nfd), is_nonspacing_mark);
  return step.lower ? lower_case(text) : text;
}

std::string Normalizer::apply(std::string_view text, bool begins) const {
  std::string result(text);
  for (const Step& step : steps_) result = apply(step, std::move(result), begins);
  return result;
}

}  // namespace pronghorn
