// What the tests of training share: a folder that goes away, a text, models of a few thousand
// numbers.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>

#include "base/error.h"
#include "base/files.h"
#include "model/config.h"
#include "train/tasks.h"
#include "train/token_shards.h"

namespace pronghorn::testing_train {

// The message of the Error that `action` throws, or "no error".
inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// An empty folder of the running test.
class Folder {
 public:
  Folder() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::temp_directory_path() /
            fmt::format("pronghorn_{}_{}_{}", info->test_suite_name(), info->name(),
                        static_cast<int>(::getpid()));
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

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

// A hybrid of every kind of path that training takes: attention with rotary positions, a scan, a
// feed-forward, a tied head.
inline ModelConfig tiny_config(const std::string& pattern = "a m") {
  nlohmann::json blocks;
  const nlohmann::json known = {
      {"a",
       {{"mixer",
         {{"type", "attention"}, {"heads", 2}, {"kv_heads", 1}, {"rope", {{"theta", 10000}}}}},
        {"ffn", {{"type", "swiglu"}, {"size", 48}}}}},
      {"m", {{"mixer", {{"type", "mamba2"}, {"heads", 2}, {"state", 8}}}}},
      {"s", {{"mixer", {{"type", "mamba"}, {"state", 4}}}}},
      {"g", {{"mixer", {{"type", "gated_deltanet"}, {"heads", 2}, {"head_dim", 8}}}}}};
  for (const char c : pattern) {
    if (known.contains(std::string(1, c))) {
      blocks[std::string(1, c)] = known[std::string(1, c)];
    }
  }
  nlohmann::json config = {{"model_type", "pronghorn"},
                           {"vocab_size", 256},
                           {"hidden_size", 32},
                           {"pattern", pattern},
                           {"blocks", blocks}};
  if (pattern.find('(') != std::string::npos) {
    config["subsample"] = {{"keep", 0.64}, {"score_norm", true}, {"score_bias", true}};
  }
  return read_pronghorn_config(ConfigReader(config, "tiny"));
}

}  // namespace pronghorn::testing_train
