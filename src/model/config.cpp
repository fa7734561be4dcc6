#include "model/config.h"

#include <algorithm>
#include <array>
#include <set>
#include <span>
#include <string_view>

#include "base/error.h"
#include "base/quote.h"
#include "formats/checkpoint_reader.h"
#include "model/block_place.h"
#include "model/config_checks.h"
#include "model/families.h"
#include "model/families/rwkv7_file.h"
#include "model/gguf_format.h"
#include "model/span_config.h"

namespace pronghorn {
namespace {

constexpr int64_t kMaxVocabulary = 1 << 22;
constexpr int64_t kMaxHidden = 1 << 17;
constexpr int64_t kMaxPositions = int64_t{1} << 24;  // of a learned table
constexpr double kMaxScale = 1e6;

// Names of values in configurations, in the order of the values; the first is the default.
constexpr std::array<std::string_view, 4> kNorms = {"before", "after", "both", "ffn"};
constexpr std::array<std::string_view, 4> kResiduals = {"sequential", "parallel", "shared",
                                                        "two_hop"};
constexpr std::array<std::string_view, 3> kNormKinds = {"rms_norm", "layer_norm", "bias_norm"};
constexpr std::array<std::string_view, 2> kMerges = {"mean_of_norms", "sum"};

// A value that one of these names says; the caller's enumeration has them in this order.
struct NamedValue {
  size_t index;
  template <typename Enum>
  operator Enum() const {
    return static_cast<Enum>(index);
  }
};

NamedValue read_name(ConfigReader& reader, std::string_view key,
                     std::span<const std::string_view> names) {
  const std::string name = reader.one_of(key, names, std::string(names.front()));
  return {static_cast<size_t>(std::ranges::find(names, name) - names.begin())};
}

LayerContext layer_context(const ModelConfig& config, char block) {
  LayerContext context;
  context.hidden_size = config.block_width(block);
  return context;
}

nlohmann::json complete_mixer(ConfigReader reader, const LayerContext& context) {
  const MixerType& type = find_mixer_type(reader.string("type"), reader.path("type"));
  return type.complete(std::move(reader), context);
}

constexpr int64_t kMostShared = 1 << 10;

SideConfig read_side(ConfigReader reader, LayerContext context) {
  SideConfig side;
  ConfigReader ffn = reader.object("ffn");
  const FeedForwardType& type = find_feed_forward_type(ffn.string("type"), ffn.path("type"));
  side.feed_forward = type.complete(std::move(ffn), context);
  context.input_size = 2 * context.hidden_size;
  side.mixer = complete_mixer(reader.object("mixer"), context);
  require(side.mixer.at("type") == "attention", reader.path("mixer"),
          "{} cannot see the stream and the embeddings (only \"attention\" can)",
          side.mixer.at("type").dump());
  side.shared = reader.integer("shared", 0, 0, kMostShared);
  reader.finish();
  return side;
}

BlockConfig::NormResidual read_norm_residual(ConfigReader reader) {
  const auto read = [&](const char* key) { return reader.number(key, 1.0, -kMaxScale, kMaxScale); };
  const BlockConfig::NormResidual factors = {read("mixer_stream"), read("mixer_part"),
                                             read("ffn_stream"), read("ffn_part")};
  reader.finish();
  return factors;
}

nlohmann::json write_norm_residual(const BlockConfig::NormResidual& factors) {
  return {{"mixer_stream", factors.mixer_stream},
          {"mixer_part", factors.mixer_part},
          {"ffn_stream", factors.ffn_stream},
          {"ffn_part", factors.ffn_part}};
}

constexpr int64_t kBypassSteps = 20000, kMaxBypassSteps = 1 << 30;  // the published schedule

BlockConfig read_block(ConfigReader reader, LayerContext context, ScansOf scans) {
  BlockConfig block;
  context.scan = block.scan = read_scan(reader, scans);
  if (reader.has("mixers")) {
    require(!reader.has("mixer"), reader.where(), "has both mixer and mixers (keep one)");
    const nlohmann::json& list = reader.raw("mixers");
    require(list.is_array() && !list.empty() && list.size() <= 16, reader.path("mixers"),
            "must be a list of 1 to 16 mixers");
    for (size_t i = 0; i < list.size(); ++i) {
      block.mixers.push_back(complete_mixer(
          reader.part(list[i], fmt::format("{}[{}]", reader.path("mixers"), i)), context));
    }
    block.merge = read_name(reader, "merge", kMerges);
  } else if (reader.has("mixer") || !reader.has("ffn")) {
    block.mixers.push_back(complete_mixer(reader.object("mixer"), context));
  }
  if (reader.has("ffn")) {
    ConfigReader ffn = reader.object("ffn");
    const FeedForwardType& type = find_feed_forward_type(ffn.string("type"), ffn.path("type"));
    block.feed_forward = type.complete(std::move(ffn), context);
  } else {
    reader.ignore("ffn");
  }
  if (reader.has("side")) {
    require(!block.mixers.empty(), reader.path("side"), "has no mixer to add to the input of");
    block.side = read_side(reader.object("side"), context);
  } else {
    reader.ignore("side");
  }
  block.norms = read_name(reader, "norms", kNorms);
  block.residual = read_name(reader, "residual", kResiduals);
  require(!block.mixers.empty() || block.residual == BlockConfig::Residual::sequential,
          reader.path("residual"), "a feed-forward alone has no mixer to be beside");
  require(!block.feed_forward.is_null() || block.residual != BlockConfig::Residual::two_hop,
          reader.path("residual"), "two_hop is of a feed-forward, and there is none");
  block.residual_multiplier = reader.number("residual_multiplier", 1.0, -kMaxScale, kMaxScale);
  if (reader.has("norm_residual")) {
    require(block.norms == BlockConfig::Norms::before && !block.side &&
                block.residual == BlockConfig::Residual::sequential,
            reader.path("norm_residual"),
            "needs a norm before each part, one part after the other, and no side");
    block.norm_residual = read_norm_residual(reader.object("norm_residual"));
  } else {
    reader.ignore("norm_residual");
  }
  if (reader.has("bypass")) {
    ConfigReader bypass = reader.object("bypass");
    block.bypass_steps = bypass.integer("steps", kBypassSteps, 0, kMaxBypassSteps);
    bypass.finish();
  } else {
    reader.ignore("bypass");
  }
  reader.finish();
  return block;
}

nlohmann::json write_side(const SideConfig& side) {
  return {{"mixer", side.mixer}, {"ffn", side.feed_forward}, {"shared", side.shared}};
}

// Sides that share weights must be the same.
void check_sides(const ModelConfig& config, const BlockPlace& place_of) {
  std::map<int64_t, nlohmann::json> known;
  for (const auto& [name, block] : config.blocks) {
    if (!block.side || block.side->shared == 0) continue;
    const nlohmann::json side = write_side(*block.side);
    const auto [place, added] = known.emplace(block.side->shared, side);
    require(added || place->second == side, place_of(name) + ".side",
            "shares the weights of side {}, but is another", block.side->shared);
  }
}

// model_max_length of tokenizer_config.json; 0 if it says nothing, or 10^30, which means nothing.
int64_t longest_text_of_tokenizer(const std::filesystem::path& directory) {
  constexpr double kMeant = 1e9;
  const std::filesystem::path file = directory / "tokenizer_config.json";
  if (!std::filesystem::exists(file)) return 0;
  const nlohmann::json json = read_config_json(file);
  const auto length = json.is_object() ? json.find("model_max_length") : json.end();
  if (length == json.end() || !length->is_number()) return 0;
  const double tokens = length->get<double>();
  return tokens >= 1 && tokens <= kMeant ? static_cast<int64_t>(tokens) : 0;
}

}  // namespace

int64_t ModelConfig::block_count() const {
  return std::count_if(steps.begin(), steps.end(), [](const PatternStep& step) {
    return step.kind == PatternStep::Kind::block;
  });
}

bool ModelConfig::has_sides() const {
  return std::ranges::any_of(blocks,
                             [](const auto& named) { return named.second.side.has_value(); });
}

int64_t ModelConfig::side_owner(int64_t layer) const {
  std::vector<int64_t> shared;  // of each layer so far
  for (const PatternStep& step : steps) {
    if (step.kind != PatternStep::Kind::block) continue;
    const std::optional<SideConfig>& side = blocks.at(step.block).side;
    shared.push_back(side ? side->shared : 0);
    if (std::ssize(shared) > layer) break;
  }
  if (shared.back() == 0) return layer;
  return std::ranges::find(shared, shared.back()) - shared.begin();
}

int64_t ModelConfig::span_count() const {
  return std::count_if(steps.begin(), steps.end(), [](const PatternStep& step) {
    return step.kind == PatternStep::Kind::open;
  });
}

int64_t ModelConfig::block_width(char block) const {
  std::vector<int64_t> widths = {hidden_size};  // of the open spans, innermost last
  int64_t span = 0;
  for (const PatternStep& step : steps) {
    if (step.kind == PatternStep::Kind::open) {
      widths.push_back(subsample.width(span++, widths.back()));
    } else if (step.kind == PatternStep::Kind::close) {
      widths.pop_back();
    } else if (step.block == block) {
      return widths.back();
    }
  }
  return hidden_size;
}

int64_t ModelConfig::output_size() const {
  return subsample.merges() ? subsample.widths.back() : hidden_size;
}

char ModelConfig::mtp_block() const {
  if (mtp.block != 0) return mtp.block;
  const auto last = std::find_if(steps.rbegin(), steps.rend(), [](const PatternStep& step) {
    return step.kind == PatternStep::Kind::block;
  });
  return last->block;
}

TrainedContext trained_context(const ModelConfig& config) {
  if (config.context.tokens > 0 || !config.train.is_object()) return config.context;
  const auto tokens = [](const nlohmann::json& object, const char* key) -> int64_t {
    const auto found = object.is_object() ? object.find(key) : object.end();
    return found != object.end() && found->is_number_integer() ? found->get<int64_t>() : 0;
  };
  // Windows, or what they stand for where their positions skip some.
  const nlohmann::json position = config.train.value("position", nlohmann::json());
  return {std::max<int64_t>({0, tokens(config.train, "window"), tokens(position, "skip")}), 0};
}

ModelConfig read_pronghorn_config(ConfigReader reader) {
  const std::string blocks = reader.path("blocks");
  return read_pronghorn_config(std::move(reader), [&](char block) {
    return fmt::format("{}.{}", blocks, printable({&block, 1}, 1));
  });
}

namespace {

// What the rows of the model stand for, if not for tokens alone.
void read_inputs(ModelConfig& config, ConfigReader& reader) {
  if (reader.has("image")) {
    config.image = read_image(reader.object("image"));
    config.tie_embeddings = false;
    if (config.vocab_size == 0) config.vocab_size = std::ssize(config.image->classes);
  } else {
    reader.ignore("image");
  }
  if (reader.has("vision")) {
    config.vision = read_vision(reader.object("vision"));
  } else {
    reader.ignore("vision");
  }
  if (reader.has("sound")) {
    config.sound = read_sound(reader.object("sound"));
    config.tie_embeddings = false;
    const auto symbols = std::ssize(config.sound->symbols);
    if (config.vocab_size == 0 && symbols > 0) config.vocab_size = symbols + 1;
  } else {
    reader.ignore("sound");
  }
}

void read_blocks(ModelConfig& config, ConfigReader& reader, const BlockPlace& place) {
  const ScansOf scans = config.image                              ? ScansOf::images
                        : config.sound && config.sound->both_ways ? ScansOf::sound
                                                                  : ScansOf::none;
  ConfigReader blocks = reader.object("blocks");
  for (const std::string& name : blocks.keys()) {
    require(name.size() == 1, blocks.path(name), "a block's name must be one letter");
    config.blocks[name[0]] = read_block(blocks.part(blocks.raw(name), place(name[0])),
                                        layer_context(config, name[0]), scans);
  }
  std::set<char> used;
  for (const PatternStep& step : config.steps) {
    if (step.kind != PatternStep::Kind::block) continue;
    require(config.blocks.contains(step.block), reader.path("pattern"),
            "{} uses block '{}', which blocks does not define", quote(config.pattern), step.block);
    used.insert(step.block);
  }
  for (const auto& [name, block] : config.blocks) {
    require(used.contains(name), blocks.path(std::string(1, name)),
            "is defined but not used in pattern {}", quote(config.pattern));
  }
}

// When the blocks are known.
void read_mtp(ModelConfig& config, ConfigReader& reader) {
  if (reader.has("mtp")) {
    ConfigReader mtp = reader.object("mtp");
    config.mtp.heads = mtp.integer("heads", {}, 0, 15);
    const std::string block = mtp.string("block", std::string(1, config.mtp_block()));
    require(block.size() == 1 && config.blocks.contains(block[0]), mtp.path("block"),
            "{} is not a block of this model", quote(block));
    config.mtp.block = block[0];
    require(config.mtp.heads == 0 || !config.blocks.at(block[0]).side, mtp.path("block"),
            "{} has a side, which nothing is carried to in a head", quote(block));
    mtp.finish();
  } else {
    reader.ignore("mtp");
  }
}

}  // namespace

ModelConfig read_pronghorn_config(ConfigReader reader, const BlockPlace& place) {
  ModelConfig config;
  reader.one_of("model_type", {"pronghorn"}, "pronghorn");
  config.vocab_size = reader.integer("vocab_size", 0, 1, kMaxVocabulary);
  config.hidden_size = reader.integer("hidden_size", {}, 1, kMaxHidden);
  config.pattern = reader.string("pattern");
  config.steps = parse_pattern(config.pattern, reader.path("pattern"));
  config.tie_embeddings = reader.boolean("tie_embeddings", true);
  config.recompute = reader.boolean("recompute", false);
  config.initializer_range = reader.number("initializer_range", 0.02, 0, 10);
  config.embedding_scale = reader.number("embedding_scale", 1.0, -kMaxScale, kMaxScale);
  config.embedding_norm = reader.boolean("embedding_norm", false);
  config.learned_positions = reader.integer("learned_positions", 0, 0, kMaxPositions);
  config.prefix_tokens = reader.integer("prefix_tokens", 0, 0, kMaxPrefix);
  config.logit_scale = reader.number("logit_scale", 1.0, -kMaxScale, kMaxScale);
  config.logit_soft_cap = reader.number("logit_soft_cap", 0.0, 0, kMaxScale);
  if (reader.has("norm")) {
    ConfigReader norm = reader.object("norm");
    config.norm = read_name(norm, "type", kNormKinds);
    config.norm_epsilon = static_cast<float>(norm.number("epsilon", 1e-5, 0, 1));
    config.norm_bias = norm.boolean("bias", false);
    norm.finish();
  } else {
    reader.ignore("norm");
  }
  read_inputs(config, reader);
  if (config.span_count() > 0) {
    require(reader.has("subsample"), reader.path("subsample"),
            "is missing: {} has a subsampled span in parentheses (add \"subsample\": "
            "{{\"keep\": 0.64}})",
            quote(config.pattern));
    config.subsample =
        read_subsample(reader.object("subsample"), config.span_count(), config.hidden_size);
  } else {
    require(!reader.has("subsample"), reader.path("subsample"),
            "is given, but {} has no span in parentheses", quote(config.pattern));
    reader.ignore("subsample");
  }
  check_merging(config, reader);
  check_widths(config, place);
  read_blocks(config, reader, place);
  check_sides(config, place);
  read_mtp(config, reader);
  if (reader.has("diffusion")) {
    config.diffusion = read_diffusion(reader.object("diffusion"), config.vocab_size);
  } else {
    reader.ignore("diffusion");
  }
  check_shared_keys(config, place);
  check_rates(config, reader);
  check_width_parts(config, reader);
  check_prefix(config, reader);
  check_diffusion(config, reader);
  check_image(config, reader);
  check_vision(config, reader);
  check_sound(config, reader);
  if (reader.has("train")) {
    reader.object("train");  // must be an object; the trainer checks its keys
    config.train = reader.raw("train");
  } else {
    reader.ignore("train");
  }
  config.context.tokens = reader.integer("max_position_embeddings", 0, 0);
  config.context.original = reader.integer("original_max_position_embeddings", 0, 0);
  for (const char* key : {"architectures", "torch_dtype", "transformers_version"}) {
    reader.ignore(key);
  }
  reader.finish();
  return config;
}

nlohmann::json write_pronghorn_config(const ModelConfig& config) {
  nlohmann::json json = {
      {"model_type", "pronghorn"},
      {"vocab_size", config.vocab_size},
      {"hidden_size", config.hidden_size},
      {"pattern", config.pattern},
      {"tie_embeddings", config.tie_embeddings},
      {"recompute", config.recompute},
      {"initializer_range", config.initializer_range},
      {"embedding_scale", config.embedding_scale},
      {"learned_positions", config.learned_positions},
      {"prefix_tokens", config.prefix_tokens},
      {"logit_scale", config.logit_scale},
      {"logit_soft_cap", config.logit_soft_cap},
      {"norm",
       {{"type", kNormKinds[static_cast<size_t>(config.norm)]},
        {"epsilon", config.norm_epsilon},
        {"bias", config.norm_bias}}},
  };
  // Only where it is, so that sessions saved before there was any still fit.
  if (config.embedding_norm) json["embedding_norm"] = true;
  if (!config.subsample.keep.empty()) json["subsample"] = write_subsample(config.subsample);
  for (const auto& [name, block] : config.blocks) {
    nlohmann::json& out = json["blocks"][std::string(1, name)];
    if (block.mixers.size() == 1) {
      out["mixer"] = block.mixers.front();
    } else if (block.mixers.size() > 1) {
      out["mixers"] = block.mixers;
      out["merge"] = kMerges[static_cast<size_t>(block.merge)];
    }
    if (!block.feed_forward.is_null()) out["ffn"] = block.feed_forward;
    if (block.side) out["side"] = write_side(*block.side);
    out["norms"] = kNorms[static_cast<size_t>(block.norms)];
    out["residual"] = kResiduals[static_cast<size_t>(block.residual)];
    out["residual_multiplier"] = block.residual_multiplier;
    // Only where they are, for the same reason.
    if (block.scan != Scan::none) out["scan"] = name_of(block.scan);
    if (block.norm_residual) out["norm_residual"] = write_norm_residual(*block.norm_residual);
    if (block.bypass_steps) out["bypass"] = {{"steps", *block.bypass_steps}};
  }
  if (config.mtp.heads > 0) {
    json["mtp"] = {{"heads", config.mtp.heads}, {"block", std::string(1, config.mtp_block())}};
  }
  if (config.diffusion) json["diffusion"] = write_diffusion(*config.diffusion);
  if (config.image) json["image"] = write_image(*config.image);
  if (config.vision) json["vision"] = write_vision(*config.vision);
  if (config.sound) json["sound"] = write_sound(*config.sound);
  if (config.context.tokens > 0) json["max_position_embeddings"] = config.context.tokens;
  if (config.context.original > 0) {
    json["original_max_position_embeddings"] = config.context.original;
  }
  if (!config.train.is_null()) json["train"] = config.train;
  return json;
}

ModelConfig load_config(const std::filesystem::path& path) {
  if (const auto gguf = find_gguf(path)) {
    return read_gguf_config(GgufFile(*gguf));
  }
  if (is_torch_model(path)) return read_rwkv7_file(CheckpointReader(path));
  const bool directory = std::filesystem::is_directory(path);
  const std::filesystem::path file = directory ? path / "config.json" : path;
  ConfigReader reader(read_config_json(file), file.string());
  // How the model was trained travels with every family's file; other tools ignore the key.
  nlohmann::json train;
  if (reader.has("train")) {
    reader.object("train");
    train = reader.raw("train");
  }
  const Family& family = find_family(reader);
  ModelConfig config = family.read(std::move(reader));
  config.train = std::move(train);
  if (directory && config.context.tokens == 0) {
    config.context.tokens = longest_text_of_tokenizer(path);
  }
  if (family.model_type != "pronghorn") config.family = family.model_type;
  return config;
}

void require_reads_texts(const ModelConfig& config, const std::string& where) {
  if (config.image) {
    throw Error(where, "is a model of images, which reads no texts",
                "classify says what is on images; train, eval and compare take --task images");
  }
  if (config.sound) {
    throw Error(where, "is a model of sound, which reads no texts",
                "transcribe writes down what is said; train, eval and compare take --task sound");
  }
}

}  // namespace pronghorn
