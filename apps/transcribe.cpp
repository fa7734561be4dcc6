// pronghorn transcribe: what is said in sounds.
#include <memory>

#include "base/quote.h"
#include "command.h"

namespace pronghorn::app {
namespace {

struct TranscribeOptions : Common {
  std::filesystem::path model;
  std::vector<std::filesystem::path> sounds;
  Rounding rounding = Rounding::stored;
};

void run(const TranscribeOptions& options) {
  const SoundModel model = SoundModel::load(options.model);
  nlohmann::json json = nlohmann::json::array();
  for (const std::filesystem::path& file : options.sounds) {
    const Transcript said = model.transcribe(file, options.rounding);
    json.push_back({{"sound", file.string()},
                    {"text", said.text},
                    {"sound_seconds", said.sound_seconds},
                    {"seconds", said.seconds}});
    if (options.json) continue;
    fmt::print("{}  {}\n", printable(file.string(), kQuoteLength), said.text);
  }
  if (options.json) print_json(json);
}

}  // namespace

void add_transcribe(CLI::App& app) {
  CLI::App* command = app.add_subcommand("transcribe", "Write down what is said in sounds (.wav)");
  auto options = std::make_shared<TranscribeOptions>();
  command->add_option("model", options->model, "checkpoint directory of a model of sound")
      ->required();
  command->add_option("sounds", options->sounds, "WAV files of the rate of those it learnt from")
      ->required();
  add_precision_option(*command, options->rounding);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
