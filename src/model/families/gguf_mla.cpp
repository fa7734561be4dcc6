#include "model/families/gguf_mla.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "model/families/gguf_decoder.h"
#include "model/families/mapping.h"
#include "model/families/mixture.h"
#include "model/families/mla_keys.h"

namespace pronghorn {
namespace {

constexpr const char *kKeys = "attention.key_length", *kValues = "attention.value_length",
                     *kKeysOfHeads = "attention.key_length_mla",
                     *kValuesOfHeads = "attention.value_length_mla",
                     *kRotary = "rope.dimension_count", *kKvHeads = "attention.head_count_kv";

// Of hybrids the first layer that has one.
const nlohmann::json& mixer_of(const ModelConfig& config) {
  const std::vector<const nlohmann::json*> plain = mixers_of(config, "mla");
  return plain.empty() ? *mixers_of(config, "dsa").front() : *plain.front();
}

void set(GgufModel& file, const char* key, const nlohmann::json& value) {
  file.metadata.set(file.key(key), GgufValue::u32(value.get<uint32_t>()));
}

}  // namespace

std::vector<GgufKey> gguf_mla_keys(const std::vector<GgufKey>& more) {
  std::vector<GgufKey> keys;
  for (const GgufKey& key : gguf_decoder_keys()) {
    // These are of the heads as files count them.
    if (key.key != kKvHeads && key.key != kKeys) keys.push_back(key);
  }
  keys.push_back({"attention.kv_lora_rank", "kv_lora_rank"});
  keys.push_back({"attention.q_lora_rank", "q_lora_rank", GgufKind::u32, false});
  keys.insert(keys.end(), more.begin(), more.end());
  return keys;
}

std::vector<std::string_view> gguf_mla_other_keys() {
  std::vector<std::string_view> keys = gguf_decoder_other_keys();
  keys.insert(keys.end(), {kKvHeads, kKeys, kKeysOfHeads, kValuesOfHeads, "expert_gating_func",
                           "rope.scaling.yarn_log_multiplier"});
  return keys;
}

void read_gguf_mla(const GgufModel& file, nlohmann::json& config) {
  const GgufMetadata& metadata = file.metadata;
  const auto heads = config.at("num_attention_heads").get<int64_t>();
  config["num_key_value_heads"] = heads;
  const int64_t rotary = metadata.integer(file.key(kRotary), {}, 1);
  const std::string keys = file.key(metadata.has(file.key(kKeysOfHeads)) ? kKeysOfHeads : kKeys);
  const int64_t width = metadata.integer(keys, {}, 1);
  require(width > rotary, metadata.path(keys), "{} of which {} are turned", width, rotary);
  config["qk_rope_head_dim"] = config["head_dim"] = rotary;
  config["qk_nope_head_dim"] = width - rotary;
  for (const char* key : {kValuesOfHeads, kValues}) {
    if (config.contains("v_head_dim") || !metadata.has(file.key(key))) continue;
    config["v_head_dim"] = metadata.integer(file.key(key), {}, 1);
  }
  if (config.value("q_lora_rank", int64_t{0}) == 0) config["q_lora_rank"] = nullptr;
  read_gguf_rope(file, config);
}

void write_gguf_mla(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  const nlohmann::json& mixer = mixer_of(config);
  const auto latent = mixer.at("latent").get<int64_t>(), rope = mixer.at("rope_dim").get<int64_t>();
  set(file, kKvHeads, 1);
  set(file, kKeys, latent + rope);
  set(file, kValues, latent);
  set(file, kKeysOfHeads, mixer.at("head_dim").get<int64_t>() + rope);
  set(file, kValuesOfHeads, mixer.at("value_dim"));
  set(file, kRotary, rope);
  set(file, "vocab_size", json.at("vocab_size"));
  const nlohmann::json scaling = json.value("rope_scaling", nlohmann::json::object());
  if (mixer.at("rope").is_null()) return;
  write_gguf_rope(mixer.at("rope"), scaling.value("mscale_all_dim", 0.0), file);
}

TensorRules gguf_mla_tensors(const ModelConfig& config, bool one_matrix) {
  const nlohmann::json& mixer = mixer_of(config);
  const std::string ours = "layers.*.mixer.", theirs = "blk.*.";
  const auto heads = mixer.at("heads").get<int64_t>();
  const auto stack = [&](const std::string& name) {
    TensorRule rule = {{}, {fmt::format("{}attn_{}.weight", theirs, name)}, transforms::unstack()};
    for (int64_t head = 0; head < heads; ++head) {
      rule.ours.push_back(fmt::format("{}{}_proj.{}.weight", ours, name, head));
    }
    return rule;
  };
  TensorRules tensors = gguf_decoder_tensors(config, {});
  const bool direct = mixer.at("query_rank") == 0;
  const TensorRule whole = mla_keys_and_values(heads, theirs + "attn_kv_b.weight");
  std::vector<TensorRule> rules = {
      mla_queries(heads, theirs + (direct ? "attn_q.weight" : "attn_q_b.weight")),
      {{ours + "q_a_proj.weight"}, {theirs + "attn_q_a.weight"}, {}},
      {{ours + "q_a_layernorm.weight"}, {theirs + "attn_q_a_norm.weight"}, {}},
      {{ours + "kv_a_proj.weight"}, {theirs + "attn_kv_a_mqa.weight"}, {}},
      {{ours + "kv_a_layernorm.weight"}, {theirs + "attn_kv_a_norm.weight"}, {}}};
  if (mixer.at("type") == "dsa") {
    const std::string indexer = ours + "indexer.", index = theirs + "indexer.";
    rules.insert(rules.end(), {{{indexer + "wq_b.weight"}, {index + "attn_q_b.weight"}, {}},
                               {{indexer + "wk.weight"}, {index + "attn_k.weight"}, {}},
                               {{indexer + "k_norm.*"}, {index + "k_norm.*"}, {}},
                               {{indexer + "weights_proj.weight"}, {index + "proj.weight"}, {}}});
  }
  if (one_matrix) {
    rules.push_back(whole);
  } else {
    rules.insert(rules.end(), {stack("k_b"), stack("v_b")});
    tensors.layouts.push_back(whole);
  }
  return with_rules(std::move(tensors), rules);
}

}  // namespace pronghorn
