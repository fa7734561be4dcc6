// The RWKV-7 family (arXiv 2503.14456) as the library flash-linear-attention publishes it, and in
// GGUF files.
#include <cmath>
#include <utility>

#include "base/error.h"
#include "layers/toolbox.h"
#include "model/families.h"
#include "model/families/mapping.h"
#include "model/families/published_keys.h"
#include "model/families/rwkv_keys.h"
#include "model/gguf_format.h"

namespace pronghorn {
namespace {

constexpr const char* kRanks[] = {"decay_low_rank_dim", "gate_low_rank_dim", "a_low_rank_dim",
                                  "v_low_rank_dim"};
constexpr int64_t kUsualRanks[] = {64, 128, 64, 16};
constexpr double kRatio = 4;  // of the channel mix

// Values as wide as keys: absent, a number, or one for each layer.
void check_value_dim(ConfigReader& reader, int64_t hidden_size) {
  const nlohmann::json value_dim = reader.raw("value_dim");
  const nlohmann::json list = value_dim.is_array() ? value_dim : nlohmann::json::array({value_dim});
  for (const nlohmann::json& width : list) {
    require(width.is_null() || width == hidden_size, reader.path("value_dim"),
            "{}: values of another width than hidden_size {} are not supported", value_dim.dump(),
            hidden_size);
  }
}

ModelConfig read(ConfigReader reader) {
  const int64_t hidden_size = reader.integer("hidden_size", 2048, 1, 1 << 24);
  const int64_t layers = reader.integer("num_hidden_layers", 24, 1, kMaxBlocks);
  int64_t head_dim = reader.integer("head_dim", is_null(reader, "head_dim") ? 0 : 64, 0);
  const int64_t heads =
      reader.integer("num_heads", head_dim > 0 ? hidden_size / head_dim : 0, 1, limits::kHeads);
  if (head_dim == 0) {
    require(heads > 0, reader.path("num_heads"), "is missing, and head_dim is, too");
    head_dim = hidden_size / heads;
  }
  require(head_dim > 0 && hidden_size % head_dim == 0, reader.path("head_dim"),
          "{} does not divide hidden_size {}", head_dim, hidden_size);
  nlohmann::json settings = read_rwkv_settings(reader, hidden_size);
  check_value_dim(reader, hidden_size);
  nlohmann::json mixer = {
      {"type", "rwkv7"}, {"heads", hidden_size / head_dim}, {"head_dim", head_dim}};
  for (size_t i = 0; i < std::size(kRanks); ++i) {
    mixer[kRanks[i]] = reader.integer(kRanks[i], kUsualRanks[i], 1);
  }
  const nlohmann::json ffn = {{"type", "channel_mix"},
                              {"size", read_channel_mix_size(reader, hidden_size, kRatio)}};
  read_trained_context(reader, settings);
  finish_published(reader);
  return uniform_config(reader, std::move(settings), {{"mixer", mixer}, {"ffn", ffn}}, layers);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const BlockConfig* block = uniform_block(config, "rwkv7");
  if (block == nullptr || !is_channel_mix(block->feed_forward, false)) return {};
  const nlohmann::json& mixer = block->mixers.front();
  if (mixer.at("negative_eigenvalues").get<bool>()) return {};
  nlohmann::json json = write_rwkv_settings(config, "rwkv7", "RWKV7ForCausalLM");
  json["head_dim"] = mixer.at("head_dim");
  json["num_heads"] = mixer.at("heads");
  for (const char* rank : kRanks) json[rank] = mixer.at(rank);
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const Transform row = transforms::squeeze(0).then(transforms::squeeze(0));  // of [1, 1, width]
  std::vector<std::string> mixes;
  std::vector<TensorRule> rules;
  const std::string attn = "model.layers.*.attn.";
  for (const std::string mix : {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g"}) {
    mixes.push_back("layers.*.mixer." + mix);
    rules.push_back({{mixes.back()}, {attn + mix}, row});
  }
  TensorRules tensors = rwkv_tensors(config, rules);
  // The first checkpoints had all mixes in one.
  tensors.layouts = {{mixes, {attn + "x_x"}, transforms::unstack()}};
  return tensors;
}

// llama.cpp's norm of each head has this, whatever the width of heads; ours, as the published
// models, their width times that of the other norms.
constexpr double kGgufHeadEpsilon = 64e-5;

bool has_gguf_epsilon(double head_dim, double epsilon) {
  return std::abs(head_dim * epsilon / kGgufHeadEpsilon - 1) < 1e-5;
}

constexpr const char *kHeadSize = "wkv.head_size", *kEpsilon = "attention.layer_norm_epsilon";

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  const GgufMetadata& metadata = file.metadata;
  require(
      has_gguf_epsilon(config.at("head_dim").get<double>(), config.at("norm_eps").get<double>()),
      metadata.path(file.key(kEpsilon)),
      "{} with heads of {}: only products of {} are supported, the epsilon of their norm",
      config.at("norm_eps").get<double>(), config.at("head_dim").get<int64_t>(), kGgufHeadEpsilon);
  const int64_t shifts = metadata.integer(file.key("token_shift_count"), 2);
  require(shifts == 2, metadata.path(file.key("token_shift_count")), "{} is not supported", shifts);
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  // What files say that know of no context.
  constexpr uint32_t kAnyContext = 1 << 20;
  const nlohmann::json& mixer = layer_blocks(config).front()->mixers.front();
  const double head_dim = mixer.at("head_dim"), own = mixer.at("norm_epsilon");
  require(
      has_gguf_epsilon(head_dim, own > 0 ? own / head_dim : config.norm_epsilon),
      file.metadata.where(),
      "files of the architecture rwkv7 cannot say an epsilon of the norm of heads other than {}",
      kGgufHeadEpsilon);
  file.metadata.set(file.key("context_length"),
                    GgufValue::u32(json.value("max_position_embeddings", kAnyContext)));
  file.metadata.set(file.key("attention.head_count"), GgufValue::u32(0));
}

TensorRules gguf_tensors(const ModelConfig& config) {
  const std::string mixer = "layers.*.mixer.", mix = "blk.*.time_mix_";
  const auto heads = layer_blocks(config).front()->mixers.front().at("heads").get<int64_t>();
  TensorRules tensors;
  std::vector<TensorRule>& rules = tensors.rules;
  TensorRule mixes = {
      {},
      {mix + "lerp_fused.weight"},
      transforms::squeeze(1).then(transforms::squeeze(1)).then(transforms::unstack())};
  for (const char* name : {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g"}) {
    mixes.ours.push_back(mixer + name);
  }
  rules.push_back(std::move(mixes));
  // The first layer has no share of a first value, but files have tensors for it: those for rates.
  const std::pair<const char*, const char*> parts[] = {
      {"lora.2.bias", "0"}, {"lora.0.weight", "1"}, {"lora.2.weight", "2"}};
  for (const auto& [ours, number] : parts) {
    rules.push_back({{fmt::format("layers.0.mixer.a_lora.{}", ours)},
                     {fmt::format("blk.0.time_mix_a{}.weight", number),
                      fmt::format("blk.0.time_mix_v{}.weight", number)},
                     transforms::repeated()});
    for (const char* name : {"w", "a", "v", "g"}) {
      rules.push_back({{fmt::format("{}{}_lora.{}", mixer, name, ours)},
                       {fmt::format("{}{}{}.weight", mix, name, number)},
                       {}});
    }
  }
  const std::vector<TensorRule> rest = {
      {{mixer + "k_k"}, {mix + "k_k.weight"}, {}},
      {{mixer + "k_a"}, {mix + "k_a.weight"}, {}},
      {{mixer + "r_k"}, {mix + "r_k.weight"}, transforms::unfold(heads)},
      {{mixer + "r_proj.weight"}, {mix + "receptance.weight"}, {}},
      {{mixer + "k_proj.weight"}, {mix + "key.weight"}, {}},
      {{mixer + "v_proj.weight"}, {mix + "value.weight"}, {}},
      {{mixer + "o_proj.weight"}, {mix + "output.weight"}, {}},
      {{mixer + "g_norm.*"}, {mix + "ln.*"}, {}},
      {{"layers.*.ffn.x_k"}, {"blk.*.channel_mix_lerp_k.weight"}, {}},
      {{"layers.*.ffn.key.weight"}, {"blk.*.channel_mix_key.weight"}, {}},
      {{"layers.*.ffn.value.weight"}, {"blk.*.channel_mix_value.weight"}, {}},
      {{"layers.*.mixer_norm.*"}, {"blk.*.attn_norm.*"}, {}},
      {{"layers.*.ffn_norm.*"}, {"blk.*.attn_norm_2.*"}, {}},
      {{"embeddings.weight"}, {"token_embd.weight"}, {}},
      {{"embedding_norm.*"}, {"token_embd_norm.*"}, {}},
      {{"norm.*"}, {"output_norm.*"}, {}},
      {{"lm_head.weight"}, {"output.weight"}, {}}};
  rules.insert(rules.end(), rest.begin(), rest.end());
  return tensors;
}

}  // namespace

Family rwkv7_family() {
  static const GgufFormat gguf = {
      "rwkv7",
      {{"block_count", "num_hidden_layers"},
       {"embedding_length", "hidden_size"},
       {"feed_forward_length", "intermediate_size"},
       {kEpsilon, "norm_eps", GgufKind::f32},
       {kHeadSize, "head_dim"},
       {"attention.decay_lora_rank", "decay_low_rank_dim"},
       {"attention.iclr_lora_rank", "a_low_rank_dim"},
       {"attention.value_residual_mix_lora_rank", "v_low_rank_dim"},
       {"attention.gate_lora_rank", "gate_low_rank_dim"}},
      {"context_length", "attention.head_count", "token_shift_count", "vocab_size"},
      read_gguf,
      write_gguf,
      gguf_tensors,
      false};
  return {"rwkv7", read, write, tensors, &gguf};
}

}  // namespace pronghorn
