// A model that says what is on an image: "image" of a configuration.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "formats/json.h"
#include "layers/layer.h"
#include "tensor/batch.h"

namespace pronghorn {

struct ModelConfig;

// Rows are patches of an image (ViT, arXiv 2010.11929, section 3.1): squares of patch x patch
// pixels that do not overlap, in raster order, each a row of its numbers. Its class is read from
// the row of a class token, or from the mean of all rows.
struct ImageConfig {
  // first and middle: a class token before the patches (ViT), or after half of them (Vision Mamba,
  // arXiv 2401.09417, section 3.4); mean: there is none.
  enum class Pool { mean, first, middle };

  // Pixels, and numbers of each: 1 grey, 3 colours. 0: decided with the images.
  int64_t width = 0, height = 0, channels = 0;
  int64_t patch = 0;
  Pool pool = Pool::mean;
  bool learned_positions = true;  // an embedding for each place, added to its row
  // As in a diffusion model: passes of a scan with the same weights, instead of weights of their
  // own.
  bool shared_directions = false;
  std::vector<std::string> classes;  // their names; empty: decided with the images

  bool sized() const { return width > 0; }
  int64_t grid_width() const { return width / patch; }
  int64_t grid_height() const { return height / patch; }
  int64_t patches() const { return grid_width() * grid_height(); }
  int64_t rows() const { return patches() + (pool == Pool::mean ? 0 : 1); }
  // The class token's row; -1: there is none.
  int64_t token_row() const {
    return pool == Pool::mean ? -1 : pool == Pool::first ? 0 : patches() / 2;
  }
  // The row whose scores are an image's.
  int64_t asked_row() const { return pool == Pool::mean ? 0 : token_row(); }
  // Numbers of a row: those of the pixels of a patch, row after row, and with a class token one
  // more, which is 1 in its row, the others of which are 0. So its embedding is a column of the
  // matrix that embeds patches.
  int64_t features() const { return patch * patch * channels + (pool == Pool::mean ? 0 : 1); }
};

// Throws Error for what ConfigReader refuses, and for sizes that are no whole number of patches.
ImageConfig read_image(ConfigReader reader);
nlohmann::json write_image(const ImageConfig& config);

// Throws Error for parts of a model that images have no use for. reader: of the model.
void check_image(const ModelConfig& config, ConfigReader& reader);

// Images that a model of texts sees: "vision" of a configuration, with "patch", "width", "height"
// and "channels". Patches are rows of the sequence as tokens are, in raster order before the text,
// each through one layer (the projector of LLaVA, arXiv 2304.08485, on pixels themselves, as in
// Fuyu):
//   row = norm(W pixels + b)
// There is no pool, no class and no embedding of places: a row's place is its position.
ImageConfig read_vision(ConfigReader reader);
nlohmann::json write_vision(const ImageConfig& config);
// Throws Error for parts of a model that see tokens only. reader: of the model.
void check_vision(const ModelConfig& config, ConfigReader& reader);

// What is scanned in a model: sounds have one direction and its opposite, texts are not scanned.
enum class ScansOf { none, images, sound };

// What a mixer that sees earlier rows only does in a block, by the block's "scan": both unless it
// says something else, none where nothing is scanned. Throws Error for a scan that there is not.
Scan read_scan(ConfigReader& reader, ScansOf scans);
std::string_view name_of(Scan scan);

// Gives a model that is to be trained the sizes and classes of its images. Throws Error if its
// configuration says others.
void set_images(ModelConfig& config, int64_t width, int64_t height, int64_t channels,
                std::vector<std::string> classes);

// The batch with segments that see all of themselves. Throws Error unless each is a whole image,
// without a state.
CheckedBatch whole_images(const CheckedBatch& batch, const ImageConfig& config);

// Adds an image to a batch without its rows' numbers: positions in order, coordinates (row and
// column in the grid of patches; -1 of a class token), and a segment.
void add_image(Batch& batch, const ImageConfig& config);

// The numbers of an image's rows, [rows(), features()]: pixels from [0, 255] to [-1, 1]. pixels:
// height x width x channels bytes. The image is moved right and down by that many pixels, with
// those of its edge in the place of what is missing.
void write_rows(const ImageConfig& config, const uint8_t* pixels, int64_t right, int64_t down,
                float* rows);

}  // namespace pronghorn
