#include "serve/http/answer_parser.h"

#include <algorithm>

#include "base/error.h"
#include "formats/jinja.h"

namespace pronghorn::serve {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kSpace = " \n\r\t";
constexpr std::string_view kThink = "<think>", kThinkEnd = "</think>";
constexpr std::string_view kCall = "<tool_call>", kCallEnd = "</tool_call>";

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

}  // namespace

std::vector<std::string_view> AnswerParser::marks() const {
  if (in_call_) return {kCallEnd};
  if (reasoning_) return {kThinkEnd};
  std::vector<std::string_view> marks;
  if (!content_seen_) marks.push_back(kThink);
  if (tools_) marks.push_back(kCall);
  return marks;
}

std::optional<std::pair<size_t, std::string_view>> AnswerParser::find_mark() const {
  std::optional<std::pair<size_t, std::string_view>> first;
  for (const std::string_view mark : marks()) {
    const size_t at = held_.find(mark);
    if (at == held_.npos || (first && at >= first->first)) continue;
    if (mark == kThink && held_.find_first_not_of(kSpace) != at) continue;
    first = {at, mark};
  }
  return first;
}

void AnswerParser::take_mark(std::string_view mark, Pieces& pieces) {
  space_.clear();
  trims_ = true;
  if (mark == kThink) reasoning_ = true;
  if (mark == kThinkEnd) reasoning_ = false;
  if (mark == kCall) in_call_ = true;
  if (mark != kCallEnd) return;
  in_call_ = false;
  if (std::optional<AnswerPiece> call = read_call(call_)) {
    pieces.push_back(std::move(*call));
  } else {
    ++malformed_;
  }
  call_.clear();
}

void AnswerParser::give(std::string_view text, Pieces& pieces) {
  if (text.empty()) return;
  if (!reasoning_) content_seen_ = true;
  const auto kind = reasoning_ ? AnswerPiece::Kind::reasoning : AnswerPiece::Kind::content;
  if (!pieces.empty() && pieces.back().kind == kind) {
    pieces.back().text += text;
  } else {
    pieces.push_back({kind, std::string(text), {}, {}});
  }
}

void AnswerParser::add(std::string_view text, Pieces& pieces) {
  if (in_call_) {
    call_ += text;
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
  held_ += text;
  while (const auto found = find_mark()) {
    const auto [at, mark] = *found;
    add(std::string_view(held_).substr(0, at), pieces);
    take_mark(mark, pieces);
    held_.erase(0, at + mark.size());
  }
  size_t keep = 0;
  for (const std::string_view mark : marks()) {
    for (size_t n = std::min(mark.size() - 1, held_.size()); n > keep; --n) {
      if (held_.ends_with(mark.substr(0, n))) keep = n;
    }
  }
  add(std::string_view(held_).substr(0, held_.size() - keep), pieces);
  held_.erase(0, held_.size() - keep);
  return pieces;
}

std::vector<AnswerPiece> AnswerParser::finish() {
  Pieces pieces;
  add(std::exchange(held_, {}), pieces);
  if (in_call_) ++malformed_;
  if (!in_call_ && !reasoning_) give(std::exchange(space_, {}), pieces);
  return pieces;
}

}  // namespace pronghorn::serve
