#include "decode/reading_plan.h"

#include <algorithm>

#include "base/error.h"
#include "tensor/journal.h"

namespace pronghorn {
namespace {

void refuse(std::string_view what, int64_t begin, int64_t end, int64_t length) {
  throw UsageError(what, fmt::format("{} to {} of a prompt of {} tokens", begin, end, length),
                   "places in the prompt, ascending");
}

// begin ... end, which is not part of an answer.
void add_prompt(std::vector<ReadingRun>& plan, int64_t begin, int64_t end,
                std::span<const int64_t> cuts, int64_t piece) {
  auto cut = std::lower_bound(cuts.begin(), cuts.end(), begin);
  while (begin < end) {
    while (cut != cuts.end() && *cut <= begin) ++cut;
    int64_t next = std::min(end, (begin / piece + 1) * piece);
    if (cut != cuts.end()) next = std::min(next, *cut);
    plan.push_back({{begin, next}, next - begin <= kExactStep});
    begin = next;
  }
}

}  // namespace

std::vector<ReadingRun> reading_plan(int64_t length, std::span<const int64_t> cuts,
                                     std::span<const TokenRange> answers, int64_t piece) {
  int64_t last = 0;
  for (const int64_t cut : cuts) {
    if (cut < last || cut > length) refuse("message_ends", last, cut, length);
    last = cut;
  }
  std::vector<ReadingRun> plan;
  int64_t at = 0;
  for (const TokenRange& answer : answers) {
    if (answer.begin < at || answer.end < answer.begin || answer.end > length) {
      refuse("answers", answer.begin, answer.end, length);
    }
    if (answer.size() == 0) continue;
    add_prompt(plan, at, answer.begin, cuts, piece);
    plan.push_back({answer, true});
    at = answer.end;
  }
  add_prompt(plan, at, length, cuts, piece);
  return plan;
}

}  // namespace pronghorn
