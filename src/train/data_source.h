// DataSource: numbered training examples. An example is a pure function of its number, so training
// can resume anywhere without remembering what it has seen.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "ops/cross_entropy.h"
#include "tensor/batch.h"
#include "tensor/tape.h"
#include "train/token_shards.h"

namespace pronghorn {

class Model;

constexpr uint64_t kHeldOutExamples = uint64_t{1} << 48;

class DataSource {
 public:
  virtual ~DataSource() = default;

  // Tokens of one example.
  virtual int64_t length() const = 0;
  virtual int64_t vocab_size() const = 0;

  // Example number `index`: its tokens, and for each row the token to predict there, or -1 where
  // nothing is asked. Both spans hold length() values. May be called from several threads.
  virtual void fill(uint64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) = 0;

  // The batch of examples whose tokens, one after another, fill() gave: fresh sequences of these
  // tokens, unless they stand for something else.
  virtual Batch batch(std::span<const int32_t> tokens) const {
    return fresh_segments(tokens, length());
  }

  // The loss of examples of one batch(), of which the model made `hidden`, and whose targets fill()
  // gave: as Model::cross_entropy(), which it is unless a source has a loss of its own.
  virtual CrossEntropy loss(const Model& model, const Context& context, const Tensor& hidden,
                            const CheckedBatch& batch, std::span<const int32_t> targets,
                            double gradient_scale, double z_loss_weight) const;

  // Examples that training never asks for have numbers from kHeldOutExamples on; how many of them
  // tell how good a model is.
  virtual int64_t held_out_examples() const { return 512; }

  // How good a model is on these, from 0 to 1: the share of right answers (evaluate_task()), unless
  // a source has a measure of its own.
  virtual double held_out_accuracy(const Model& model, Precision precision);

  // Share of its answers that guessing among those that there can be gets right; 0 where that is no
  // question.
  virtual double chance() const { return 0; }
};

// Windows of a text. Each epoch cuts the tokens at a new offset and visits the windows in a new
// order, both functions of (seed, epoch).
class TextSource final : public DataSource {
 public:
  // Throws Error if the shard is shorter than one window and its next token.
  TextSource(const TokenShard& shard, int64_t window, uint64_t seed);

  int64_t length() const override { return window_; }
  int64_t vocab_size() const override { return shard_.vocab_size(); }
  void fill(uint64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) override;

 private:
  void start_epoch(uint64_t epoch);

  const TokenShard& shard_;
  int64_t window_;
  uint64_t seed_;
  uint64_t windows_;  // of an epoch
  std::mutex mutex_;
  uint64_t epoch_ = ~uint64_t{0};
  int64_t offset_ = 0;
  std::vector<uint32_t> order_;
};

}  // namespace pronghorn
