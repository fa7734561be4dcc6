// Comparing architectures: train each within the same budget on the same text, images
// or sounds, measure, report.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/ranks.h"
#include "lab/results.h"
#include "train/tasks.h"
#include "train/train_config.h"
#include "train/trainer.h"

namespace pronghorn::lab {

struct CompareOptions {
  std::vector<std::filesystem::path> configs;
  std::vector<std::filesystem::path> data;
  std::filesystem::path directory;  // --out
  TrainBudget budget;               // seconds or tokens, for each architecture
  uint64_t seed = 0;
  int64_t seeds = 1;          // trains each so often: with seed, seed + 1, ...
  int64_t vocab_size = 4096;  // of the tokenizer to train; 0: bytes
  std::vector<int64_t> contexts = {512, 4096, 32768, 262144};
  double context_seconds = 60;         // longest prompt measurement
  std::optional<double> mqar_seconds;  // train on MQAR too, for so long each
  // With a name: train on this task instead of text, at its length, and judge each of its parts at
  // task_multiples of that length. Its text, if it needs one, is the data.
  TaskOptions task;
  std::vector<int64_t> task_multiples = {1, 2, 4, 8, 16};
  // Train on the images of `data`, one folder (train/images.h), in place of text, and judge by
  // those that are held out.
  bool images = false;
  // The same with the sounds of one folder (train/sound.h).
  bool sound = false;
  int64_t task_examples = 50;      // of each part at each length
  nlohmann::json train_overrides;  // keys of a "train" object that win over the configurations'
  // That share the architectures out: number i goes to rank i mod N. Each calls compare().
  Ranks* ranks = &one_rank();
};

// Trains and judges architectures on text, on a synthetic task, on images, or on sounds. Runs in
// `directory`:
//   data/           tokenizer and token shards
//   NAME/           the training run of each architecture, its model at the end
//   NAME.seed1/     the same with seed 1, if that is not the first
//   results.json    after each architecture; an interrupted comparison continues from it
//   report.html
//   report.md       its tables alone
//   NAME/result.json  of several ranks, what each found, until the first has it in results.json
// The first rank prepares the data, and returns and writes the whole; what others return is empty.
// An architecture that fails is reported with its message and does not stop the others. Throws
// Error for bad options, data or configurations, before anything is trained.
CompareRun compare(const CompareOptions& options);

}  // namespace pronghorn::lab
