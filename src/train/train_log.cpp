#include "train/train_log.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"

namespace pronghorn {
namespace {

std::string text_of(const TrainLogLine& line) {
  nlohmann::ordered_json json = {{"step", line.step},
                                 {"tokens", line.tokens},
                                 {"loss", line.loss},
                                 {"lr", line.learning_rate},
                                 {"gradient_norm", line.gradient_norm},
                                 {"seconds", line.seconds},
                                 {"tokens_per_second", line.tokens_per_second}};
  if (!line.layer_losses.empty()) json["layer_losses"] = line.layer_losses;
  if (line.expert_shares) {
    json["expert_shares"] = {{"least", line.expert_shares->least},
                             {"most", line.expert_shares->most}};
  }
  if (line.held_out_bits_per_byte) json["held_out_bits_per_byte"] = *line.held_out_bits_per_byte;
  return json.dump() + "\n";
}

// Numbers of a log line; 0 where they are missing or something else.
double number_at(const nlohmann::json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number() ? found->get<double>() : 0;
}
int64_t count_at(const nlohmann::json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number_integer() ? found->get<int64_t>() : 0;
}

}  // namespace

std::optional<TrainLogLine> parse_train_log_line(std::string_view text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (json.is_discarded() || !json.is_object()) return std::nullopt;
  TrainLogLine line;
  line.step = count_at(json, "step");
  if (line.step < 1) return std::nullopt;
  line.tokens = count_at(json, "tokens");
  line.loss = number_at(json, "loss");
  line.learning_rate = number_at(json, "lr");
  line.gradient_norm = number_at(json, "gradient_norm");
  line.seconds = number_at(json, "seconds");
  line.tokens_per_second = number_at(json, "tokens_per_second");
  if (const auto losses = json.find("layer_losses"); losses != json.end()) {
    for (const auto& [name, value] : losses->items()) {
      if (value.is_number()) line.layer_losses[name] = value.get<double>();
    }
  }
  const auto shares = json.find("expert_shares");
  if (shares != json.end() && shares->is_object()) {
    line.expert_shares = {number_at(*shares, "least"), number_at(*shares, "most")};
  }
  if (json.contains("held_out_bits_per_byte")) {
    line.held_out_bits_per_byte = number_at(json, "held_out_bits_per_byte");
  }
  return line;
}

std::vector<TrainLogLine> read_train_log(const std::filesystem::path& path, int64_t last_step) {
  std::vector<TrainLogLine> lines;
  std::ifstream file(path);
  std::string text;
  while (std::getline(file, text)) {
    const std::optional<TrainLogLine> line = parse_train_log_line(text);
    if (!line) continue;
    if (line->step > last_step) break;
    lines.push_back(*line);
  }
  return lines;
}

TrainLog::TrainLog(const std::filesystem::path& path, int64_t last_step) : path_(path) {
  std::string kept;
  for (const TrainLogLine& line : read_train_log(path, last_step)) kept += text_of(line);
  write_file(path, kept);
  file_.open(path, std::ios::app);
}

void TrainLog::add(const TrainLogLine& line) {
  file_ << text_of(line) << std::flush;
  require(file_.good(), path_.string(), "cannot write the log (is the disk full?)");
}

}  // namespace pronghorn
