// Synthetic tasks of the field: small generated problems that tell architectures apart.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "train/data_source.h"

namespace pronghorn {

struct TaskOptions {
  std::string name;
  int64_t length = 256;    // of a sequence
  int64_t vocab_size = 0;  // 0: the task's own default
  int64_t items = 0;       // things to remember (tokens, key-value pairs); 0: the task's default
  int64_t questions = 1;   // times at most that a needle is asked for; for needle tasks only
  int64_t haystacks = 1;   // at most, in a sequence, each with a needle; for needle tasks only
  // Tokens of examples over which the two before come down to one, evenly; 0: they stay.
  int64_t curriculum = 0;
  // What needles are hidden in, for tasks that hide them in text.
  std::shared_ptr<const std::string> text;
  uint64_t seed = 0;
};

struct TaskType {
  std::string name;
  std::string description;
  std::string source;  // paper
  // The tasks whose examples this one mixes, to be judged one by one; for most only itself.
  std::vector<std::string> parts;
  bool text = false;  // needs TaskOptions::text
  // Completes the options with the task's defaults; throws Error if they cannot be met.
  std::unique_ptr<DataSource> (*make)(TaskOptions options);
};

// selective_copying, induction_heads, mqar, needle, niah_passkey, niah_number, niah_key, niah,
// which mixes these three, and tracking_tasks().
const std::vector<TaskType>& task_types();

// Throws Error for an unknown name.
const TaskType& task_type(const std::string& name);

// The first megabytes of the documents of `paths`, for TaskOptions::text. Throws Error as
// for_each_document does.
std::shared_ptr<const std::string> task_text(const std::vector<std::filesystem::path>& paths);

// In words, what tells a task's examples from others', but for the seed: its name and sizes, and
// which text needles are hidden in. A run is continued only on the same.
std::string describe(const TaskOptions& options);

// Examples of a task. Those of different seeds differ; accuracy counts the rows with a target.
// Throws Error for an unknown name or impossible sizes.
std::unique_ptr<DataSource> make_task(TaskOptions options);

}  // namespace pronghorn
