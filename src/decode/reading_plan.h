// The pieces in which a prompt is read.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pronghorn {

// Tokens begin ... end - 1 of a text.
struct TokenRange {
  int64_t begin = 0, end = 0;

  int64_t size() const { return end - begin; }
  bool operator==(const TokenRange&) const = default;
};

// Tokens that are read one way: in a forward of their own, or in steps of up to kExactStep tokens,
// which give the same bits however they are cut and whoever shares the forward.
struct ReadingRun {
  TokenRange tokens;
  bool exact = false;

  bool operator==(const ReadingRun&) const = default;
};

// Tokens of the longest piece that is not exact; cuts are at multiples of it.
constexpr int64_t kPiece = 256;

// How a prompt of `length` tokens is read: cut at multiples of `piece`, at `cuts` and at both ends
// of `answers`, all ascending. Answers, and what lies between two cuts and has up to kExactStep
// tokens, are exact. It depends on nothing else, so that whoever reads the prompt gets the same
// bits; and prompts that begin with the same tokens, cuts and answers are read alike up to the last
// cut there. Throws UsageError for cuts and answers that do not ascend or are out of the prompt.
std::vector<ReadingRun> reading_plan(int64_t length, std::span<const int64_t> cuts = {},
                                     std::span<const TokenRange> answers = {},
                                     int64_t piece = kPiece);

}  // namespace pronghorn
