// The Gemma 2 family (arXiv 2408.00118): every second layer has a window; scores of attention and
// of the model are capped.
#include "model/families.h"
#include "model/families/gemma.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_gemma(reader, {.kv_heads = 4,
                                        .head_dim = 256,
                                        .tied = true,
                                        .activation_key = "hidden_activation",
                                        .activation = "gelu_pytorch_tanh"});
  // Older files have both keys, and the reference reads the other.
  reader.ignore("hidden_act");
  decoder.mixer["soft_cap"] = read_cap(reader, "attn_logit_softcapping", 50);
  decoder.settings["logit_soft_cap"] = read_cap(reader, "final_logit_softcapping", 30);
  const int64_t window = reader.integer("sliding_window", 4096, 1);
  const std::vector<bool> sliding =
      read_sliding_layers(reader, decoder.layers, [](int64_t i) { return i % 2 == 0; });
  return decoder.finish(reader, [&](int64_t layer, nlohmann::json& mixer) {
    if (sliding[static_cast<size_t>(layer)]) mixer["window"] = window;
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = decoder_layers(config);
  if (layers.empty()) return {};
  nlohmann::json json = write_gemma(config, "gemma2", "Gemma2ForCausalLM");
  json["attn_logit_softcapping"] = write_cap(layers.front()->mixers.front().at("soft_cap"));
  return json;
}

constexpr int64_t kLargest = 46, kPeriod = 2;

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gemma_gguf(file, kLargest, kPeriod, config);
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_gemma_gguf(config, json, kPeriod, file);
}

}  // namespace

Family gemma2_family() {
  static const GgufFormat gguf = {
      "gemma2",
      gemma_gguf_keys({"attn_logit_softcapping", "attn_logit_softcapping", GgufKind::f32, false}),
      gemma_gguf_other_keys(),
      read_gguf,
      write_gguf,
      gemma_gguf_tensors,
      true};
  return {"gemma2", read, write, gemma_tensors, &gguf};
}

}  // namespace pronghorn
