#include "formats/pre_tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "base/quote.h"
#include "formats/byte_alphabet.h"
#include "formats/normalizer.h"
#include "formats/unicode.h"
#include "formats/utf8.h"

namespace pronghorn {
namespace {

using nlohmann::json;

// The pre-tokenizer of GPT-2 (Radford et al. 2019, encoder.py).
constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

constexpr size_t kMostSteps = 64;

size_t length_at(std::string_view text, size_t at) {
  return std::max<size_t>(utf8_character(text.substr(at, 4)), 1);
}

uint32_t code_at(std::string_view text, size_t at) {
  return decode_utf8(text.substr(at, length_at(text, at)));
}

}  // namespace

PreTokenizer::PreTokenizer(const json& description, const std::string& where,
                           std::optional<bool> prefix_space) {
  for (const Component& part : steps_of(description, "pretokenizers", where + ": pre_tokenizer")) {
    add(part, prefix_space);
    require(steps_.size() <= kMostSteps, part.where(), "more than {} steps", kMostSteps);
  }
  for (size_t i = 0; i < steps_.size(); ++i) {
    const bool looks_back = steps_[i].kind == Kind::metaspace || steps_[i].kind == Kind::prefix;
    if (looks_back) first_pure_ = i + 1;
  }
}

PreTokenizer::Behavior PreTokenizer::behavior_of(const Component& part, const char* fallback) {
  const std::string name = part.text("behavior", fallback);
  if (name == "Isolated") return Behavior::isolated;
  if (name == "Removed") return Behavior::removed;
  if (name == "Contiguous") return Behavior::contiguous;
  if (name == "MergedWithPrevious") return Behavior::with_previous;
  if (name == "MergedWithNext") return Behavior::with_next;
  part.refuse(fmt::format("behavior {} is not known", quote(name)));
}

void PreTokenizer::add_pattern(const std::string& pattern, const std::string& where) {
  Step step;
  step.regex = std::make_shared<Regex>(pattern, false, where);
  steps_.push_back(std::move(step));
}

void PreTokenizer::add_characters(bool (*matches)(uint32_t), Behavior behavior) {
  steps_.push_back({.kind = Kind::characters, .matches = matches, .behavior = behavior});
}

void PreTokenizer::add(const Component& part, std::optional<bool> prefix_space) {
  const std::string& type = part.type();
  if (type == "ByteLevel") {
    if (prefix_space.value_or(part.flag("add_prefix_space", true))) {
      steps_.push_back({.kind = Kind::prefix});
    }
    if (part.flag("use_regex", true)) add_pattern(kGpt2Pattern, part.where());
    steps_.push_back({.kind = Kind::bytes});
  } else if (type == "Split") {
    Step step;
    step.regex = std::make_shared<Regex>(part.pattern());
    step.behavior = behavior_of(part, "Isolated");
    step.invert = part.flag("invert", false);
    steps_.push_back(std::move(step));
  } else if (type == "Digits") {
    add_characters(is_numeric, part.flag("individual_digits", false) ? Behavior::isolated
                                                                     : Behavior::contiguous);
  } else if (type == "Punctuation") {
    add_characters(is_punctuation, behavior_of(part, "Isolated"));
  } else if (type == "WhitespaceSplit") {
    add_characters(is_unicode_space, Behavior::removed);
  } else if (type == "BertPreTokenizer") {
    add_characters(is_unicode_space, Behavior::removed);
    add_characters(is_punctuation, Behavior::isolated);
  } else if (type == "Whitespace") {
    steps_.push_back({.kind = Kind::words});
  } else if (type == "UnicodeScripts") {
    steps_.push_back({.kind = Kind::scripts});
  } else if (type == "FixedLength") {
    const uint64_t length = part.count("length", 5);
    if (length == 0) part.refuse("'length' must be at least 1");
    steps_.push_back({.kind = Kind::fixed, .length = length});
  } else if (type == "CharDelimiterSplit") {
    Step step;
    step.regex = std::make_shared<Regex>(part.character("delimiter"), true, part.where());
    step.behavior = Behavior::removed;
    steps_.push_back(std::move(step));
  } else if (type == "Metaspace") {
    Step step;
    step.kind = Kind::metaspace;
    step.replacement = part.character("replacement", "\xE2\x96\x81");
    // Files from before prepend_scheme say add_prefix_space instead.
    const std::string scheme =
        part.text("prepend_scheme", part.flag("add_prefix_space", true) ? "always" : "never");
    step.prepend = scheme == "always"  ? Prepend::always
                   : scheme == "first" ? Prepend::first
                                       : Prepend::never;
    if (step.prepend == Prepend::never && scheme != "never") {
      part.refuse(fmt::format("prepend_scheme {} is not known", quote(scheme)));
    }
    step.behavior = Behavior::with_next;
    if (part.flag("split", true)) {
      step.regex = std::make_shared<Regex>(step.replacement, true, part.where());
    }
    steps_.push_back(std::move(step));
  } else {
    part.refuse_type();
  }
}

std::vector<PreTokenizer::Range> PreTokenizer::ranges_of(const Step& step, std::string_view text) {
  std::vector<Range> ranges;
  size_t at = 0;
  const auto take = [&](size_t begin, size_t end) {
    if (begin > at) ranges.push_back({at, begin, step.invert});
    ranges.push_back({begin, end, !step.invert});
    at = end;
  };
  if (step.kind == Kind::characters) {
    for (size_t i = 0; i < text.size();) {
      const size_t length = length_at(text, i);
      if (step.matches(decode_utf8(text.substr(i, length)))) take(i, i + length);
      i += length;
    }
  } else {
    for (const auto& [begin, end] : step.regex->find_all(text)) take(begin, end);
  }
  if (at < text.size()) ranges.push_back({at, text.size(), step.invert});
  return ranges;
}

void PreTokenizer::cut(const Step& step, std::string_view text, Pieces& pieces) {
  if (step.behavior == Behavior::isolated && step.kind == Kind::pattern) {  // the most usual
    size_t at = 0;
    for (const auto& [begin, end] : step.regex->find_all(text)) {
      if (begin > at) pieces.push_back(text.substr(at, begin - at));
      if (end > begin) pieces.push_back(text.substr(begin, end - begin));
      at = end;
    }
    if (at < text.size()) pieces.push_back(text.substr(at));
    return;
  }
  const std::vector<Range> ranges = ranges_of(step, text);
  // Ranges that join the one before, by the behaviour; empty ones (of empty matches) then go.
  Range piece{};
  const auto flush = [&] {
    if (piece.end > piece.begin)
      pieces.push_back(text.substr(piece.begin, piece.end - piece.begin));
  };
  for (size_t i = 0; i < ranges.size(); ++i) {
    const Range& range = ranges[i];
    const bool after = i > 0;
    bool joins = false;
    switch (step.behavior) {
      case Behavior::isolated:
      case Behavior::removed:
        break;
      case Behavior::contiguous:
        joins = after && ranges[i - 1].match == range.match;
        break;
      case Behavior::with_previous:
        joins = after && range.match && !ranges[i - 1].match;
        break;
      case Behavior::with_next:
        joins = after && !range.match && ranges[i - 1].match;
        break;
    }
    if (joins) {
      piece.end = range.end;
      continue;
    }
    flush();
    piece = range;
    if (step.behavior == Behavior::removed && range.match) piece.end = piece.begin;
  }
  flush();
}

void PreTokenizer::apply(size_t index, std::string_view piece, After after,
                         std::deque<std::string>& store, Pieces& pieces) const {
  const Step& step = steps_[index];
  switch (step.kind) {
    case Kind::pattern:
    case Kind::characters:
      cut(step, piece, pieces);
      return;
    case Kind::bytes: {
      std::string& written = store.emplace_back();
      append_byte_alphabet(piece, written);
      pieces.push_back(written);
      return;
    }
    case Kind::prefix:
      if (after != After::text && !piece.starts_with(' ')) {
        piece = store.emplace_back(" ").append(piece);
      }
      pieces.push_back(piece);
      return;
    case Kind::metaspace: {
      std::string& replaced = store.emplace_back(replace_all(piece, " ", step.replacement));
      const bool wanted =
          after != After::text && (step.prepend == Prepend::always ||
                                   (step.prepend == Prepend::first && after == After::nothing));
      if (wanted && !replaced.starts_with(step.replacement)) replaced.insert(0, step.replacement);
      if (step.regex != nullptr) {
        cut(step, replaced, pieces);
      } else {
        pieces.push_back(replaced);
      }
      return;
    }
    case Kind::fixed:
    case Kind::words:
    case Kind::scripts:
      break;
  }
  // Runs: a piece ends where the next character does not continue it.
  const auto kind_of = [&](uint32_t code) {
    return is_word_character(code) ? 1 : is_unicode_space(code) ? 0 : 2;
  };
  size_t begin = 0, count = 0;
  int kind = 0;
  uint32_t script = kAnyScript;
  const auto flush = [&](size_t end) {
    const bool dropped = step.kind == Kind::words && kind == 0;
    if (end > begin && !dropped) pieces.push_back(piece.substr(begin, end - begin));
    begin = end;
    count = 0;
  };
  for (size_t at = 0; at < piece.size(); at += length_at(piece, at), ++count) {
    const uint32_t code = code_at(piece, at);
    switch (step.kind) {
      case Kind::fixed:
        if (count == step.length) flush(at);
        break;
      case Kind::words:
        if (const int next = kind_of(code); next != kind) {
          flush(at);
          kind = next;
        }
        break;
      default:
        if (const uint32_t next = script_of(code); next != kAnyScript) {
          // What stands before the first letter is lost, as in the reference.
          if (script == kAnyScript) begin = at;
          if (next != script) flush(at);
          script = next;
        }
        break;
    }
  }
  if (step.kind != Kind::scripts || script != kAnyScript) flush(piece.size());
}

}  // namespace pronghorn
