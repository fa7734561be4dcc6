#include "decode/canvas.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "layers/both_ways.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

// Whether a whole text can be kept as keys and values.
bool keeps_keys(const Model& model) {
  for (const auto& block : model.blocks()) {
    if (std::ranges::any_of(block->mixers(),
                            [](const auto& mixer) { return sees_whole_texts(*mixer); })) {
      return false;
    }
  }
  return true;
}

}  // namespace

CanvasReader::CanvasReader(const Model& model, const Context& context, SequenceState* state,
                           CanvasCache cache)
    : model_(model),
      diffusion_(*model.config().diffusion),
      context_(context),
      state_(state),
      cache_(cache) {
  if (cache == CanvasCache::none) return;
  require(diffusion_.block == 0, "canvas",
          "a model with blocks keeps what it has read in its state");
  require(keeps_keys(model), "cache", "of a model with mixers that keep no keys and values");
}

void CanvasReader::begin(int64_t begin, int64_t end) {
  begin_ = begin;
  end_ = end;
  kept_.reset();
}

Tensor CanvasReader::forward(std::span<const int32_t> tokens, int64_t first, SequenceState* state,
                             Mask mask) {
  Batch batch;
  batch.tokens.assign(tokens.begin(), tokens.end());
  batch.positions.resize(tokens.size());
  std::iota(batch.positions.begin(), batch.positions.end(), static_cast<int32_t>(first));
  batch.segments.push_back({state, 0, std::ssize(tokens), mask});
  ++steps_;
  return model_.forward(context_, batch);
}

CanvasReader::Read CanvasReader::read(std::span<const int32_t> canvas) {
  const auto from = static_cast<size_t>(begin_), size = static_cast<size_t>(end_ - begin_);
  if (state_ != nullptr) {
    // A fork that is thrown away: a recurrence cannot take back more than kExactStep tokens.
    SequenceState fork = *state_;
    return {forward(canvas.subspan(from, size), fork.length() + begin_, &fork, Mask::causal),
            begin_};
  }
  if (cache_ == CanvasCache::none) return {forward(canvas, 0, nullptr, Mask::full), 0};
  if (!kept_) {
    kept_ = model_.new_state();
    const Tensor hidden = forward(canvas, 0, &*kept_, Mask::full);
    if (cache_ == CanvasCache::prefix) kept_->truncate(begin_);
    return {hidden, 0};
  }
  if (cache_ == CanvasCache::dual) {
    return {forward(canvas.subspan(from, size), begin_, &*kept_, Mask::replace), begin_};
  }
  const Tensor hidden = forward(canvas.subspan(from), begin_, &*kept_, Mask::full);
  kept_->truncate(begin_);
  return {hidden, begin_};
}

Tensor CanvasReader::scores(std::span<const int32_t> canvas, std::span<const int64_t> places) {
  const Read read = this->read(canvas);
  std::vector<int32_t> rows;
  for (const int64_t place : places) {
    // The first row stands in for one before it.
    const int64_t row = diffusion_.shift ? place - 1 : place;
    rows.push_back(static_cast<int32_t>(std::max<int64_t>(0, row - read.first)));
  }
  return model_.logits(context_, embedding(context_, read.hidden, rows));
}

}  // namespace pronghorn
