// How to train: everything that, with the data and the seed, decides the result.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "formats/json.h"
#include "tensor/sequence_shards.h"
#include "tensor/tape.h"
#include "train/skipped_positions.h"

namespace pronghorn {

enum class Schedule { cosine, wsd };

struct TrainConfig {
  int64_t window = 512;         // tokens of a sequence
  int64_t batch_tokens = 8192;  // of a step (an optimiser update)
  // Of a forward; 0: batch_tokens. The step accumulates the rest.
  int64_t micro_batch_tokens = 2048;
  // Parts of a step whose gradients are made apart and then added in order. Any number of ranks
  // that divides it trains to the same bits (train/gradient_sum.h).
  int64_t gradient_groups = 1;
  // Whether the ranks share each sequence, in place of the sequences of a step, and how.
  SequenceParallel sequence_parallel = SequenceParallel::none;
  // How many ranks share a sequence; the ranks are then groups of so many, which make gradient
  // groups of their own. 0: all. Not written: a run can go on with another number.
  int64_t sequence_parallel_ranks = 0;
  double learning_rate = 2e-3;
  double final_learning_rate = 0.1;  // as a share of learning_rate
  Schedule schedule = Schedule::cosine;
  double warmup = 0.05;  // share of the run in which the rate rises linearly
  double decay = 0.2;    // wsd: share of the run, at its end, in which the rate falls
  double weight_decay = 0.1;
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double clip = 1.0;       // largest norm of the gradient; 0: no limit
  double z_loss = 0;       // weight of (ln Z)^2
  double mtp_loss = 0.3;   // weight of the mean loss of a model's multi-token prediction heads
                           // (DeepSeek-V3, arXiv 2412.19437, section 4.2)
  int64_t early_exit = 0;  // also score the stream after that many blocks; 0: not
  double early_exit_loss = 0.3;  // weight of that loss
  SkippedPositions positions;
  int64_t image_shift = 0;  // pixels that images are moved by at most, at random
  Precision precision = Precision::bf16;
};

// Reads the keys of a "train" object over the given defaults. Throws Error for unknown keys and
// values out of range.
TrainConfig read_train_config(ConfigReader reader, TrainConfig defaults = {});
nlohmann::json write_train_config(const TrainConfig& config);

// Learning rate at `progress` in [0, 1] of the run: linear warm-up, then a cosine (arXiv
// 1608.03983) or a constant with a linear decay at the end (WSD, arXiv 2404.06395), down to the
// final rate.
double learning_rate_at(const TrainConfig& config, double progress);

}  // namespace pronghorn
