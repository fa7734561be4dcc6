// Who wins at what: the conclusions of a comparison, in words computed from its numbers.
#pragma once

#include <string>
#include <vector>

#include "lab/results.h"

namespace pronghorn::lab {

// The winner of one contest.
struct Finding {
  std::string topic;            // "Held-out quality", "Decoding at 256k"
  std::string verb;             // "models the held-out text best": the winner's name goes before
  std::vector<size_t> winners;  // into run.architectures; several when they read the same
  std::string value;            // the winning value with its unit
  bool contested = false;       // whether at least two were measured, and some are worse
  bool close = false;           // the winners differ, but by less than the run can tell
  std::string detail;           // how far ahead, and who leads at other contexts
};

// One finding for each measure that at least one architecture has: quality, training speed and
// memory, then prompts, decoding and state at the longest context measured, then recall.
std::vector<Finding> find_winners(const CompareRun& run);

// The names of a finding's winners: "a", "a and b", "a, b and c".
std::string winner_names(const CompareRun& run, const Finding& finding);

// The findings as one paragraph, with how many beat gzip and what failed. Empty if nothing was
// measured.
std::string headline(const CompareRun& run);

}  // namespace pronghorn::lab
