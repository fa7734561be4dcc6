// pronghorn transcribe: what is said in sounds.
#include <memory>

#include "base/error.h"
#include "base/quote.h"
#include "command.h"

namespace pronghorn::app {
namespace {

struct TranscribeOptions : Common {
  std::filesystem::path model;
  std::vector<std::filesystem::path> sounds;
  Rounding rounding = Rounding::stored;
};

constexpr size_t kMostOfAnError = 400;  // of its line, whatever a file's name is

void run(const TranscribeOptions& options) {
  const SoundModel model = SoundModel::load(options.model);
  nlohmann::json json = nlohmann::json::array();
  size_t failed = 0;
  for (const std::filesystem::path& file : options.sounds) {
    Transcript said;
    try {
      said = model.transcribe(file, options.rounding);
    } catch (const Error& error) {
      // A single one ends the command as any error does; of several the others are still wanted.
      if (options.sounds.size() == 1) throw;
      ++failed;
      json.push_back({{"sound", file.string()}, {"error", error.what()}});
      fmt::print(stderr, "{}\n", printable(error.what(), kMostOfAnError));
      continue;
    }
    json.push_back({{"sound", file.string()},
                    {"text", said.text},
                    {"sound_seconds", said.sound_seconds},
                    {"seconds", said.seconds}});
    if (options.json) continue;
    fmt::print("{}  {}\n", printable(file.string(), kQuoteLength), said.text);
  }
  if (options.json) print_json(json);
  if (failed == 0) return;
  throw Error(
      "transcribe",
      fmt::format("{} of {} sounds could not be written down", failed, options.sounds.size()),
      "the lines above say why");
}

}  // namespace

void add_transcribe(CLI::App& app) {
  CLI::App* command = app.add_subcommand("transcribe", "Write down what is said in sounds (.wav)");
  auto options = std::make_shared<TranscribeOptions>();
  command->add_option("model", options->model, "checkpoint directory of a model of sound")
      ->required();
  command
      ->add_option("sounds", options->sounds,
                   "WAV files; one that cannot be written down does not stop the others")
      ->required();
  add_precision_option(*command, options->rounding);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
