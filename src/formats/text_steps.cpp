#include "formats/text_steps.h"

#include <algorithm>

#include "base/error.h"
#include "formats/bpe.h"

namespace pronghorn {
namespace {

using nlohmann::json;

// The pre-tokenizer of GPT-2 (Radford et al. 2019, encoder.py).
constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kPunctuation = R"([!-/:-@\[-`{-~]|\p{P})";

std::string text_of(const json& object, const char* key, const std::string& where) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  require(object.is_object() && found != object.end() && found->is_string(), where,
          "'{}' must be a string", key);
  return found->get<std::string>();
}

bool flag(const json& object, const char* key, bool fallback) {
  const auto found = object.find(key);
  return found != object.end() && found->is_boolean() ? found->get<bool>() : fallback;
}

const json& member(const json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  require(found != object.end(), where, "'{}' is missing", key);
  return *found;
}

const json& list(const json& object, const char* key, const std::string& where) {
  const json& found = member(object, key, where);
  require(found.is_array(), where, "'{}' must be an array", key);
  return found;
}

// {"Regex": "..."} or {"String": "..."}.
Regex pattern_of(const json& object, const std::string& where) {
  const json& pattern = member(object, "pattern", where);
  require(pattern.is_object(), where, "'pattern' must be an object");
  if (pattern.contains("String")) return Regex(text_of(pattern, "String", where), true, where);
  return Regex(text_of(pattern, "Regex", where), false, where);
}

}  // namespace

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  while (!from.empty()) {
    const size_t at = text.find(from);
    if (at == text.npos) break;
    out.append(text.substr(0, at)).append(to);
    text.remove_prefix(at + from.size());
  }
  return out.append(text);
}

Normalizer::Normalizer(const json& description, const std::string& where) {
  if (!description.is_null()) add(description, where + ": normalizer");
}

void Normalizer::add(const json& description, const std::string& where) {
  const std::string type = text_of(description, "type", where);
  Step step;
  if (type == "Sequence") {
    for (const json& part : list(description, "normalizers", where)) add(part, where);
    return;
  }
  if (type == "NFC") return;
  if (type == "Prepend") {
    step.kind = Step::Kind::kPrepend;
    step.to = text_of(description, "prepend", where);
  } else if (type == "Replace") {
    const json& pattern = member(description, "pattern", where);
    step.to = text_of(description, "content", where);
    if (pattern.is_object() && pattern.contains("String")) {
      step.kind = Step::Kind::kReplace;
      step.from = text_of(pattern, "String", where);
    } else {
      step.kind = Step::Kind::kReplaceRegex;
      step.regex.push_back(pattern_of(description, where));
    }
  } else if (type == "Strip") {
    step.kind = Step::Kind::kStrip;
    step.left = flag(description, "strip_left", true);
    step.right = flag(description, "strip_right", true);
  } else {
    throw Error(where, fmt::format("type '{}' is not supported", type));
  }
  steps_.push_back(std::move(step));
}

std::string Normalizer::apply(std::string_view text, bool begins) const {
  std::string result(text);
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Step::Kind::kPrepend:
        if (begins && !result.empty()) result.insert(0, step.to);
        break;
      case Step::Kind::kReplace:
        result = replace_all(result, step.from, step.to);
        break;
      case Step::Kind::kReplaceRegex: {
        std::string replaced;
        size_t at = 0;
        for (const auto& [begin, end] : step.regex[0].find_all(result)) {
          replaced.append(result, at, begin - at).append(step.to);
          at = end;
        }
        result = replaced.append(result, at);
        break;
      }
      case Step::Kind::kStrip: {
        constexpr std::string_view kSpaces = " \t\n\v\f\r";
        if (step.right) result.erase(result.find_last_not_of(kSpaces) + 1);
        if (step.left) result.erase(0, std::min(result.find_first_not_of(kSpaces), result.size()));
        break;
      }
    }
  }
  return result;
}

PreTokenizer::PreTokenizer(const json& description, const std::string& where) {
  if (!description.is_null()) add(description, where + ": pre_tokenizer");
}

