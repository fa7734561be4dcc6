// log.jsonl of a training run: a line a step, appended as the step ends.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn {

inline constexpr const char* kTrainLogFile = "log.jsonl";

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

// None for a text that is no line of a log, such as one that a killed run has cut short.
std::optional<TrainLogLine> parse_train_log_line(std::string_view text);

// The lines of a log.jsonl, those after `last_step` omitted. Missing file: none.
std::vector<TrainLogLine> read_train_log(const std::filesystem::path& path,
                                         int64_t last_step = INT64_MAX);

// Lines are appended as they come; after a resumption the steps that will be repeated are cut off
// first, in a new file that takes the place of the old one.
class TrainLog {
 public:
  // Throws Error when the disk refuses, as add() does.
  TrainLog(const std::filesystem::path& path, int64_t last_step);
  void add(const TrainLogLine& line);

 private:
  std::filesystem::path path_;
  std::ofstream file_;
};

}  // namespace pronghorn
