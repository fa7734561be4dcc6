// Where the time of a prompt, of decoding steps and of training steps goes, kernel by kernel.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/machine.h"
#include "backend/watched_backend.h"
#include "lab/measure.h"
#include "model/model.h"
#include "train/train_config.h"

namespace pronghorn::lab {

// The calls of one kernel, of products those with one weight of the layers.
struct ProfileRow {
  std::string kernel;   // KernelCall::kernel; "everything else": what is between the calls
  std::string kind;     // KernelCall::kind; empty for everything else
  std::string weights;  // "mixer.q_proj, k_proj": without numbers of layers; empty: no weight
  int64_t calls = 0;
  int64_t forks = 0;  // of threads, during the calls
  double seconds = 0;
  double operations = 0, bytes = 0;  // as in KernelCall
  Arithmetic arithmetic = Arithmetic::f32;

  // The time that the machine needs at least, over the time taken; 0 if neither operations nor
  // bytes are known. Above 1: the bytes were in a cache.
  double share_of_ceiling(const MachineCeilings& machine) const;
  // Whether it is reading that bounds it, and not arithmetic.
  bool bound_by_memory(const MachineCeilings& machine) const;
};

// The run whose time is the median of several.
struct Profile {
  std::string what;    // "prompt", "decode" or "training"
  int64_t steps = 1;   // decoded tokens a sequence, or optimiser steps; all numbers are sums
  int64_t tokens = 0;  // that went through the model
  double seconds = 0;  // of the run, by a clock of its own
  // The slowest first, and everything else at the end. Their seconds add up to those of the run.
  std::vector<ProfileRow> rows;
};

// What bench_model() measures, with kernels watched: the prompt and the decoding.
std::vector<Profile> profile_inference(const Model& model, const BenchOptions& options);

// Optimiser steps on random tokens, the first of which is not measured. The model's numbers change.
Profile profile_training(const Model& model, const TrainConfig& config, int repeat);

// The same without a watch: tokens a second.
Spread bench_training(const Model& model, const TrainConfig& config, int repeat);

}  // namespace pronghorn::lab