void PreTokenizer::add(const json& description, const std::string& where) {
  const std::string type = text_of(description, "type", where);
  if (type == "Sequence") {
    for (const json& part : list(description, "pretokenizers", where)) add(part, where);
    return;
  }
  const auto behavior_of = [&](const std::string& name) {
    if (name == "Isolated") return Behavior::kIsolated;
    if (name == "Removed") return Behavior::kRemoved;
    if (name == "Contiguous") return Behavior::kContiguous;
    if (name == "MergedWithPrevious") return Behavior::kWithPrevious;
    if (name == "MergedWithNext") return Behavior::kWithNext;
    throw Error(where, fmt::format("behavior '{}' is not known", name));
  };
  Step step;
  step.in_alphabet = byte_level_;
  if (type == "ByteLevel") {
    require(!byte_level_, where, "ByteLevel occurs twice");
    step.kind = Step::Kind::kByteLevel;
    step.add_space = flag(description, "add_prefix_space", true);
    if (flag(description, "use_regex", true)) step.regex.emplace_back(kGpt2Pattern, false, where);
    byte_level_ = true;
  } else if (type == "Split") {
    step.regex.push_back(pattern_of(description, where));
    step.behavior = behavior_of(text_of(description, "behavior", where));
    step.invert = flag(description, "invert", false);
  } else if (type == "Digits") {
    step.regex.emplace_back(
        flag(description, "individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)", false, where);
  } else if (type == "Punctuation") {
    step.regex.emplace_back(kPunctuation, false, where);
    step.behavior = behavior_of(
        description.contains("behavior") ? text_of(description, "behavior", where) : "Isolated");
  } else if (type == "Metaspace") {
    require(!byte_level_, where, "Metaspace after ByteLevel");
    step.kind = Step::Kind::kMetaspace;
    step.replacement = text_of(description, "replacement", where);
    const std::string scheme = description.contains("prepend_scheme")
                                   ? text_of(description, "prepend_scheme", where)
                               : flag(description, "add_prefix_space", true) ? "always"
                                                                             : "never";
    require(scheme == "always" || scheme == "first" || scheme == "never", where,
            "prepend_scheme '{}' is not known", scheme);
    step.prepend = scheme == "always"  ? Step::Prepend::kAlways
                   : scheme == "first" ? Step::Prepend::kFirst
                                       : Step::Prepend::kNever;
    step.behavior = Behavior::kWithNext;
    if (flag(description, "split", true)) step.regex.emplace_back(step.replacement, true, where);
  } else {
    throw Error(where, fmt::format("type '{}' is not supported", type));
  }
  steps_.push_back(std::move(step));
}

void PreTokenizer::cut(const Step& step, std::string_view text,
                       std::vector<std::string_view>& pieces) {
  struct Range {
    size_t begin, end;
    bool match;
  };
  std::vector<Range> ranges;
  size_t at = 0;
  for (const auto& [begin, end] : step.regex[0].find_all(text)) {
    if (begin > at) ranges.push_back({at, begin, step.invert});
    ranges.push_back({begin, end, !step.invert});
    at = end;
  }
  if (at < text.size()) ranges.push_back({at, text.size(), step.invert});

  // Ranges that join the one before, by the behaviour.
  std::vector<Range> joined;
  for (size_t i = 0; i < ranges.size(); ++i) {
    const Range& range = ranges[i];
    const bool after = i > 0;
    bool joins = false;
    switch (step.behavior) {
      case Behavior::kIsolated:
        break;
      case Behavior::kRemoved:
        if (range.match) continue;
        break;
      case Behavior::kContiguous:
        joins = after && ranges[i - 1].match == range.match;
        break;
      case Behavior::kWithPrevious:
        joins = after && range.match && !ranges[i - 1].match;
        break;
      case Behavior::kWithNext:
        joins = after && !range.match && ranges[i - 1].match;
        break;
    }
    if (joins) {
      joined.back().end = range.end;
    } else {
      joined.push_back(range);
    }
  }
  for (const Range& range : joined)
    pieces.push_back(text.substr(range.begin, range.end - range.begin));
}

void PreTokenizer::apply(const Step& step, std::string_view piece, After after,
                         std::deque<std::string>& store, std::vector<std::string_view>& pieces) {
  if (step.in_alphabet) {
    std::string written;
    append_byte_alphabet(piece, written);
    std::vector<std::string_view> parts;
    cut(step, written, parts);
    // A cut falls between characters of the alphabet, so between bytes of the piece.
    for (const std::string_view part : parts) {
      store.push_back(from_byte_alphabet(part).value());
      pieces.push_back(store.back());
    }
    return;
  }
  if (step.kind == Step::Kind::kByteLevel && step.add_space && after != After::text &&
      !piece.starts_with(' ')) {
    piece = store.emplace_back(" ").append(piece);
  }
  if (step.kind == Step::Kind::kMetaspace) {
    std::string& replaced = store.emplace_back(replace_all(piece, " ", step.replacement));
    const bool wanted = after != After::text &&
                        (step.prepend == Step::Prepend::kAlways ||
                         (step.prepend == Step::Prepend::kFirst && after == After::nothing));
    if (wanted && !replaced.starts_with(step.replacement)) replaced.insert(0, step.replacement);
    piece = replaced;
  }
  if (step.regex.empty()) {
    pieces.push_back(piece);
  } else {
    cut(step, piece, pieces);
  }
}

std::vector<std::string_view> PreTokenizer::split(std::string_view text, After after,
                                                  std::deque<std::string>& store) const {
  std::vector<std::string_view> pieces;
  if (!text.empty()) pieces.push_back(text);
  for (const Step& step : steps_) {
    std::vector<std::string_view> next;
    next.reserve(pieces.size());
    for (size_t i = 0; i < pieces.size(); ++i) {
      apply(step, pieces[i], i == 0 ? after : After::added_token, store, next);
    }
    pieces = std::move(next);
  }
  return pieces;
}

}  // namespace pronghorn
