#include "model/diffusion_config.h"

#include <fmt/format.h>

#include <utility>

#include "base/error.h"
#include "model/config.h"

namespace pronghorn {
namespace {

constexpr int64_t kMostBlock = 1 << 16;

void check_segment(const CheckedBatch& batch, const Segment& segment, int64_t block) {
  constexpr const char* kWhere = "diffusion model";
  require(segment.parents.empty(), kWhere,
          "sees both ways: guesses cannot be checked in a token tree");
  if (block == 0) {
    if (segment.state == nullptr || segment.mask != Mask::causal) return;
    throw Error(kWhere, "sees its texts whole, so none is carried on with a state",
                "give it whole texts, or a model with blocks");
  }
  if (segment.length == 0 || segment.mask == Mask::replace) return;
  const int32_t first = batch.positions(segment).front();
  require(first % block == 0, kWhere, "reads blocks of {} tokens, none of which begins at {}",
          block, first);
}

}  // namespace

DiffusionConfig read_diffusion(ConfigReader reader, int64_t vocab_size) {
  DiffusionConfig config;
  require(vocab_size != 1, reader.where(), "in a vocabulary of a single token");
  const int64_t most = vocab_size > 0 ? vocab_size - 1 : INT32_MAX - 1;
  if (reader.has("mask_token") || vocab_size > 0) {
    config.mask_token = reader.integer("mask_token", most, 0, most);
  } else {
    reader.ignore("mask_token");
  }
  config.block = reader.integer("block", 0, 0, kMostBlock);
  config.shift = reader.boolean("shift", false);
  config.shared_directions = reader.boolean("shared_directions", false);
  reader.finish();
  require(config.block == 0 || !config.shift, reader.path("shift"),
          "true beside blocks of {}: the first of a block has no row before it there",
          config.block);
  return config;
}

nlohmann::json write_diffusion(const DiffusionConfig& config) {
  nlohmann::json json = {{"block", config.block},
                         {"shift", config.shift},
                         {"shared_directions", config.shared_directions}};
  if (config.mask_token >= 0) json["mask_token"] = config.mask_token;
  return json;
}

void check_diffusion(const ModelConfig& config, const ConfigReader& reader) {
  if (!config.diffusion) return;
  const auto refuse = [&](const char* key, const char* what) {
    throw Error(reader.path(key), fmt::format("{} in a model that sees both ways", what),
                "leave out one of the two");
  };
  if (config.span_count() > 0) refuse("subsample", "subsampled spans");
  if (config.mtp.heads > 0) refuse("mtp", "heads for multi-token prediction");
  if (config.prefix_tokens > 0) refuse("prefix_tokens", "learned rows before a text");
}

void set_vocabulary(ModelConfig& config, int64_t tokens) {
  config.vocab_size = tokens;
  if (!config.diffusion) return;
  if (config.diffusion->mask_token < 0) config.diffusion->mask_token = tokens;
  config.vocab_size = std::max(tokens, config.diffusion->mask_token + 1);
}

CheckedBatch with_masks(const CheckedBatch& batch, const DiffusionConfig& config) {
  Batch masked;
  masked.tokens.assign(batch.tokens().begin(), batch.tokens().end());
  masked.embeddings = batch.embeddings();
  masked.positions.assign(batch.positions().begin(), batch.positions().end());
  masked.coordinates.assign(batch.coordinates().begin(), batch.coordinates().end());
  for (Segment segment : batch.segments()) {
    check_segment(batch, segment, config.block);
    if (segment.mask == Mask::causal) {
      segment.mask = config.block > 0 ? Mask::blocks : Mask::full;
      segment.block = config.block;
    }
    masked.segments.push_back(std::move(segment));
  }
  return CheckedBatch(std::move(masked));
}

}  // namespace pronghorn
