#include "model/image_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <span>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/quote.h"
#include "model/config.h"

namespace pronghorn {
namespace {

constexpr int64_t kMaxSide = 1 << 14;
constexpr int64_t kMaxPatch = 256;
constexpr size_t kMaxClasses = 1 << 16;
constexpr size_t kMaxClassName = 1024;

// In the order of the values.
constexpr std::array<std::string_view, 3> kPools = {"mean", "first", "middle"};
constexpr std::array<std::string_view, 4> kScans = {"none", "raster", "both", "cross"};

void check_sizes(const ImageConfig& config, std::string_view where) {
  require(config.width % config.patch == 0 && config.height % config.patch == 0, where,
          "images of {} by {} pixels are no whole number of patches of {}", config.width,
          config.height, config.patch);
}

std::vector<std::string> read_classes(const nlohmann::json& list, const std::string& where) {
  require(list.is_array() && list.size() >= 2 && list.size() <= kMaxClasses, where,
          "must be a list of 2 to {} names", kMaxClasses);
  std::vector<std::string> classes;
  std::set<std::string> known;
  for (const nlohmann::json& name : list) {
    require(name.is_string() && name.get_ref<const std::string&>().size() <= kMaxClassName, where,
            "{} is no name of a class", shown_json(name));
    classes.push_back(name);
    require(known.insert(classes.back()).second, where, "{} is there twice", quote(classes.back()));
  }
  return classes;
}

void read_sizes(ConfigReader& reader, ImageConfig& config) {
  config.width = reader.integer("width", 0, 1, kMaxSide);
  config.height = reader.integer("height", config.width, 1, kMaxSide);
  config.channels = reader.integer("channels", 0, 1, 3);
  const bool sized = config.width > 0;
  require((config.height > 0) == sized && (config.channels > 0) == sized, reader.where(),
          "width, height and channels are given together, or none of them");
  require(config.channels != 2, reader.path("channels"), "2 (1 is grey, 3 are colours)");
  check_sizes(config, reader.where());
}

// What mixers need of an image that not every one has.
void check_mixer(const nlohmann::json& mixer, const ImageConfig& image, const std::string& where) {
  if (mixer.value("convolution", "") == "grid" && image.pool != ImageConfig::Pool::mean) {
    throw Error(where + ".convolution", "\"grid\" beside a class token, which is at no place of it",
                "choose \"causal\", or the pool \"mean\"");
  }
  const auto rope = mixer.find("rope");
  if (rope == mixer.end() || !rope->is_object()) return;
  // Pairs of channels for rows and as many for columns.
  const auto rotary_dim = rope->value("rotary_dim", int64_t{0});
  if (rotary_dim % 4 != 0) {
    throw Error(where + ".rope.rotary_dim",
                fmt::format("{} channels for positions in two dimensions", rotary_dim),
                "choose a multiple of 4");
  }
}

}  // namespace

ImageConfig read_image(ConfigReader reader) {
  ImageConfig config;
  config.patch = reader.integer("patch", {}, 1, kMaxPatch);
  const std::string pool = reader.one_of("pool", kPools, std::string(kPools[0]));
  config.pool = static_cast<ImageConfig::Pool>(std::ranges::find(kPools, pool) - kPools.begin());
  config.learned_positions = reader.boolean("learned_positions", true);
  config.shared_directions = reader.boolean("shared_directions", false);
  read_sizes(reader, config);
  if (reader.has("classes")) {
    config.classes = read_classes(reader.raw("classes"), reader.path("classes"));
  } else {
    reader.ignore("classes");
  }
  reader.finish();
  return config;
}

nlohmann::json write_image(const ImageConfig& config) {
  nlohmann::json json = {{"patch", config.patch},
                         {"pool", kPools[static_cast<size_t>(config.pool)]},
                         {"learned_positions", config.learned_positions},
                         {"shared_directions", config.shared_directions}};
  if (config.sized()) {
    json["width"] = config.width;
    json["height"] = config.height;
    json["channels"] = config.channels;
  }
  if (!config.classes.empty()) json["classes"] = config.classes;
  return json;
}

void check_image(const ModelConfig& config, ConfigReader& reader) {
  if (!config.image) return;
  const auto refuse = [&](const char* key, const char* what) {
    throw Error(reader.path(key), fmt::format("{} in a model of images", what),
                "leave out one of the two");
  };
  if (config.span_count() > 0 && !config.subsample.merges()) {
    throw Error(reader.path("subsample.type"), "spans of sequences, in a model of images",
                "\"patch_merging\" is for images");
  }
  if (config.mtp.heads > 0) refuse("mtp", "heads for multi-token prediction");
  if (config.prefix_tokens > 0) refuse("prefix_tokens", "learned rows before a text");
  if (config.diffusion) refuse("diffusion", "masked tokens");
  if (config.has_sides()) refuse("blocks", "sides, which see embeddings of tokens,");
  if (config.learned_positions > 0) {
    throw Error(reader.path("learned_positions"), "is for texts",
                "an image has \"learned_positions\" in \"image\"");
  }
  if (config.embedding_scale != 1) refuse("embedding_scale", "a factor on embeddings of tokens");
  if (reader.has("tie_embeddings") && reader.boolean("tie_embeddings", false)) {
    refuse("tie_embeddings", "embeddings of tokens");
  }
  for (const auto& [name, block] : config.blocks) {
    for (size_t i = 0; i < block.mixers.size(); ++i) {
      check_mixer(block.mixers[i], *config.image,
                  fmt::format("{}.{}.{}", reader.path("blocks"), name,
                              block.mixers.size() == 1 ? "mixer" : fmt::format("mixers[{}]", i)));
    }
  }
  const auto classes = static_cast<int64_t>(config.image->classes.size());
  require(classes == 0 || config.vocab_size == 0 || config.vocab_size == classes,
          reader.path("vocab_size"), "{} with {} classes", config.vocab_size, classes);
}

ImageConfig read_vision(ConfigReader reader) {
  ImageConfig config;
  config.patch = reader.integer("patch", {}, 1, kMaxPatch);
  config.learned_positions = false;
  read_sizes(reader, config);
  require(config.sized(), reader.where(), "width, height and channels are missing");
  reader.finish();
  return config;
}

nlohmann::json write_vision(const ImageConfig& config) {
  return {{"patch", config.patch},
          {"width", config.width},
          {"height", config.height},
          {"channels", config.channels}};
}

void check_vision(const ModelConfig& config, ConfigReader& reader) {
  if (!config.vision) return;
  const auto refuse = [&](const char* key, const char* what) {
    throw Error(reader.path(key), fmt::format("{} in a model of texts with \"vision\"", what),
                "leave out one of the two");
  };
  if (config.image) refuse("image", "classes of images");
  if (config.mtp.heads > 0) refuse("mtp", "heads for multi-token prediction");
  if (config.diffusion) refuse("diffusion", "masked tokens");
  if (config.has_sides()) refuse("blocks", "sides, which see embeddings of tokens,");
}

Scan read_scan(ConfigReader& reader, ScansOf scans) {
  if (scans == ScansOf::none) {
    require(!reader.has("scan"), reader.path("scan"),
            "is for models of images, and of sound that see both ways");
    reader.ignore("scan");
    return Scan::none;
  }
  if (scans == ScansOf::sound) {
    reader.one_of("scan", {kScans[2]}, std::string(kScans[2]));
    return Scan::both;
  }
  const std::string scan =
      reader.one_of("scan", std::span(kScans).subspan(1), std::string(kScans[2]));
  return static_cast<Scan>(std::ranges::find(kScans, scan) - kScans.begin());
}

std::string_view name_of(Scan scan) { return kScans[static_cast<size_t>(scan)]; }

void set_images(ModelConfig& config, int64_t width, int64_t height, int64_t channels,
                std::vector<std::string> classes) {
  require(config.image.has_value(), "images",
          "the configuration is of a model of {}: it has no object \"image\"", config.subject());
  ImageConfig& image = *config.image;
  require(!image.sized() ||
              (image.width == width && image.height == height && image.channels == channels),
          "images", "are {} by {} with {} channels, the model's {} by {} with {}", width, height,
          channels, image.width, image.height, image.channels);
  require(image.classes.empty() || image.classes == classes, "images",
          "their {} classes are not the {} of the model", classes.size(), image.classes.size());
  image.width = width;
  image.height = height;
  image.channels = channels;
  check_sizes(image, "images");
  image.classes = std::move(classes);
  config.vocab_size = static_cast<int64_t>(image.classes.size());
}

CheckedBatch whole_images(const CheckedBatch& batch, const ImageConfig& config) {
  constexpr const char* kWhere = "model of images";
  require(batch.embeddings().defined(), kWhere, "is given tokens in place of patches");
  Batch whole;
  whole.embeddings = batch.embeddings();
  whole.positions.assign(batch.positions().begin(), batch.positions().end());
  whole.coordinates.assign(batch.coordinates().begin(), batch.coordinates().end());
  for (Segment segment : batch.segments()) {
    require(segment.state == nullptr, kWhere,
            "sees its images whole, so none is carried on with a state");
    require(segment.length == config.rows(), kWhere, "an image of {} rows in place of {}",
            segment.length, config.rows());
    segment.mask = Mask::full;
    whole.segments.push_back(std::move(segment));
  }
  return CheckedBatch(std::move(whole));
}

void add_image(Batch& batch, const ImageConfig& config) {
  Segment segment;
  segment.first_row = batch.rows();
  segment.length = config.rows();
  batch.segments.push_back(std::move(segment));
  int64_t patch = 0;
  for (int64_t row = 0; row < config.rows(); ++row) {
    batch.positions.push_back(static_cast<int32_t>(row));
    const bool is_token = row == config.token_row();
    for (const int64_t place : {patch / config.grid_width(), patch % config.grid_width()}) {
      batch.coordinates.push_back(is_token ? -1 : static_cast<int32_t>(place));
    }
    if (!is_token) ++patch;
  }
}

void write_rows(const ImageConfig& config, const uint8_t* pixels, int64_t right, int64_t down,
                float* rows) {
  for (int64_t row = 0, patch = 0; row < config.rows(); ++row) {
    float* to = rows + row * config.features();
    if (row == config.token_row()) {
      std::fill_n(to, config.features() - 1, 0.0f);
      to[config.features() - 1] = 1;
      continue;
    }
    const int64_t top = patch / config.grid_width() * config.patch;
    const int64_t left = patch % config.grid_width() * config.patch;
    for (int64_t y = top; y < top + config.patch; ++y) {
      const int64_t from_y = std::clamp<int64_t>(y - down, 0, config.height - 1);
      for (int64_t x = left; x < left + config.patch; ++x) {
        const int64_t from_x = std::clamp<int64_t>(x - right, 0, config.width - 1);
        const uint8_t* from = pixels + (from_y * config.width + from_x) * config.channels;
        for (int64_t c = 0; c < config.channels; ++c) {
          *to++ = static_cast<float>(from[c]) / 127.5f - 1;
        }
      }
    }
    if (config.token_row() >= 0) *to = 0;
    ++patch;
  }
}

}  // namespace pronghorn
