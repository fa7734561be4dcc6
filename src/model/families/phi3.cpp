// The Phi-3 family (arXiv 2404.14219): Llama whose projections are published in one piece; one
// window for all layers, LongRoPE.
#include "model/families.h"
#include "model/families/decoder.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  DecoderDefaults defaults{.epsilon = 1e-5};
  defaults.rope.has_partial = true;
  Decoder decoder = read_decoder(reader, defaults);
  read_window(reader, decoder, 0);
  reader.ignore("attention_bias");  // the reference does not look at it
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<int64_t> windows = layer_windows(config);
  if (windows.empty()) return {};
  nlohmann::json json = write_decoder(config, "phi3", "Phi3ForCausalLM");
  const nlohmann::json& rope = decoder_layers(config).front()->mixers.front().at("rope");
  if (rope.is_null()) return {};
  // The reference's default counts for more than what the object says.
  if (!rope.at("scaling").is_null() && rope.at("scaling").at("original_context") != 0) {
    json["original_max_position_embeddings"] = rope.at("scaling").at("original_context");
  }
  json["sliding_window"] = nullptr;
  if (windows.front() > 0) json["sliding_window"] = windows.front();
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "model.layers.*.";
  TensorRules tensors = decoder_tensors(config);
  const std::vector<TensorRule> fused = {
      {{layer + "mixer.q_proj.weight", layer + "mixer.k_proj.weight",
        layer + "mixer.v_proj.weight"},
       {theirs + "self_attn.qkv_proj.weight"},
       transforms::split()},
      {{layer + "ffn.gate_proj.weight", layer + "ffn.up_proj.weight"},
       {theirs + "mlp.gate_up_proj.weight"},
       transforms::split()}};
  tensors.rules.insert(tensors.rules.begin(), fused.begin(), fused.end());
  return tensors;
}

}  // namespace

Family phi3_family() { return {"phi3", read, write, tensors}; }

}  // namespace pronghorn
