#include "decode/part_finder.h"

#include <algorithm>

namespace pronghorn {
namespace {

constexpr std::string_view kSpace = " \n\r\t";

}  // namespace

std::vector<std::string_view> PartFinder::marks() const {
  if (part_ == Part::call) return {marks_.call_end};
  if (part_ == Part::reasoning) return {marks_.reasoning_end};
  std::vector<std::string_view> marks;
  if (!text_seen_) marks.emplace_back(marks_.reasoning);
  if (!marks_.call.empty()) marks.emplace_back(marks_.call);
  return marks;
}

std::pair<size_t, std::string_view> PartFinder::find_mark() const {
  std::pair<size_t, std::string_view> first = {held_.npos, {}};
  for (const std::string_view mark : marks()) {
    const size_t at = held_.find(mark);
    const bool opens = part_ == Part::text && mark == marks_.reasoning;
    if (at >= first.first || (opens && held_.find_first_not_of(kSpace) != at)) continue;
    first = {at, mark};
  }
  return first;
}

void PartFinder::give(std::string_view text, const std::function<void(std::string_view)>& on_text) {
  if (text.empty()) return;
  if (part_ == Part::text && text.find_first_not_of(kSpace) != text.npos) text_seen_ = true;
  on_text(text);
}

void PartFinder::pass(std::string_view mark) {
  if (part_ == Part::text) {
    part_ = mark == marks_.reasoning ? Part::reasoning : Part::call;
  } else {
    part_ = Part::text;
  }
}

void PartFinder::push(std::string_view text, const std::function<void(std::string_view)>& on_text,
                      const std::function<void(Part ended)>& on_mark) {
  held_ += text;
  while (true) {
    const auto [at, mark] = find_mark();
    if (at == held_.npos) break;
    const size_t end = at + mark.size();
    give(std::string_view(held_).substr(0, at), on_text);
    const Part ended = part_;
    pass(mark);
    held_.erase(0, end);
    on_mark(ended);
  }
  size_t keep = 0;
  for (const std::string_view mark : marks()) {
    for (size_t n = std::min(mark.size() - 1, held_.size()); n > keep; --n) {
      if (held_.ends_with(mark.substr(0, n))) keep = n;
    }
  }
  give(std::string_view(held_).substr(0, held_.size() - keep), on_text);
  held_.erase(0, held_.size() - keep);
}

}  // namespace pronghorn
