// What the tests of training share: a task and a text that are quick to learn.
#pragma once

#include <fmt/format.h>

#include <string>

#include "train/tasks.h"

namespace pronghorn::testing_train {

inline TaskOptions tiny_task(std::string name, int64_t length, int64_t vocab_size = 0,
                             int64_t items = 0, uint64_t seed = 1) {
  TaskOptions options;
  options.name = std::move(name);
  options.length = length;
  options.vocab_size = vocab_size;
  options.items = items;
  options.seed = seed;
  return options;
}

// About `bytes` of text with something to learn in it: numbered lines of a few words.
inline std::string tiny_text(size_t bytes = 20000) {
  static constexpr const char* kWords[] = {"grass", "runs", "far", "wind", "over", "the", "plain"};
  std::string text;
  for (size_t i = 0; text.size() < bytes; ++i) {
    text += fmt::format("{} {} {} {}.\n", i % 10, kWords[i % 7], kWords[(i * i + 3) % 7],
                        kWords[i / 7 % 7]);
  }
  return text;
}

}  // namespace pronghorn::testing_train
