// A step of the optimiser, from the gradients that a backward pass has left.
#pragma once

#include <cstdint>

#include "model/model.h"
#include "train/gradient_sum.h"
#include "train/train_config.h"
#include "train/training_state.h"

namespace pronghorn {

struct OptimizerStep {
  double learning_rate = 0;
  double loss = 0;        // of the step, for messages
  int64_t sequences = 1;  // in the step, for averages
};

// Clips the gradients of what is trained, updates it by AdamW (parameters that learn otherwise as
// they do) where it has any, clears them, and counts the step. Each rank updates what it owns, and
// then all have the same parameters. Returns the gradient's norm before clipping. Throws Error
// naming step and tensor if the loss or a gradient is not finite; the parameters are then as
// before.
double optimizer_step(const Model& model, const TrainConfig& config, TrainingState& state,
                      const GradientSum& gradients, const OptimizerStep& step);

}  // namespace pronghorn
