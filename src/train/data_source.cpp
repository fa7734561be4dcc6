#include "train/data_source.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/random.h"
#include "model/model.h"
#include "train/evaluate.h"

namespace pronghorn {

CrossEntropy DataSource::loss(const Model& model, const Context& context, const Tensor& hidden,
                              const CheckedBatch&, std::span<const int32_t> targets,
                              double gradient_scale, double z_loss_weight) const {
  return model.cross_entropy(context, hidden, targets, gradient_scale, z_loss_weight);
}

double DataSource::held_out_accuracy(const Model& model, Precision precision) {
  return evaluate_task(model, precision, *this, held_out_examples()).accuracy();
}

TextSource::TextSource(const TokenShard& shard, int64_t window, uint64_t seed)
    : shard_(shard), window_(window), seed_(seed) {
  require(window > 0 && shard.size() > window, "training data",
          "{} tokens are fewer than one window of {} and the token after it (use more text or a "
          "smaller window)",
          shard.size(), window);
  // The offset varies within a window, so one window fewer than could fit is always there.
  windows_ = static_cast<uint64_t>(std::max<int64_t>(1, (shard.size() - 1) / window - 1));
  require(windows_ <= UINT32_MAX, "training data", "{} windows are too many", windows_);
}

void TextSource::start_epoch(uint64_t epoch) {
  Random random(seed_ + epoch * 0x9E3779B97F4A7C15ull, "text order");
  const auto slack =
      shard_.size() - 1 - static_cast<int64_t>(windows_) * window_;  // room for the offset
  offset_ =
      static_cast<int64_t>(random.below(static_cast<uint64_t>(std::min(slack, window_ - 1)) + 1));
  order_.resize(windows_);
  std::iota(order_.begin(), order_.end(), 0u);
  for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random.below(i)]);
  epoch_ = epoch;
}

void TextSource::fill(uint64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) {
  int64_t begin = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (index / windows_ != epoch_) start_epoch(index / windows_);
    begin = offset_ + static_cast<int64_t>(order_[index % windows_]) * window_;
  }
  shard_.read(begin, tokens);
  std::copy(tokens.begin() + 1, tokens.end(), targets.begin());
  shard_.read(begin + window_, targets.last(1));
}

}  // namespace pronghorn
