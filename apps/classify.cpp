// pronghorn classify: what is on images.
#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>

#include "base/error.h"
#include "base/log.h"
#include "base/quote.h"
#include "command.h"
#include "model/weight_bytes.h"
#include "train/images.h"

namespace pronghorn::app {
namespace {

struct ClassifyOptions : Common {
  std::filesystem::path model;
  std::vector<std::filesystem::path> images;
  size_t top = 3;
  std::optional<Precision> precision;
};

void run(const ClassifyOptions& options) {
  const std::unique_ptr<Model> model = Model::load(options.model);
  require(model->config().image.has_value(), options.model.string(),
          "is a model of texts, not of images");
  const std::vector<std::string>& classes = model->config().image->classes;
  std::vector<Image> images;
  for (const std::filesystem::path& file : options.images) images.push_back(read_image_file(file));
  const Precision precision = options.precision.value_or(stored_precision(*model));
  const std::vector<std::vector<double>> scores = classify(*model, precision, images);
  nlohmann::json json = nlohmann::json::array();
  for (size_t i = 0; i < images.size(); ++i) {
    std::vector<size_t> order(scores[i].size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, std::greater<>(), [&](size_t c) { return scores[i][c]; });
    order.resize(std::min(order.size(), options.top));
    nlohmann::json found = nlohmann::json::array();
    std::string line;
    for (const size_t c : order) {
      const double share = std::exp(scores[i][c]);
      const std::string name = c < classes.size() ? classes[c] : std::to_string(c);
      found.push_back({{"class", name}, {"probability", share}});
      line += fmt::format("  {} {:.1f}%", printable(name, kQuoteLength), 100 * share);
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
      ->check(positive_integer());
  add_precision_option(*command, options->precision);
  add_common_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace pronghorn::app
