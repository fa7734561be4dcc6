// The training loop: steps, held-out scores, checkpoints, resumption.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/ranks.h"
#include "formats/tokenizer.h"
#include "model/model.h"
#include "train/data_source.h"
#include "train/expert_loads.h"
#include "train/train_config.h"
#include "train/train_log.h"
#include "train/train_step.h"
#include "train/training_state.h"

namespace pronghorn {

// How long to train; exactly one is set.
struct TrainBudget {
  std::optional<int64_t> steps;
  std::optional<int64_t> tokens;  // rounded up to whole steps
  std::optional<double> seconds;  // of training steps; scores and checkpoints do not count
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
  Ranks* ranks = &one_rank();         // that train together; each calls train()
  std::string base;                   // what an adapter's files call the model that it is for
  // Called after each step; false ends the run as a signal would. May be empty.
  std::function<bool(const TrainLogLine&)> on_step;
};

struct TrainResult {
  int64_t steps = 0, tokens = 0;
  double seconds = 0;                            // of training steps
  double tokens_per_second = 0;                  // tokens / seconds: of the whole run
  int64_t peak_bytes = 0;                        // memory held by tensors at most; 0: no step here
  std::optional<double> start_bits_per_byte;     // before the first step, if it was asked for
  std::optional<double> held_out_bits_per_byte;  // at the end, on all held-out text
  bool is_bound = false;                         // bits per byte are upper bounds (TextScore)
  std::optional<double> best_bits_per_byte;
  ExpertLoads expert_loads;        // of the held-out text, at the end
  std::optional<double> accuracy;  // of a task
  bool interrupted = false;
};

// Whether a directory has the state of a run that came beyond its first step: where one died
// before, there is nothing to lose.
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
// current step with its state saved. Throws Error; the last good state then remains on disk. Of
// several ranks the first writes these files and scores, and the others read them.
TrainResult train(Model& model, DataSource& source, const TokenShard* held_out,
                  const Tokenizer* tokenizer, const TrainRun& run);

}  // namespace pronghorn
