// pronghorn transcribe: what is said in sounds.
#include <memory>

#include "base/error.h"
#include "base/log.h"
#include "base/quote.h"
#include "command.h"
#include "model/weight_bytes.h"
#include "train/sound.h"

namespace pronghorn::app {
namespace {

struct TranscribeOptions : Common {
  std::filesystem::path model;
  std::vector<std::filesystem::path> sounds;
  std::optional<Precision> precision;
};

void run(const TranscribeOptions& options) {
  const std::unique_ptr<Model> model = Model::load(options.model);
  require(model->config().sound.has_value(), options.model.string(), "is not a model of sound");
  const Precision precision = options.precision.value_or(stored_precision(*model));
  nlohmann::json json = nlohmann::json::array();
  for (const std::filesystem::path& file : options.sounds) {
    const Sound sound = read_sound_file(file);
    const double start = now_seconds();
    const std::string text = transcribe(*model, precision, sound, file.string());
    json.push_back({{"sound", file.string()},
                    {"text", text},
                    {"sound_seconds", sound.seconds()},
                    {"seconds", now_seconds() - start}});
    if (options.json) continue;
    fmt::print("{}  {}\n", printable(file.string(), kQuoteLength), text);
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
  add_precision_option(*command, options->precision);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
