#include "api/parts.h"
#include "base/error.h"
#include "base/log.h"
#include "train/sound.h"

namespace pronghorn {

SoundModel::SoundModel(std::shared_ptr<const Model> model) : model_(std::move(model)) {}

SoundModel SoundModel::load(const std::filesystem::path& checkpoint) {
  set_up_messages();
  std::shared_ptr<const Model> model = Model::load(checkpoint);
  require(model->config().sound.has_value(), checkpoint.string(), "is a model of {}, not of sound",
          model->config().subject());
  return SoundModel(std::move(model));
}

Transcript SoundModel::transcribe(const std::filesystem::path& sound, Rounding rounding) const {
  const Sound read = read_sound_file(sound);
  const double start = now_seconds();
  std::string text =
      pronghorn::transcribe(*model_, precision_of(rounding, *model_), read, sound.string());
  return {std::move(text), read.seconds(), now_seconds() - start};
}

}  // namespace pronghorn
