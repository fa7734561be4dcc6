#include "train/images.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "base/quote.h"
#include "base/random.h"
#include "base/threads.h"
#include "ops/subsample.h"
#include "tensor/pool.h"

namespace pronghorn {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxShift = 64;
constexpr int64_t kForwardRows = 8192;  // of classify(): as much as evaluation takes at a time

std::vector<fs::path> sorted_entries(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> entries;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    if (!at->path().filename().string().starts_with('.')) entries.push_back(at->path());
  }
  require(!error, folder.string(), "cannot be read as a folder: {}", error.message());
  std::sort(entries.begin(), entries.end());
  return entries;
}

}  // namespace

std::string size_text(int64_t width, int64_t height, int64_t channels) {
  return fmt::format("{} by {} pixels with {}", width, height,
                     channels == 1 ? "one channel" : fmt::format("{} channels", channels));
}

void add_image_file(ImageSet& set, const fs::path& file, int32_t label) {
  const Image image = read_image_file(file);
  if (set.labels.empty()) {
    set.width = image.width;
    set.height = image.height;
    set.channels = image.channels;
  }
  if (image.width != set.width || image.height != set.height || image.channels != set.channels) {
    throw Error(file.string(),
                fmt::format("has {}, the images before it {}",
                            size_text(image.width, image.height, image.channels),
                            size_text(set.width, set.height, set.channels)),
                "bring all to one size, and all to grey or to colours");
  }
  require(set.labels.size() < (size_t{1} << 24), file.string(), "is one image too many");
  set.pixels.insert(set.pixels.end(), image.pixels.begin(), image.pixels.end());
  set.labels.push_back(label);
}

uint64_t ImageSet::hash() const {
  uint64_t hash = XXH3_64bits(pixels.data(), pixels.size());
  hash = XXH3_64bits_withSeed(labels.data(), labels.size() * sizeof(int32_t), hash);
  const std::string names = fmt::format("{} {} {} {}", width, height, channels, classes);
  return XXH3_64bits_withSeed(names.data(), names.size(), hash);
}

ImageSet read_images(const fs::path& folder, const std::vector<std::string>& classes) {
  ImageSet set;
  std::vector<fs::path> places;
  for (const fs::path& place : sorted_entries(folder)) {
    if (!fs::is_directory(place)) continue;
    places.push_back(place);
    if (classes.empty()) set.classes.push_back(place.filename().string());
  }
  if (places.empty()) {
    throw Error(folder.string(), "has no folders of images", "it needs one for each class");
  }
  if (!classes.empty()) set.classes = classes;
  for (const fs::path& place : places) {
    const std::string name = place.filename().string();
    const auto found = std::ranges::find(set.classes, name);
    require(found != set.classes.end(), place.string(), "{} is not one of the {} classes",
            quote(name), set.classes.size());
    const auto label = static_cast<int32_t>(found - set.classes.begin());
    for (const fs::path& file : sorted_entries(place)) {
      if (is_image_file(file)) add_image_file(set, file, label);
    }
  }
  if (set.labels.empty()) {
    throw Error(folder.string(), "has no images in its folders", ".png, .pgm and .ppm are read");
  }
  return set;
}

std::string ImageFolder::identity() const {
  return fmt::format("images {:016x} {:016x}", train.hash(), test.hash());
}

ImageFolder read_image_folder(const fs::path& folder) {
  for (const char* part : {"train", "test"}) {
    if (fs::is_directory(folder / part)) continue;
    throw Error(folder.string(), fmt::format("has no folder {}", quote(part)),
                "it needs train/CLASS and test/CLASS with images");
  }
  ImageFolder images;
  images.train = read_images(folder / "train");
  images.test = read_images(folder / "test", images.train.classes);
  const ImageSet &train = images.train, &test = images.test;
  require(train.classes.size() >= 2, (folder / "train").string(), "has a single class");
  require(
      train.width == test.width && train.height == test.height && train.channels == test.channels,
      (folder / "test").string(), "has images of {}, train of {}",
      size_text(test.width, test.height, test.channels),
      size_text(train.width, train.height, train.channels));
  return images;
}

ImageOrder::ImageOrder(const ImageConfig& config, const ImageSet& train, const ImageSet& test,
                       int64_t shift, uint64_t seed)
    : config_(config), train_(train), test_(test), shift_(shift), seed_(seed) {
  require(shift >= 0 && shift <= kMaxShift, "image_shift", "{} pixels (0 to {})", shift, kMaxShift);
  for (const ImageSet* set : {&train, &test}) {
    require(config.width == set->width && config.height == set->height &&
                config.channels == set->channels,
            "images", "of {} for a model of {}", size_text(set->width, set->height, set->channels),
            size_text(config.width, config.height, config.channels));
  }
  const int64_t steps = 2 * shift + 1;
  require(train.size() + test.size() <= INT32_MAX / (steps * steps), "image_shift",
          "{} images in {} places are too many", train.size() + test.size(), steps * steps);
  order_.resize(static_cast<size_t>(train.size()));
}

