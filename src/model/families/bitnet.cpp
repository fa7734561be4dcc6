// The BitNet b1.58 family (arXiv 2402.17764, 2504.12285): Llama with a squared ReLU and a norm
// before the last projection of attention and of the feed-forward; matrices of -1, 0 and 1 times a
// factor, published as they were trained ("online") or four numbers a byte ("offline").
#include "base/error.h"
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/four_per_byte.h"
#include "model/families/gguf_decoder.h"

namespace pronghorn {
namespace {

// How products are computed, by the quantization_config.
std::string read_bits(ConfigReader& reader) {
  if (!reader.has("quantization_config")) {
    reader.ignore("quantization_config");
    return "whole";
  }
  ConfigReader quantization = reader.object("quantization_config");
  quantization.one_of("quant_method", {"bitnet"}, "bitnet");
  // The reference's other class has norms of its own and factors that are divided by.
  quantization.one_of("linear_class", {"autobitlinear"});
  const std::string mode = quantization.one_of("quantization_mode", {"online", "offline"});
  require(!quantization.boolean("use_rms_norm", false), quantization.path("use_rms_norm"),
          "true is not supported");
  const nlohmann::json& whole = quantization.raw("modules_to_not_convert");
  require(whole.is_null() || whole == nlohmann::json::array({"lm_head"}),
          quantization.path("modules_to_not_convert"), "{} is not supported", whole.dump());
  quantization.ignore("rms_norm_eps");
  quantization.finish();
  return mode == "online" ? "ternary" : "inputs";
}

ModelConfig read(ConfigReader reader) {
  DecoderDefaults defaults{.kv_heads = 5, .epsilon = 1e-5, .activation = "relu2"};
  defaults.rope.theta = 500000;
  Decoder decoder = read_decoder(reader, defaults);
  read_attention_bias(reader, decoder);
  decoder.mixer["output_norm"] = true;
  decoder.mixer["bits"] = decoder.bits = read_bits(reader);
  decoder.ffn_norm = true;
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = decoder_layers(config);
  if (layers.empty()) return {};
  nlohmann::json json = write_decoder(config, "bitnet", "BitNetForCausalLM");
  const nlohmann::json& mixer = layers.front()->mixers.front();
  json["attention_bias"] = mixer.at("bias");
  if (mixer.at("bits") != "whole") {
    json["quantization_config"] = {
        {"quant_method", "bitnet"},
        {"linear_class", "autobitlinear"},
        {"quantization_mode", mixer.at("bits") == "ternary" ? "online" : "offline"}};
  }
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "model.layers.*.";
  TensorRules tensors = decoder_tensors(config);
  std::vector<TensorRule> first = {
      {{layer + "mixer.output_norm.*"}, {theirs + "self_attn.attn_sub_norm.*"}, {}},
      {{layer + "ffn.norm.*"}, {theirs + "mlp.ffn_sub_norm.*"}, {}}};
  if (decoder_layers(config).front()->mixers.front().at("bits") == "inputs") {
    for (const auto& [ours, published] :
         {std::pair("mixer.*_proj.weight", "self_attn.*_proj.weight"),
          {"ffn.*_proj.weight", "mlp.*_proj.weight"}}) {
      const std::string name = theirs + published;
      first.push_back({{layer + ours}, {name, name + "_scale"}, four_per_byte()});
    }
  }
  tensors.rules.insert(tensors.rules.begin(), first.begin(), first.end());
  return tensors;
}

// The architecture is that of the first reproduction (1bitLLM): gates are SiLU, inputs stay as they
// are, and matrices are the rounded numbers themselves.
void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_attention(file, config);
  config["hidden_act"] = "silu";
}

TensorRules gguf_tensors(const ModelConfig& config) {
  TensorRules tensors = gguf_decoder_tensors(config, {});
  const std::vector<TensorRule> norms = {
      {{"layers.*.mixer.output_norm.weight"}, {"blk.*.attn_sub_norm.weight"}, {}},
      {{"layers.*.ffn.norm.weight"}, {"blk.*.ffn_sub_norm.weight"}, {}}};
  tensors.rules.insert(tensors.rules.begin(), norms.begin(), norms.end());
  return tensors;
}

}  // namespace

Family bitnet_family() {
  static const GgufFormat gguf = {"bitnet",  gguf_decoder_keys(),  gguf_decoder_other_keys(),
                                  read_gguf, write_gguf_attention, gguf_tensors,
                                  true};
  return {"bitnet", read, write, tensors, &gguf};
}

}  // namespace pronghorn
