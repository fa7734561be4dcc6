#include "model/families/mla_keys.h"

#include <cmath>

#include "base/error.h"

namespace pronghorn {
namespace {

const std::string kMixer = "layers.*.mixer.";

// YaRN's factor on the scores, which the reference squares: it stands for both queries and keys.
double score_factor(const ConfigReader& reader, const nlohmann::json& rope) {
  if (!rope.contains("scaling")) return 1;
  double mscale = 0;
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const nlohmann::json& object = reader.peek(key);
    if (!object.is_object()) continue;
    const nlohmann::json given = object.value("mscale_all_dim", nlohmann::json());
    if (mscale == 0 && given.is_number()) mscale = given.get<double>();
  }
  const nlohmann::json& scaling = rope.at("scaling");
  const double factor = scaling.contains("factor") ? scaling.at("factor").get<double>() : 1.0;
  if (mscale == 0 || factor <= 1) return 1;
  const double root = 0.1 * mscale * std::log(factor) + 1;
  return root * root;
}

}  // namespace

Decoder read_mla_decoder(ConfigReader& reader, const MlaDefaults& mla,
                         const DecoderDefaults& defaults) {
  DecoderDefaults without = defaults;
  without.rope.by_layer = true;  // the heads that are turned are not those of the other keys
  Decoder decoder = read_decoder(reader, without);
  const int64_t heads = decoder.mixer.at("heads"), hidden = decoder.settings.at("hidden_size");
  require(decoder.mixer.at("kv_heads") == heads, reader.path("num_key_value_heads"),
          "{} are not the {} heads of latent attention", decoder.mixer.at("kv_heads").dump(),
          heads);
  const int64_t head_dim = reader.integer("qk_nope_head_dim", mla.head_dim, 1, 1 << 20);
  const int64_t rope_dim = reader.integer("qk_rope_head_dim", mla.rope_dim, 1, 1 << 20);
  const int64_t value_dim = mla.value_dim > 0 ? mla.value_dim : hidden / heads;
  const int64_t query_rank = is_null(reader, "q_lora_rank") ? 0 : mla.query_rank;
  reader.ignore("qk_head_dim");
  decoder.mixer = {{"type", "mla"},
                   {"heads", heads},
                   {"head_dim", head_dim},
                   {"rope_dim", rope_dim},
                   {"value_dim", reader.integer("v_head_dim", value_dim, 1)},
                   {"latent", reader.integer("kv_lora_rank", mla.latent, 1)},
                   {"query_rank", reader.integer("q_lora_rank", query_rank, 1)},
                   {"bias", reader.boolean("attention_bias", false)}};
  nlohmann::json rope = read_rope(reader, rope_dim, defaults.rope);
  if (const double factor = score_factor(reader, rope); factor != 1) {
    decoder.mixer["scale"] = factor / std::sqrt(static_cast<double>(head_dim + rope_dim));
  }
  if (mla.interleaved) rope["interleaved"] = true;
  decoder.mixer["rope"] = std::move(rope);
  return decoder;
}

std::optional<nlohmann::json> write_mla_decoder(const ModelConfig& config,
                                                const std::string& model_type,
                                                const std::string& architecture,
                                                const std::string& mixer) {
  const std::vector<const BlockConfig*> layers = layer_blocks(config);
  for (const BlockConfig* layer : layers) {
    const bool fits = layer->mixers.size() == 1 && layer->mixers.front().at("type") == mixer &&
                      is_decoder_ffn(layer->feed_forward);
    if (!fits) return {};
  }
  if (layers.empty() || layers.front()->mixers.front().at("rope").is_null()) return {};
  return write_mla_layers(config, layers, model_type, architecture);
}

nlohmann::json write_mla_layers(const ModelConfig& config,
                                const std::vector<const BlockConfig*>& layers,
                                const std::string& model_type, const std::string& architecture) {
  const nlohmann::json& mixer = layers.front()->mixers.front();
  BlockConfig plain = *layers.front();  // as a decoder has it
  const nlohmann::json turned = {{"heads", mixer.at("heads")},
                                 {"kv_heads", mixer.at("heads")},
                                 {"head_dim", mixer.at("rope_dim")},
                                 {"rope", mixer.at("rope")}};
  plain.mixers.assign(1, turned);
  nlohmann::json json = write_decoder(config, {&plain}, model_type, architecture);
  json["qk_nope_head_dim"] = mixer.at("head_dim");
  json["qk_rope_head_dim"] = mixer.at("rope_dim");
  json["v_head_dim"] = mixer.at("value_dim");
  json["kv_lora_rank"] = mixer.at("latent");
  json["q_lora_rank"] = nullptr;
  if (mixer.at("query_rank") != 0) json["q_lora_rank"] = mixer.at("query_rank");
  json["attention_bias"] = mixer.at("bias");
  const auto width = mixer.at("head_dim").get<double>() + mixer.at("rope_dim").get<double>();
  const double given = mixer.at("scale"), ratio = given * std::sqrt(width);
  if (given != 0 && json.contains("rope_scaling")) {
    // mscale_all_dim such that it is read as this scale, beside the factor on queries and keys.
    const double factor = json.at("rope_scaling").at("factor");
    const double growth = 0.1 * std::log(factor), mscale = (std::sqrt(ratio) - 1) / growth;
    json["rope_scaling"]["mscale_all_dim"] = std::round(mscale * 1e6) / 1e6;
  }
  return json;
}

TensorRule mla_queries(int64_t heads, const std::string& published) {
  return {{kMixer + "q_nope_proj.weight", kMixer + "q_rope_proj.weight"},
          {published},
          transforms::split(0, heads)};
}

TensorRule mla_keys_and_values(int64_t heads, const std::string& published) {
  TensorRule rule = {{}, {published}, {}};
  for (int64_t head = 0; head < heads; ++head) {
    for (const char* name : {"k_b_proj", "v_b_proj"}) {
      rule.ours.push_back(fmt::format("{}{}.{}.weight", kMixer, name, head));
    }
  }
  // Of each head its keys' rows, which are columns in ours, then its values'.
  rule.transform = transforms::split().then(transforms::transpose(2));
  return rule;
}

std::vector<TensorRule> mla_rules(int64_t heads) {
  const std::string theirs = "model.layers.*.self_attn.";
  return {mla_queries(heads, theirs + "q_b_proj.weight"),
          mla_keys_and_values(heads, theirs + "kv_b_proj.weight"),
          {{kMixer + "kv_a_proj.*"}, {theirs + "kv_a_proj_with_mqa.*"}, {}}};
}

TensorRules mla_decoder_tensors(const ModelConfig& config) {
  TensorRules tensors = decoder_tensors(config);
  const nlohmann::json& mixer = layer_blocks(config).front()->mixers.front();
  std::vector<TensorRule> rules = mla_rules(mixer.at("heads"));
  if (mixer.at("query_rank") == 0)
    rules.front().published = {"model.layers.*.self_attn.q_proj.weight"};
  tensors.rules.insert(tensors.rules.begin(), rules.begin(), rules.end());
  return tensors;
}

}  // namespace pronghorn
