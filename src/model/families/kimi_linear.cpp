// The Kimi Linear family (arXiv 2510.26692): Kimi Delta Attention, in some layers multi-head latent
// attention without positions, and experts as DeepSeek-V3's. GGUF files have the architecture
// kimi-linear.
#include <algorithm>

#include "base/error.h"
#include "layers/toolbox.h"
#include "model/families.h"
#include "model/families/deepseek.h"
#include "model/families/gguf_hybrid.h"
#include "model/families/gguf_mla.h"
#include "model/families/hybrid.h"
#include "model/families/mixture.h"
#include "model/families/mla_keys.h"

namespace pronghorn {
namespace {

// Published files and the reference's own have different names for some keys.
int64_t read_either(ConfigReader& reader, const char* published, const char* reference,
                    int64_t fallback, int64_t most) {
  const char* key = reader.has(published) ? published : reference;
  const char* other = reader.has(published) ? reference : published;
  reader.ignore(other);
  return reader.integer(key, fallback, 1, most);
}

// The object in which published files describe their recurrence; empty if there is none.
nlohmann::json read_linear(ConfigReader& reader) {
  const nlohmann::json& linear = reader.raw("linear_attn_config");
  if (linear.is_null()) return nlohmann::json::object();
  const std::string where = reader.path("linear_attn_config");
  require(linear.is_object(), where, "{} is not an object", linear.dump());
  constexpr std::string_view kKnown[] = {"full_attn_layers", "kda_layers", "num_heads", "head_dim",
                                         "short_conv_kernel_size"};
  for (const auto& [key, value] : linear.items()) {
    require(value.is_null() || std::ranges::find(kKnown, key) != std::end(kKnown), where,
            "'{}' is not supported", key);
  }
  return linear;
}

// Which layers are attention: layer_types says so or, counted from 1, `linear_attn_config`.
std::vector<bool> read_attention(ConfigReader& reader, const nlohmann::json& linear,
                                 int64_t layers) {
  if (reader.has("layer_types") || !linear.contains("full_attn_layers")) {
    return read_attention_layers(reader, "layer_types", layers, {"linear_attention"},
                                 [](int64_t layer) { return layer > 0 && layer % 4 == 0; });
  }
  reader.ignore("layer_types");
  std::vector<bool> attention;
  for (int64_t i = 0; i < layers; ++i) {
    attention.push_back(lists(linear.at("full_attn_layers"), i + 1));
    const bool delta = lists(linear.value("kda_layers", nlohmann::json()), i + 1);
    require(delta != attention.back() || !linear.contains("kda_layers"),
            reader.path("linear_attn_config"),
            "layer {} must be in one of full_attn_layers and kda_layers", i + 1);
  }
  return attention;
}

nlohmann::json read_kda(ConfigReader& reader, const nlohmann::json& linear) {
  const auto integer = [&](const char* published, const char* reference, int64_t fallback) {
    const int64_t otherwise = reader.integer(reference, fallback, 1, 1 << 16);
    if (!linear.contains(published)) return otherwise;
    const nlohmann::json& value = linear.at(published);
    require(value.is_number_integer() && value > 0 && value < (1 << 16),
            reader.path("linear_attn_config"), "{} is {}", published, value.dump());
    return value.get<int64_t>();
  };
  return {{"type", "kda"},
          {"heads", integer("num_heads", "linear_num_heads", 32)},
          {"head_dim", integer("head_dim", "linear_head_dim", 128)},
          {"conv_kernel", integer("short_conv_kernel_size", "linear_conv_kernel_dim", 4)},
          {"gate_bias", false}};
}

nlohmann::json read_moe(ConfigReader& reader) {
  constexpr double kMostScale = 1e4;
  reader.one_of("moe_router_activation_func", {"sigmoid"}, "sigmoid");
  const int64_t size = reader.integer("moe_intermediate_size", 1024, 1, limits::kWidth);
  const int64_t shared =
      read_either(reader, "num_shared_experts", "n_shared_experts", 1, limits::kWidth / size);
  const bool normalize = reader.boolean("moe_renormalize", reader.boolean("norm_topk_prob", true));
  return {
      {"type", "moe"},
      {"experts", read_either(reader, "num_experts", "num_local_experts", 256, limits::kExperts)},
      {"top_k",
       read_either(reader, "num_experts_per_token", "num_experts_per_tok", 8, limits::kExperts)},
      {"size", size},
      {"shared_size", size * shared},
      {"scale", reader.number("routed_scaling_factor", 2.446, 0, kMostScale)},
      {"scores", "sigmoid"},
      {"correction", true},
      {"normalize", normalize},
      {"groups", read_either(reader, "num_expert_group", "n_group", 1, limits::kExperts)},
      {"top_groups", reader.integer("topk_group", 1, 1, limits::kExperts)}};
}

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_mla_decoder(reader, {.value_dim = 128}, {.epsilon = 1e-5});
  require(reader.boolean("mla_use_nope", true), reader.path("mla_use_nope"),
          "false is not supported");
  decoder.mixer.erase("rope");
  const nlohmann::json linear = read_linear(reader);
  const std::vector<bool> attention = read_attention(reader, linear, decoder.layers);
  const nlohmann::json kda = read_kda(reader, linear), moe = read_moe(reader);
  require(reader.integer("moe_layer_freq", 1) == 1, reader.path("moe_layer_freq"),
          "only 1 is supported");
  require(reader.integer("num_nextn_predict_layers", 0) == 0,
          reader.path("num_nextn_predict_layers"), "heads are not supported in this family");
  const int64_t dense = reader.integer("first_k_dense_replace", 1, 0);
  std::vector<bool> sparse = read_layer_types_of_mlp(reader, decoder.layers);
  for (int64_t i = std::ssize(sparse); i < decoder.layers; ++i) sparse.push_back(i >= dense);
  for (const char* key : {"use_grouped_topk", "head_dim"}) reader.ignore(key);
  decoder.experts = [moe, sparse](int64_t layer) {
    return sparse[static_cast<size_t>(layer)] ? moe : nlohmann::json();
  };
  return decoder.finish(reader, [&](int64_t layer, nlohmann::json& mixer) {
    if (!attention[static_cast<size_t>(layer)]) mixer = kda;
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = layer_blocks(config);
  const auto latent = layers_with(layers, "mla"), delta = layers_with(layers, "kda");
  if (latent.empty() || delta.empty() || latent.size() + delta.size() != layers.size() ||
      !std::ranges::all_of(
          layers, [](const BlockConfig* layer) { return is_decoder_ffn(layer->feed_forward); }) ||
      !has_experts(config) || !latent.front()->mixers.front().at("rope").is_null()) {
    return {};
  }
  nlohmann::json json = write_mla_layers(config, latent, "kimi_linear", "KimiLinearForCausalLM");
  json["mla_use_nope"] = true;
  const nlohmann::json& kda = delta.front()->mixers.front();
  nlohmann::json full = nlohmann::json::array(), linear = nlohmann::json::array();
  for (size_t i = 0; i < layers.size(); ++i) {
    (layers[i]->mixers.front().at("type") == "mla" ? full : linear).push_back(i + 1);
  }
  json["linear_attn_config"] = {{"full_attn_layers", full},
                                {"kda_layers", linear},
                                {"num_heads", kda.at("heads")},
                                {"head_dim", kda.at("head_dim")},
                                {"short_conv_kernel_size", kda.at("conv_kernel")}};
  const nlohmann::json& moe = experts_of(config);
  const int64_t size = moe.at("size"), shared = moe.at("shared_size");
  json.update({{"num_experts", moe.at("experts")},
               {"num_experts_per_token", moe.at("top_k")},
               {"moe_intermediate_size", size},
               {"intermediate_size", dense_size(config)},
               {"num_shared_experts", shared / size},
               {"routed_scaling_factor", moe.at("scale")},
               {"first_k_dense_replace", leading_dense_layers(config)},
               {"moe_layer_freq", 1},
               {"moe_renormalize", moe.at("normalize")},
               {"moe_router_activation_func", "sigmoid"},
               {"use_grouped_topk", true},
               {"num_expert_group", moe.at("groups")},
               {"topk_group", moe.at("top_groups")},
               {"num_nextn_predict_layers", 0}});
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const auto latent = layers_with(layer_blocks(config), "mla");
  const std::string mixer = "layers.*.mixer.", attn = "model.layers.*.self_attn.";
  const std::string ffn = "layers.*.ffn.", moe = "model.layers.*.block_sparse_moe.";
  std::vector<TensorRule> rules = {
      {{mixer + "f_proj.0.*"}, {attn + "f_a_proj.*"}, {}},
      {{mixer + "f_proj.1.*"}, {attn + "f_b_proj.*"}, {}},
      {{mixer + "g_proj.0.*"}, {attn + "g_a_proj.*"}, {}},
      {{mixer + "g_proj.1.*"}, {attn + "g_b_proj.*"}, {}},
      {{mixer + "A_log"},
       {attn + "A_log"},
       transforms::squeeze(3).then(transforms::squeeze(1)).then(transforms::squeeze(0))},
      {{ffn + "experts.*.gate_proj.*"}, {moe + "experts.*.w1.*"}, {}},
      {{ffn + "experts.*.down_proj.*"}, {moe + "experts.*.w2.*"}, {}},
      {{ffn + "experts.*.up_proj.*"}, {moe + "experts.*.w3.*"}, {}},
      {{ffn + "shared_expert.*"}, {moe + "shared_experts.*"}, {}},
      {{ffn + "gate.*"}, {moe + "gate.*"}, {}}};
  for (const char* name : {"q", "k", "v"}) {
    const std::string taps = fmt::format("{}_conv1d.weight", name);
    rules.push_back({{mixer + taps}, {attn + taps}, transforms::squeeze(1)});
  }
  if (!latent.empty()) {
    const nlohmann::json& attention = latent.front()->mixers.front();
    std::vector<TensorRule> of_latent = mla_rules(attention.at("heads"));
    if (attention.at("query_rank") == 0) of_latent.front().published = {attn + "q_proj.weight"};
    rules.insert(rules.end(), of_latent.begin(), of_latent.end());
  }
  TensorRules tensors = with_rules(decoder_tensors(config), rules);
  // The reference writes the feed-forwards of layers without experts under the experts' name, too.
  for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
    tensors.aliases.push_back(
        {fmt::format("model.layers.*.mlp.{}.weight", name), fmt::format("{}{}.weight", moe, name)});
  }
  return tensors;
}

constexpr const char *kTaps = "ssm.conv_kernel", *kHeadDim = "kda.head_dim",
                     *kKvHeads = "attention.head_count_kv";

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  const GgufMetadata& metadata = file.metadata;
  read_gguf_mla(file, config);
  read_gguf_layer_types(file, "linear_attention", config);
  config["linear_num_heads"] = config.at("num_attention_heads");
  config["linear_conv_kernel_dim"] = metadata.integer(file.key(kTaps), {}, 1);
  config["linear_head_dim"] = metadata.integer(file.key(kHeadDim), {}, 1);
  require(gguf_router_scores(file) == "sigmoid", metadata.path(file.key(kGgufScores)),
          "only sigmoids are supported");
  const auto layers = config.at("num_hidden_layers").get<int64_t>();
  if (config.value("first_k_dense_replace", int64_t{0}) == 0) {
    config["first_k_dense_replace"] = gguf_leading_dense_layers(file, layers);
  }
  if (!config.contains("routed_scaling_factor")) config["routed_scaling_factor"] = 1.0;
  config["mla_use_nope"] = true;
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_gguf_mla(config, json, file);
  const nlohmann::json& linear = json.at("linear_attn_config");
  const auto set = [&](const char* key, const nlohmann::json& value) {
    file.metadata.set(file.key(key), GgufValue::u32(value.get<uint32_t>()));
  };
  set(kTaps, linear.at("short_conv_kernel_size"));
  set(kHeadDim, linear.at("head_dim"));
  set(kGgufScores, gguf_scores::kSigmoid);
  std::vector<bool> latent;
  for (const BlockConfig* layer : layer_blocks(config)) {
    latent.push_back(layer->mixers.front().at("type") == "mla");
  }
  file.metadata.set(file.key(kKvHeads), gguf_by_layer(latent, 1));
}

TensorRules gguf_tensors(const ModelConfig& config) {
  const std::string mixer = "layers.*.mixer.", blk = "blk.*.";
  std::vector<TensorRule> rules = {{{mixer + "f_proj.0.weight"}, {blk + "ssm_f_a.weight"}, {}},
                                   {{mixer + "f_proj.1.weight"}, {blk + "ssm_f_b.weight"}, {}},
                                   {{mixer + "g_proj.0.weight"}, {blk + "ssm_g_a.weight"}, {}},
                                   {{mixer + "g_proj.1.weight"}, {blk + "ssm_g_b.weight"}, {}},
                                   {{mixer + "b_proj.weight"}, {blk + "ssm_beta.weight"}, {}},
                                   {{mixer + "dt_bias"}, {blk + "ssm_dt.bias"}, {}},
                                   {{mixer + "o_norm.weight"}, {blk + "ssm_norm.weight"}, {}},
                                   {{mixer + "A_log"},
                                    {blk + "ssm_a"},
                                    transforms::squeeze(3)
                                        .then(transforms::squeeze(1))
                                        .then(transforms::squeeze(0))
                                        .then(transforms::log_of_negated())}};
  for (const std::string name : {"q", "k", "v"}) {
    rules.push_back({{mixer + name + "_conv1d.weight"},
                     {blk + "ssm_conv1d_" + name + ".weight"},
                     transforms::squeeze(2).then(transforms::squeeze(0))});
  }
  return with_gguf_experts(with_rules(gguf_mla_tensors(config), rules), config);
}

}  // namespace

Family kimi_linear_family() {
  std::vector<std::string_view> other_keys = gguf_mla_other_keys();
  other_keys.insert(other_keys.end(), {kTaps, kHeadDim, "expert_weights_norm"});
  static const GgufFormat gguf = {
      "kimi-linear",
      gguf_mla_keys({{"expert_count", "num_experts"},
                     {"expert_used_count", "num_experts_per_token"},
                     {"expert_feed_forward_length", "moe_intermediate_size"},
                     {"expert_shared_count", "num_shared_experts"},
                     {"expert_weights_scale", "routed_scaling_factor", GgufKind::f32, false},
                     {"expert_group_count", "num_expert_group", GgufKind::u32, false},
                     {"expert_group_used_count", "topk_group", GgufKind::u32, false},
                     {"leading_dense_block_count", "first_k_dense_replace", GgufKind::u32, false}}),
      other_keys,
      read_gguf,
      write_gguf,
      gguf_tensors,
      false};
  return {"kimi_linear", read, write, tensors, &gguf};
}

}  // namespace pronghorn
