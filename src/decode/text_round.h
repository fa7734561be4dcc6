// What a step of a TextBatch works on: one forward for texts that are written and for exact pieces
// of prompts.
#pragma once

#include "decode/text_batch.h"

namespace pronghorn {

struct TextBatch::Round {
  std::vector<size_t> writing, reading;  // slots
  // Of the texts that are written: guesses as they were made and those that are checked, the
  // lengths of the states before the step, the first token of each, what was taken.
  std::vector<Draft> made, drafts;
  std::vector<int64_t> lengths;
  std::vector<int32_t> first_choices;
  std::vector<std::vector<int32_t>> taken;
  Batch batch;  // the texts that are written come first
  int64_t written_rows = 0;
  // Scores of all rows of these, then of the last token of each prompt that ends in this step.
  Tensor hidden, logits;
  double draft_seconds = 0, step_seconds = 0;

  // Behind a node of the draft of the i-th text, or behind the text (-1).
  std::span<const float> scores(size_t i, int32_t node) const {
    return row(batch.segments[i].first_row + node + 1);
  }
  std::span<const float> row(int64_t index) const {
    return {logits.row(index), static_cast<size_t>(logits.columns())};
  }
};

}  // namespace pronghorn
