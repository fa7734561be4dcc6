// The Jamba family (arXiv 2403.19887, 2408.12570): Mamba with norms on its step sizes, B and C, and
// a few layers of attention without positions. Some layers have experts.
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "model/families.h"
#include "model/families/gguf_experts.h"
#include "model/families/gguf_heads.h"
#include "model/families/gguf_hybrid.h"
#include "model/families/hybrid.h"
#include "model/families/mixture.h"

namespace pronghorn {
namespace {

nlohmann::json read_mamba(ConfigReader& reader, int64_t hidden_size) {
  nlohmann::json mixer = {
      {"type", "mamba"},
      {"inner_size", hidden_size * reader.integer("mamba_expand", 2, 1, 1 << 10)},
      {"state", reader.integer("mamba_d_state", 16, 1)},
      {"conv_kernel", reader.integer("mamba_d_conv", 4, 1)},
      {"conv_bias", reader.boolean("mamba_conv_bias", true)},
      {"bias", reader.boolean("mamba_proj_bias", false)},
      {"inner_norms", "learned"}};
  read_time_step_rank(reader, "mamba_dt_rank", mixer);
  return mixer;
}

constexpr const char* kCount = "num_experts";

void read_feed_forwards(ConfigReader& reader, Decoder& decoder) {
  if (reader.integer(kCount, 16, 1) == 1) {
    for (const char* key : {"num_experts_per_tok", "expert_layer_period", "expert_layer_offset"}) {
      reader.ignore(key);
    }
    return;
  }
  const int64_t period = reader.integer("expert_layer_period", 2, 1);
  const int64_t offset = reader.integer("expert_layer_offset", 1, 0, period - 1);
  std::vector<bool> sparse;
  for (int64_t i = 0; i < decoder.layers; ++i) sparse.push_back(i % period == offset);
  read_experts(reader, decoder, {kCount, 16, 2}, {{"normalize", false}}, std::move(sparse));
}

// Where the first of some layers is, and how far the second is from it.
struct Period {
  int64_t offset = 0, period = 0;
};

// in: of each layer whether it is one of them, as at least one is.
Period period_of(const std::vector<bool>& in) {
  const auto first = std::ranges::find(in, true);
  const auto second = std::find(first + 1, in.end(), true);
  return {first - in.begin(), second == in.end() ? std::ssize(in) : second - first};
}

void write_period(const Period& period, const std::string& prefix, nlohmann::json& json) {
  json[prefix + "_layer_offset"] = period.offset;
  json[prefix + "_layer_period"] = period.period;
}

ModelConfig read(ConfigReader reader) {
  DecoderDefaults defaults{.kv_heads = 8};
  defaults.rope.by_layer = true;  // there are none
  Decoder decoder = read_decoder(reader, defaults);
  read_feed_forwards(reader, decoder);
  const nlohmann::json mamba =
      read_mamba(reader, decoder.settings.at("hidden_size").get<int64_t>());
  const int64_t period = reader.integer("attn_layer_period", 8, 1);
  const int64_t offset = reader.integer("attn_layer_offset", 4, 0, period - 1);
  return decoder.finish(reader, [&](int64_t layer, nlohmann::json& mixer) {
    if (layer % period != offset) mixer = mamba;
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const auto layers = hybrid_layers(config, "mamba");
  const auto recurrent = layers_with(layers, "mamba");
  if (recurrent.empty()) return {};
  const auto attention = layers_with(layers, "attention");
  nlohmann::json json = write_decoder(config, attention, "jamba", "JambaForCausalLM");
  const nlohmann::json& mixer = attention.front()->mixers.front();
  if (!heads_share_width(config, mixer)) return {};
  std::vector<bool> attends;
  for (const BlockConfig* block : layers) {
    attends.push_back(block->mixers.front().at("type") == "attention");
  }
  write_period(period_of(attends), "attn", json);
  const nlohmann::json& mamba = recurrent.front()->mixers.front();
  if (mamba.at("inner_size").get<int64_t>() % config.hidden_size != 0) return {};
  json["mamba_expand"] = mamba.at("inner_size").get<int64_t>() / config.hidden_size;
  json["mamba_d_state"] = mamba.at("state");
  json["mamba_d_conv"] = mamba.at("conv_kernel");
  json["mamba_conv_bias"] = mamba.at("conv_bias");
  json["mamba_proj_bias"] = mamba.at("bias");
  json["mamba_dt_rank"] = mamba.at("time_step_rank");
  json[kCount] = json["num_experts_per_tok"] = 1;
  if (has_experts(config)) {
    json.update(write_experts(config, kCount));
    write_period(period_of(sparse_layers(config)), "expert", json);
  }
  json.erase("head_dim");
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  return with_rules(mamba_hybrid_tensors(config, "mamba"),
                    {{{"layers.*.ffn.gate.*"}, {"model.layers.*.feed_forward.router.*"}, {}}});
}

// prefix_layer_period and prefix_layer_offset of layers in a file.
void read_period(const std::vector<bool>& layers, const std::string& prefix,
                 const std::string& where, nlohmann::json& config) {
  std::vector<int64_t> places;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i]) places.push_back(static_cast<int64_t>(i));
  }
  require(!places.empty(), where, "there are no such layers");
  const Period period = period_of(layers);
  for (int64_t i = 0; i < std::ssize(layers); ++i) {
    require(layers[static_cast<size_t>(i)] == (i % period.period == period.offset), where,
            "layers {}, of one kind, do not follow one another at one distance",
            fmt::join(places, ", "));
  }
  write_period(period, prefix, config);
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  const GgufMetadata& metadata = file.metadata;
  const std::string heads = file.key("attention.head_count_kv");
  read_period(read_gguf_attention_layers(file, config), "attn", metadata.path(heads), config);
  if (config.value(kCount, int64_t{1}) > 1) {
    std::vector<bool> sparse;
    for (int64_t i = 0; i < config.at("num_hidden_layers").get<int64_t>(); ++i) {
      sparse.push_back(file.has(fmt::format("blk.{}.ffn_gate_inp.weight", i)));
    }
    read_period(sparse, "expert", metadata.path(file.key("expert_count")), config);
  } else {
    config[kCount] = 1;
  }
  const auto hidden = std::max<int64_t>(1, config.at("hidden_size").get<int64_t>());
  const auto query_heads = std::max<int64_t>(1, config.at("num_attention_heads").get<int64_t>());
  check_gguf_value_length(file, config.value("head_dim", hidden / query_heads));
  const std::string inner = file.key("ssm.inner_size");
  const int64_t channels = metadata.integer(inner, {}, 1);
  require(channels % hidden == 0, metadata.path(inner), "{} is no multiple of the width {}",
          channels, hidden);
  config["mamba_expand"] = channels / hidden;
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_gguf_attention(config, json, file);
  write_gguf_attention_layers(config, file);
  write_gguf_inner_size(mixers_of(config, "mamba").front()->at("inner_size"), file);
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return with_gguf_experts(gguf_hybrid_tensors(config, {}, {{"mamba", "", gguf_mamba_rules()}}),
                           config);
}

std::vector<GgufKey> gguf_keys() {
  std::vector<GgufKey> keys = gguf_expert_keys(kCount, false);
  keys.insert(keys.end(), {{"ssm.conv_kernel", "mamba_d_conv"},
                           {"ssm.state_size", "mamba_d_state"},
                           {"ssm.time_step_rank", "mamba_dt_rank"}});
  return gguf_hybrid_keys(keys);
}

}  // namespace

Family jamba_family() {
  static const GgufFormat gguf = {
      "jamba",   gguf_keys(), gguf_hybrid_other_keys({"ssm.inner_size"}),
      read_gguf, write_gguf,  gguf_tensors};
  return {"jamba", read, write, tensors, &gguf};
}

}  // namespace pronghorn