void ImageOrder::start_epoch(uint64_t epoch) {
  Random random(seed_ + epoch * 0x9E3779B97F4A7C15ull, "image order");
  std::iota(order_.begin(), order_.end(), 0u);
  for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random.below(i)]);
  epoch_ = epoch;
}

// Those of the test come after those of the training.
ImageOrder::Choice ImageOrder::choose(uint64_t index) {
  const auto images = static_cast<uint64_t>(train_.size());
  const auto steps = static_cast<uint64_t>(2 * shift_ + 1);
  uint64_t image = 0, moved = steps * steps / 2;  // the middle: not at all
  Choice choice;
  choice.held_out = index >= kHeldOutExamples;
  if (choice.held_out) {
    const uint64_t number = (index - kHeldOutExamples) % static_cast<uint64_t>(test_.size());
    image = images + number;
    choice.label = test_.labels[number];
  } else {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (index / images != epoch_) start_epoch(index / images);
    image = order_[index % images];
    choice.label = train_.labels[image];
    moved = Random(seed_ ^ (index * 0x9E3779B97F4A7C15ull), "image shift").below(steps * steps);
  }
  choice.number = static_cast<int32_t>(image * steps * steps + moved);
  return choice;
}

void ImageOrder::write(int32_t number, float* rows) const {
  const int64_t steps = 2 * shift_ + 1;
  const int64_t image = number / (steps * steps), moved = number % (steps * steps);
  const int64_t held_out = image - train_.size();
  const uint8_t* pixels = held_out < 0 ? train_.image(image) : test_.image(held_out);
  write_rows(config_, pixels, moved % steps - shift_, moved / steps - shift_, rows);
}

ImageSource::ImageSource(const ImageConfig& config, const ImageFolder& images, int64_t shift,
                         uint64_t seed)
    : config_(config), images_(images), order_(config, images.train, images.test, shift, seed) {
  require(config.classes == images.train.classes, "images", "of {} classes for a model of {}",
          images.train.classes.size(), config.classes.size());
}

void ImageSource::fill(uint64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) {
  const ImageOrder::Choice choice = order_.choose(index);
  std::fill(targets.begin(), targets.end(), -1);
  targets[static_cast<size_t>(config_.asked_row())] = choice.label;
  std::fill(tokens.begin(), tokens.end(), choice.number);
}

Batch ImageSource::batch(std::span<const int32_t> tokens) const {
  const int64_t count = std::ssize(tokens) / length(), features = config_.features();
  Batch batch;
  PooledVector<float> rows(tokens.size() * static_cast<size_t>(features));
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      order_.write(tokens[static_cast<size_t>(i * length())],
                   rows.data() + i * length() * features);
    }
  });
  for (int64_t i = 0; i < count; ++i) add_image(batch, config_);
  batch.embeddings = Tensor::from(rows, {std::ssize(tokens), features});
  return batch;
}

std::vector<std::vector<double>> classify(const Model& model, Precision precision,
                                          std::span<const Image> images) {
  const std::optional<ImageConfig>& image = model.config().image;
  require(image.has_value(), "classify", "the model is of {}, not of images",
          model.config().subject());
  const ImageConfig& config = *image;
  Context context;
  context.precision = precision;
  std::vector<std::vector<double>> all;
  const int64_t rows = config.rows(), together = std::max<int64_t>(1, kForwardRows / rows);
  for (int64_t first = 0; first < std::ssize(images); first += together) {
    const auto part =
        images.subspan(static_cast<size_t>(first),
                       static_cast<size_t>(std::min(together, std::ssize(images) - first)));
    Batch batch;
    std::vector<int32_t> asked;
    PooledVector<float> numbers(part.size() * static_cast<size_t>(rows * config.features()));
    for (const Image& one : part) {
      require(one.width == config.width && one.height == config.height &&
                  one.channels == config.channels,
              "classify", "an image of {} for a model of {}",
              size_text(one.width, one.height, one.channels),
              size_text(config.width, config.height, config.channels));
      write_rows(config, one.pixels.data(), 0, 0,
                 numbers.data() + batch.rows() * config.features());
      asked.push_back(static_cast<int32_t>(batch.rows() + config.asked_row()));
      add_image(batch, config);
    }
    batch.embeddings = Tensor::from(numbers, {batch.rows(), config.features()});
    const Tensor hidden = model.forward(context, batch);
    const Tensor logits = model.logits(context, gather_rows(context, hidden, asked));
    const PooledVector<float> scores = logits.read();
    const auto classes = static_cast<size_t>(logits.columns());
    for (size_t i = 0; i < part.size(); ++i) {
      std::vector<double> row(scores.begin() + static_cast<int64_t>(i * classes),
                              scores.begin() + static_cast<int64_t>((i + 1) * classes));
      const double most = *std::ranges::max_element(row);
      double sum = 0;
      for (const double score : row) sum += std::exp(score - most);
      for (double& score : row) score -= most + std::log(sum);
      all.push_back(std::move(row));
    }
  }
  return all;
}

}  // namespace pronghorn
