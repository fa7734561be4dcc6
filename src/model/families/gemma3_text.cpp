// The Gemma 3 family, its text part (arXiv 2503.19786): five of six layers have a window and their
// own rotary angles; queries and keys are normalised.
#include <utility>

#include "model/families.h"
#include "model/families/gemma.h"
#include "model/families/published_keys.h"

namespace pronghorn {
namespace {

constexpr double kTheta = 1e6, kLocalTheta = 10000;
constexpr const char *kGlobal = "full_attention", *kLocal = "sliding_attention";

// Angles of the layers with a window and of those without. Newer files have an object for each in
// rope_parameters; older ones say rope_theta and rope_scaling of the latter and
// rope_local_base_freq of the former.
struct Angles {
  nlohmann::json global, local;
};

Angles read_angles(ConfigReader& reader, int64_t head_dim) {
  const double theta = reader.number("rope_theta", kTheta, 1.0);
  const double local_theta = reader.number("rope_local_base_freq", kLocalTheta, 1.0);
  reader.ignore("rope_parameters");
  reader.ignore("rope_scaling");
  const auto object = [](ConfigReader& from, const char* key) {
    return from.has(key) ? from.object(key)
                         : ConfigReader(nlohmann::json::object(), from.path(key));
  };
  ConfigReader both = object(reader, "rope_parameters");
  ConfigReader global = object(both, kGlobal), local = object(both, kLocal);
  both.ignore(kGlobal);
  both.ignore(kLocal);
  finish_published(both);
  if (reader.has("rope_scaling")) global = reader.object("rope_scaling");
  return {read_rope_object(std::move(global), reader, head_dim, theta, 1),
          read_rope_object(std::move(local), reader, head_dim, local_theta, 1)};
}

ModelConfig read(ConfigReader reader) {
  const int64_t window = reader.integer("sliding_window", 4096, 1);
  Decoder decoder = read_gemma(reader, {.kv_heads = 4,
                                        .head_dim = 256,
                                        .tied = true,
                                        .activation_key = "hidden_activation",
                                        .activation = "gelu_pytorch_tanh",
                                        .rope = {.by_layer = true}});
  const Angles angles = read_angles(reader, decoder.mixer.at("head_dim"));
  decoder.mixer["qk_norm"] = true;
  decoder.settings["logit_soft_cap"] = read_cap(reader, "final_logit_softcapping", 0);
  // The reference does not look at these.
  for (const char* key : {"attn_logit_softcapping", "hidden_act", "cache_implementation",
                          "_sliding_window_pattern"}) {
    reader.ignore(key);
  }
  const int64_t period = reader.integer("sliding_window_pattern", 6, 1);
  const std::vector<bool> sliding =
      read_sliding_layers(reader, decoder.layers, [&](int64_t i) { return (i + 1) % period != 0; });
  return decoder.finish(reader, [&](int64_t layer, nlohmann::json& mixer) {
    const bool local = sliding[static_cast<size_t>(layer)];
    if (local) mixer["window"] = window;
    mixer["rope"] = local ? angles.local : angles.global;
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = decoder_layers(config);
  if (layers.empty()) return {};
  nlohmann::json json = write_gemma(config, "gemma3_text", "Gemma3ForCausalLM");
  for (const char* key : {"rope_theta", "rope_scaling"}) json.erase(key);
  for (const BlockConfig* layer : layers) {
    const nlohmann::json& mixer = layer->mixers.front();
    const nlohmann::json& rope = mixer.at("rope");
    if (rope.is_null()) return {};
    if (mixer.at("window") != 0) {
      json["rope_local_base_freq"] = rope.at("theta");
      continue;
    }
    json.update(write_rope(rope, mixer.at("head_dim"), config.context));
  }
  return json;
}

constexpr int64_t kLargest = 62, kPeriod = 6;

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  const bool windows = config.value("sliding_window", 0) > 0;
  if (!windows) config.erase("sliding_window");
  read_gemma_gguf(file, kLargest, windows ? kPeriod : 1, config);
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_gemma_gguf(config, json, json.contains("sliding_window") ? kPeriod : 1, file);
}

}  // namespace

Family gemma3_text_family() {
  static const GgufFormat gguf = {
      "gemma3",
      gemma_gguf_keys({"rope.freq_base_swa", "rope_local_base_freq", GgufKind::f32, false}),
      gemma_gguf_other_keys(),
      read_gguf,
      write_gguf,
      gemma_gguf_tensors};
  return {"gemma3_text", read, write, gemma_tensors, &gguf};
}

}  // namespace pronghorn
