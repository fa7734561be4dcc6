#include <algorithm>
#include <cmath>
#include <functional>

#include "api/parts.h"
#include "base/error.h"
#include "train/images.h"

namespace pronghorn {

ImageModel::ImageModel(std::shared_ptr<const Model> model) : model_(std::move(model)) {}

ImageModel ImageModel::load(const std::filesystem::path& checkpoint) {
  set_up_messages();
  std::shared_ptr<const Model> model = Model::load(checkpoint);
  require(model->config().image.has_value(), checkpoint.string(), "is a model of {}, not of images",
          model->config().subject());
  return ImageModel(std::move(model));
}

std::vector<std::vector<ImageClass>> ImageModel::classify(
    const std::vector<std::filesystem::path>& images, Rounding rounding) const {
  const std::vector<std::string>& names = model_->config().image->classes;
  std::vector<Image> read;
  for (const std::filesystem::path& file : images) read.push_back(read_image_file(file));
  std::vector<std::vector<ImageClass>> results;
  for (const std::vector<double>& scores :
       pronghorn::classify(*model_, precision_of(rounding, *model_), read)) {
    std::vector<ImageClass>& classes = results.emplace_back();
    for (size_t c = 0; c < scores.size(); ++c) {
      classes.push_back({c < names.size() ? names[c] : std::to_string(c), std::exp(scores[c])});
    }
    std::ranges::stable_sort(classes, std::greater<>(), &ImageClass::probability);
  }
  return results;
}

}  // namespace pronghorn
