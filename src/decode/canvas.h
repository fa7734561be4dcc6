// Canvas: a text with masked places, and the model that scores them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "model/model.h"

namespace pronghorn {

// What is kept of a text that is seen whole while a part of it is filled in (Fast-dLLM, arXiv
// 2505.22618, section 3.2). Keys and values that were computed when more was masked are used on, so
// what is written may differ from that without a cache.
enum class CanvasCache : uint8_t {
  none,
  prefix,  // keys and values of what comes before the part
  dual     // of what comes before it and after it
};

// The scores of masked places in a part begin ... end - 1 of a text, part after part.
class CanvasReader {
 public:
  // state: of a model with blocks, which has read what comes before the text's next block; null:
  // the model sees texts whole. Throws Error for a cache that the model cannot have.
  CanvasReader(const Model& model, const Context& context, SequenceState* state, CanvasCache cache);

  // The part that is filled in from here on. canvas: the whole text, or from the state's end on.
  void begin(int64_t begin, int64_t end);

  // The model's scores of places, which are masked in the part: [places, vocab_size].
  Tensor scores(std::span<const int32_t> canvas, std::span<const int64_t> places);

  // Whether the next scores() sees the whole text and renews what is kept of it.
  bool renews() const { return cache_ != CanvasCache::none && !kept_; }
  // Forwards so far.
  int64_t steps() const { return steps_; }

 private:
  // The hidden states of rows from ... of the canvas, and which the first is.
  struct Read {
    Tensor hidden;
    int64_t first = 0;
  };
  Read read(std::span<const int32_t> canvas);
  Tensor forward(std::span<const int32_t> tokens, int64_t first, SequenceState* state, Mask mask);

  const Model& model_;
  const DiffusionConfig& diffusion_;
  Context context_;
  SequenceState* state_;
  CanvasCache cache_;
  int64_t begin_ = 0, end_ = 0, steps_ = 0;
  std::optional<SequenceState> kept_;  // of the canvas, with a cache
};

}  // namespace pronghorn
