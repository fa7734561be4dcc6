// pronghorn classify: what is on images.
#include <algorithm>
#include <memory>

#include "base/quote.h"
#include "command.h"

namespace pronghorn::app {
namespace {

struct ClassifyOptions : Common {
  std::filesystem::path model;
  std::vector<std::filesystem::path> images;
  size_t top = 3;
  Rounding rounding = Rounding::stored;
};

void run(const ClassifyOptions& options) {
  const ImageModel model = ImageModel::load(options.model);
  const auto images = model.classify(options.images, options.rounding);
  nlohmann::json json = nlohmann::json::array();
  for (size_t i = 0; i < images.size(); ++i) {
    nlohmann::json found = nlohmann::json::array();
    std::string line;
    for (size_t rank = 0; rank < std::min(images[i].size(), options.top); ++rank) {
      const auto& [name, probability] = images[i][rank];
      found.push_back({{"class", name}, {"probability", probability}});
      line += fmt::format("  {} {:.1f}%", printable(name, kQuoteLength), 100 * probability);
    }
    json.push_back({{"image", options.images[i].string()}, {"classes", found}});
    if (!options.json) {
      fmt::print("{}{}\n", printable(options.images[i].string(), kQuoteLength), line);
    }
  }
  if (options.json) print_json(json);
}

}  // namespace

void add_classify(CLI::App& app) {
  CLI::App* command = app.add_subcommand("classify", "Say what is on images (.png, .pgm, .ppm)");
  auto options = std::make_shared<ClassifyOptions>();
  command->add_option("model", options->model, "checkpoint directory of a model of images")
      ->required();
  command->add_option("images", options->images, "images of the size of those it learnt from")
      ->required();
  command->add_option("--top", options->top, "classes to name of each (default 3)")
      ->transform(positive_integer());
  add_precision_option(*command, options->rounding);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
