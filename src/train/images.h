// Images with a class each: folders of them, examples to learn from, and what a model says.
#pragma once

#include <cstdint>
#include <filesystem>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/image.h"
#include "model/model.h"
#include "train/data_source.h"

namespace pronghorn {

// Where tasks are named, this one stands for images of folders; "captions" in train/captions.h.
inline bool is_images_task(std::string_view name) { return name == "images"; }

// Images of one size.
struct ImageSet {
  int64_t width = 0, height = 0, channels = 0;
  std::vector<std::string> classes;  // sorted
  std::vector<uint8_t> pixels;       // [images, height, width, channels]
  std::vector<int32_t> labels;       // places in `classes`

  int64_t size() const { return std::ssize(labels); }
  int64_t image_bytes() const { return width * height * channels; }
  const uint8_t* image(int64_t index) const { return pixels.data() + index * image_bytes(); }
  // Changes when a pixel, a class or an image's class does.
  uint64_t hash() const;
};

// The images of a folder that has a sub-folder for each class, named after it. Where `classes` is
// not empty, each must be one of these. Files of other kinds and hidden ones are passed over.
// Throws Error for a folder without classes or images, for files that are no images, and unless all
// have the size and the channels of the first.
ImageSet read_images(const std::filesystem::path& folder,
                     const std::vector<std::string>& classes = {});

// The two parts of FOLDER: train/CLASS/*.png and test/CLASS/*.png, of the same size. A class need
// not be in both, but all of the test must be in the training part.
struct ImageFolder {
  ImageSet train, test;
  std::string identity() const;  // as hash(), of both: guards resumption
};
ImageFolder read_image_folder(const std::filesystem::path& folder);

// Adds a file's image to the set. Throws Error for one of another size than those before it.
void add_image_file(ImageSet& set, const std::filesystem::path& file, int32_t label);

// "32 by 32 pixels with one channel"
std::string size_text(int64_t width, int64_t height, int64_t channels);

// Which image an example shows, and how far it is moved, up to `shift` pixels in both directions at
// random. Each epoch visits the images in a new order, a function of (seed, epoch). Held-out
// examples are those of the test part in order, which are not moved.
class ImageOrder {
 public:
  // The sets must outlive it. Throws Error if they are not of this configuration's size.
  ImageOrder(const ImageConfig& config, const ImageSet& train, const ImageSet& test, int64_t shift,
             uint64_t seed);

  struct Choice {
    int32_t number = 0;  // stands for the image and how far it is moved
    bool held_out = false;
    int32_t label = 0;
  };
  Choice choose(uint64_t index);
  // The numbers of such an image's rows, as write_rows() has them.
  void write(int32_t number, float* rows) const;

 private:
  void start_epoch(uint64_t epoch);

  ImageConfig config_;
  const ImageSet &train_, &test_;
  int64_t shift_;
  uint64_t seed_;
  std::mutex mutex_;
  uint64_t epoch_ = ~uint64_t{0};
  std::vector<uint32_t> order_;
};

// Examples of an image each, in an ImageOrder: all rows but the asked one have no target. The
// tokens of one stand for the image.
class ImageSource final : public DataSource {
 public:
  // images must outlive it. Throws Error if they are not images of this configuration.
  ImageSource(const ImageConfig& config, const ImageFolder& images, int64_t shift, uint64_t seed);

  int64_t length() const override { return config_.rows(); }
  int64_t vocab_size() const override { return std::ssize(images_.train.classes); }
  void fill(uint64_t index, std::span<int32_t> tokens, std::span<int32_t> targets) override;
  Batch batch(std::span<const int32_t> tokens) const override;
  int64_t held_out_examples() const override { return images_.test.size(); }
  double chance() const override { return 1 / static_cast<double>(vocab_size()); }

 private:
  ImageConfig config_;
  const ImageFolder& images_;
  ImageOrder order_;
};

// The logarithms of the probabilities of an image's classes, for each image. Throws Error for an
// image of another size, or a model of texts.
std::vector<std::vector<double>> classify(const Model& model, Precision precision,
                                          std::span<const Image> images);

}  // namespace pronghorn
