// The training loop: steps, held-out scores, checkpoints, resumption.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "formats/tokenizer.h"
#include "model/model.h"
#include "train/data_source.h"
#include "train/expert_loads.h"
#include "train/train_config.h"
#include "train/training_state.h"

namespace pronghorn {

// How long to train; exactly one is set.
struct TrainBudget {
  std::optional<int64_t> steps;
  std::optional<int64_t> tokens;  // rounded up to whole steps
  std::optional<double> seconds;  // of training steps; scores and checkpoints do not count
};

// One line of log.jsonl.
struct TrainLogLine {
  int64_t step = 0, tokens = 0;
  double seconds = 0, loss = 0, learning_rate = 0, gradient_norm = 0, tokens_per_second = 0;
  std::optional<double> held_out_bits_per_byte;
  std::map<std::string, double> layer_losses;  // as in StepResult
  // The least and the largest share of an expert in the step (ExpertLoads).
  struct ExpertShares {
    double least = 1, most = 1;
  };
  std::optional<ExpertShares> expert_shares;
};

struct TrainRun {
  TrainConfig config;
  TrainBudget budget;
  uint64_t seed = 0;
  std::filesystem::path directory;  // --out
  bool resume = false;
  int64_t evaluate_every = 0;         // steps between held-out scores; 0: about twenty in the run
  double checkpoint_seconds = 30;     // between saved training states
  int64_t evaluate_tokens = 1 << 17;  // of the held-out text for scores on the way; 0: all
  std::string data_identity;          // changes when the data does; guards resumption
  std::string label = "train";        // of the progress bar
  bool score_start = false;           // also score the held-out text before the first step
  std::string base;                   // what an adapter's files call the model that it is for
  // Called after each step; false ends the run as a signal would. May be empty.
  std::function<bool(const TrainLogLine&)> on_step;
};

struct TrainResult {
  int64_t steps = 0, tokens = 0;
  double seconds = 0;                            // of training steps
  double tokens_per_second = 0;                  // median of the steps of this process
  int64_t peak_bytes = 0;                        // memory held by tensors at most
  std::optional<double> start_bits_per_byte;     // before the first step, if it was asked for
  std::optional<double> held_out_bits_per_byte;  // at the end, on all held-out text
  bool is_bound = false;                         // bits per byte are upper bounds (TextScore)
  std::optional<double> best_bits_per_byte;
  ExpertLoads expert_loads;        // of the held-out text, at the end
  std::optional<double> accuracy;  // of a task
  bool interrupted = false;
};

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
// clipping, AdamW. A diffusion model learns the examples' tokens (train/masked_text.h), masked as
// `seed` and their numbers say. Throws Error naming step and tensor if the loss or a gradient is
// not finite; the parameters are then as before the step.
StepResult train_step(const Model& model, const TrainConfig& config, DataSource& source,
                      TrainingState& state, double learning_rate, uint64_t seed = 0);

// Whether a directory has the state of a run.
bool holds_training_run(const std::filesystem::path& directory);

// Throws Error if `directory` holds a training run that is not to be resumed. train() does it too;
// a caller that prepares data in the directory first must not disturb that run.
void check_directory(const std::filesystem::path& directory, bool resume);

// Trains a model into run.directory:
//   config.json, model.safetensors, tokenizer files   the model, at the end; of a model with an
//                                                      adapter its files alone (model/lora.h)
//   best/                                              the same, at the best held-out score
//   training_state.safetensors                         to resume from
//   log.jsonl                                          a line a step
// held_out and tokenizer may be null (synthetic tasks). SIGINT and SIGTERM end the run after the
// current step with its state saved. Throws Error; the last good state then remains on disk.
TrainResult train(Model& model, DataSource& source, const TokenShard* held_out,
                  const Tokenizer* tokenizer, const TrainRun& run);

// The lines of a log.jsonl, those after `last_step` omitted. Missing file: none.
std::vector<TrainLogLine> read_train_log(const std::filesystem::path& path,
                                         int64_t last_step = INT64_MAX);

}  // namespace pronghorn
