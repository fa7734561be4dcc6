// Synthetic tasks of the field: small generated problems that tell architectures apart.
#pragma once

#include <cstdint>
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
  uint64_t seed = 0;
};

struct TaskType {
  std::string name;
  std::string description;
  std::string source;  // paper
  // Completes the options with the task's defaults; throws Error if they cannot be met.
  std::unique_ptr<DataSource> (*make)(TaskOptions options);
};

// selective_copying, induction_heads, mqar, needle.
const std::vector<TaskType>& task_types();

// Examples of a task. Those of different seeds differ; accuracy counts the rows with a target.
// Throws Error for an unknown name or impossible sizes.
std::unique_ptr<DataSource> make_task(TaskOptions options);

}  // namespace pronghorn
