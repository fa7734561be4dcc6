// The SmolLM3 family: Llama that does without positions in some layers (arXiv 2501.18795), which
// may have a window.
#include "base/error.h"
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/gguf_decoder.h"

namespace pronghorn {
namespace {

// no_rope_layers: 1 for layers that are turned; else all but each no_rope_layer_interval-th.
std::vector<bool> read_turned(ConfigReader& reader, int64_t layers) {
  const int64_t interval = reader.integer("no_rope_layer_interval", 4, 1);
  std::vector<bool> turned;
  const nlohmann::json& list = reader.raw("no_rope_layers");
  require(list.is_null() || (list.is_array() && std::ssize(list) >= layers),
          reader.path("no_rope_layers"), "must be a list with one entry for each of {} layers",
          layers);
  for (int64_t i = 0; i < layers; ++i) {
    if (list.is_null()) {
      turned.push_back((i + 1) % interval != 0);
      continue;
    }
    const nlohmann::json& entry = list[static_cast<size_t>(i)];
    require(entry == 0 || entry == 1, reader.path("no_rope_layers"), "{} is neither 0 nor 1",
            entry.dump());
    turned.push_back(entry == 1);
  }
  return turned;
}

ModelConfig read(ConfigReader reader) {
  DecoderDefaults defaults{.kv_heads = 4, .tied = true};
  defaults.rope.theta = 2e6;
  Decoder decoder = read_decoder(reader, defaults);
  read_attention_bias(reader, decoder);
  read_mlp_bias(reader, decoder);
  const std::vector<bool> turned = read_turned(reader, decoder.layers);
  int64_t window = reader.integer("sliding_window", 0, 1);
  if (!reader.boolean("use_sliding_window", false)) window = 0;
  const std::vector<bool> sliding = read_sliding_layers(reader, decoder.layers, [&](int64_t i) {
    return window > 0 && !turned[static_cast<size_t>(i)];
  });
  return decoder.finish(reader, [&](int64_t layer, nlohmann::json& mixer) {
    const auto i = static_cast<size_t>(layer);
    if (!turned[i]) mixer["rope"] = nullptr;
    if (sliding[i]) mixer["window"] = window;
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = decoder_layers(config);
  if (layers.empty()) return {};
  nlohmann::json json = write_decoder(config, "smollm3", "SmolLM3ForCausalLM");
  int64_t window = 0;
  for (const BlockConfig* layer : layers) {
    const nlohmann::json& mixer = layer->mixers.front();
    json["no_rope_layers"].push_back(mixer.at("rope").is_null() ? 0 : 1);
    if (mixer.at("window") != 0) window = mixer.at("window");
  }
  json["layer_types"] = write_layer_types(layer_windows(config));
  json["use_sliding_window"] = window > 0;
  if (window > 0) json["sliding_window"] = window;
  json["attention_bias"] = layers.front()->mixers.front().at("bias");
  json["mlp_bias"] = has_bias(layers.front()->feed_forward);
  // The reference's default, which it cannot build a smaller vocabulary with.
  constexpr int64_t kPadding = 128004;
  if (config.vocab_size <= kPadding) json["pad_token_id"] = nullptr;
  return json;
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return gguf_decoder_tensors(config, {.rope_pairs = true});
}

}  // namespace

Family smollm3_family() {
  static const GgufFormat gguf = {
      "smollm3",           gguf_decoder_keys(),  gguf_decoder_other_keys(),
      read_gguf_attention, write_gguf_attention, gguf_tensors};
  return {"smollm3", read, write, decoder_tensors, &gguf};
}

}  // namespace pronghorn
