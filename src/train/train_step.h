// One step of training: examples, forward, backward, update.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "model/model.h"
#include "train/data_source.h"
#include "train/expert_loads.h"
#include "train/train_config.h"
#include "train/training_state.h"

namespace pronghorn {

// Sequences of `source` in a step.
int64_t sequences_per_step(const TrainConfig& config, const DataSource& source);

// Of so many ranks, those that share each sequence: 1 without sequence_parallel. The ranks are
// teams of as many that follow one another. Throws Error if they cannot be.
int64_t ranks_together(const TrainConfig& config, int64_t ranks);

// What one optimiser step reported.
struct StepResult {
  double loss = 0;           // nats per token; of a diffusion model an upper bound, estimated
  double gradient_norm = 0;  // before clipping
  double accuracy = 0;       // of the rows asked for
  // What layers add to the loss (Carry::add_loss()), by name, before their weights. `loss` is
  // without them, so that it can be compared between architectures.
  std::map<std::string, double> layer_losses;
  ExpertLoads expert_loads;
};

// One optimiser step on examples [step x sequences, ...): forward and backward by micro-batches,
// clipping, AdamW. Each of the state's ranks makes its groups of the step (gradient_groups), or
// with sequence_parallel its part of each sequence in those of its team, and all return the same. A
// diffusion model learns the examples' tokens (train/masked_text.h), masked as `seed` and their
// numbers say. Throws Error naming step and tensor if the loss or a gradient is not finite; the
// parameters are then as before the step.
StepResult train_step(const Model& model, const TrainConfig& config, DataSource& source,
                      TrainingState& state, double learning_rate, uint64_t seed = 0);

}  // namespace pronghorn
