#include "serve/http/answer_parser.h"

#include <algorithm>

#include "base/error.h"
#include "formats/jinja.h"

namespace pronghorn::serve {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kSpace = " \n\r\t";

using Part = PartFinder::Part;

// {"name": ..., "arguments": {...}}, the arguments also as the JSON text of it.
std::optional<AnswerPiece> read_call(const std::string& text) {
  try {
    const Json call = parse_variables(text, "tool_call");
    if (!call.is_object() || !call.contains("name") || !call["name"].is_string()) return {};
    Json arguments = call.contains("arguments") ? call["arguments"] : Json::object();
    if (arguments.is_string()) {
      arguments = parse_variables(arguments.get_ref<const std::string&>(), "arguments");
    }
    if (!arguments.is_object()) return {};
    return AnswerPiece{AnswerPiece::Kind::tool_call,
                       {},
                       call["name"].get<std::string>(),
                       arguments.dump(-1, ' ', false, Json::error_handler_t::replace)};
  } catch (const Error&) {
    return {};
  }
}

// Of a call that begins with {"name": "...", "arguments": {: the name, and where the last of these
// braces is. Nothing for other calls, and as long as that has not come.
std::optional<std::pair<std::string, size_t>> read_head(std::string_view call) {
  constexpr size_t kLongest = 4096;
  call = call.substr(0, kLongest);
  size_t at = 0;
  const auto take = [&](std::string_view mark) {
    at = std::min(call.find_first_not_of(kSpace, at), call.size());
    if (!call.substr(at).starts_with(mark)) return false;
    at += mark.size();
    return true;
  };
  if (!take("{") || !take("\"name\"") || !take(":") || !take("\"")) return {};
  const size_t begin = at - 1;
  while (at < call.size() && call[at] != '"') at += call[at] == '\\' ? 2 : 1;
  if (at >= call.size()) return {};
  const Json name = Json::parse(call.substr(begin, ++at - begin), nullptr, false);
  if (!name.is_string() || !take(",") || !take("\"arguments\"") || !take(":") || !take("{")) {
    return {};
  }
  return std::pair(name.get<std::string>(), at - 1);
}

}  // namespace

PartMarks answer_marks(bool tools) {
  PartMarks marks{"<think>", "</think>", {}, {}};
  if (tools) marks.call = "<tool_call>";
  if (tools) marks.call_end = "</tool_call>";
  return marks;
}

void AnswerParser::take_mark(Part ended, Pieces& pieces) {
  space_.clear();
  trims_ = true;
  if (ended == Part::call) end_call(pieces);
}

void AnswerParser::end_call(Pieces& pieces) {
  std::optional<AnswerPiece> call = read_call(call_);
  if (!call) {
    ++malformed_;
  } else if (!begun_) {
    pieces.push_back(std::move(*call));
  } else if (!pieces.empty() && pieces.back().kind == AnswerPiece::Kind::tool_call &&
             !pieces.back().ends) {
    pieces.back().ends = true;
  } else {
    pieces.push_back({AnswerPiece::Kind::tool_call, {}, {}, {}, false, true});
  }
  call_.clear();
  given_ = 0;
  depth_ = 0;
  begun_ = in_string_ = escaped_ = false;
}

void AnswerParser::give_arguments(Pieces& pieces) {
  AnswerPiece piece{AnswerPiece::Kind::tool_call, {}, {}, {}, !begun_, false};
  if (!begun_) {
    std::optional<std::pair<std::string, size_t>> head = read_head(call_);
    if (!head) return;
    begun_ = true;
    piece.name = std::move(head->first);
    given_ = head->second;
  } else if (depth_ == 0) {
    return;  // they have come whole
  }
  for (; given_ < call_.size(); ++given_) {
    const char c = call_[given_];
    if (in_string_) {
      in_string_ = escaped_ || c != '"';
      escaped_ = !escaped_ && c == '\\';
    } else if (kSpace.find(c) != kSpace.npos) {
      continue;
    } else {
      in_string_ = c == '"';
      if (c == '{' || c == '[') ++depth_;
      if (c == '}' || c == ']') --depth_;
    }
    piece.arguments += c;
    if (depth_ == 0) break;
  }
  if (piece.begins || !piece.arguments.empty()) pieces.push_back(std::move(piece));
}

void AnswerParser::give(std::string_view text, Pieces& pieces) {
  if (text.empty()) return;
  const bool reasons = finder_.part() == Part::reasoning;
  const auto kind = reasons ? AnswerPiece::Kind::reasoning : AnswerPiece::Kind::content;
  if (!pieces.empty() && pieces.back().kind == kind) {
    pieces.back().text += text;
  } else {
    pieces.push_back({kind, std::string(text), {}, {}});
  }
}

void AnswerParser::add(std::string_view text, Pieces& pieces) {
  if (finder_.part() == Part::call) {
    call_ += text;
    if (in_parts_) give_arguments(pieces);
    return;
  }
  if (trims_) {
    text.remove_prefix(std::min(text.find_first_not_of(kSpace), text.size()));
    trims_ = text.empty();
  }
  // Space waits for what follows it: before a mark it is left out.
  space_ += text;
  const size_t end = space_.find_last_not_of(kSpace);
  if (end == space_.npos) return;
  give(std::string_view(space_).substr(0, end + 1), pieces);
  space_.erase(0, end + 1);
}

std::vector<AnswerPiece> AnswerParser::push(std::string_view text) {
  Pieces pieces;
  finder_.push(
      text, [&](std::string_view some) { add(some, pieces); },
      [&](Part ended) { take_mark(ended, pieces); });
  return pieces;
}

std::vector<AnswerPiece> AnswerParser::finish() {
  Pieces pieces;
  add(finder_.finish(), pieces);
  if (finder_.part() == Part::call) ++malformed_;
  if (finder_.part() == Part::text) give(std::exchange(space_, {}), pieces);
  return pieces;
}

}  // namespace pronghorn::serve
