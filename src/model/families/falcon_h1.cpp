// The Falcon-H1 family (arXiv 2507.22448): attention and Mamba-2 side by side in every layer, their
// outputs added, and factors on everything.
#include <algorithm>

#include "base/error.h"
#include "model/families.h"
#include "model/families/hybrid.h"

namespace pronghorn {
namespace {

nlohmann::json read_factors(ConfigReader& reader, const std::string& key, size_t count) {
  if (!reader.has(key)) {
    reader.ignore(key);
    return std::vector<double>(count, 1.0);
  }
  const nlohmann::json& factors = reader.raw(key);
  const auto is_number = [](const nlohmann::json& factor) { return factor.is_number(); };
  require(factors.is_array() && factors.size() == count && std::ranges::all_of(factors, is_number),
          reader.path(key), "must be a list of {} factors", count);
  return factors;
}

nlohmann::json read_mamba2(ConfigReader& reader, int64_t hidden_size) {
  const int64_t inner =
      reader.integer("mamba_d_ssm", is_null(reader, "mamba_d_ssm") ? 0 : 1024, 0, 1 << 24);
  nlohmann::json mixer = read_mamba2_mixer(reader, hidden_size, inner);
  mixer["output_bias"] = reader.boolean("projectors_bias", false);
  mixer["input_scale"] = reader.number("ssm_in_multiplier", 1.0);
  mixer["output_scale"] = reader.number("ssm_out_multiplier", 1.0);
  mixer["projection_scales"] = read_factors(reader, "ssm_multipliers", 5);
  const bool norm_first = reader.boolean("mamba_norm_before_gate", true);
  mixer["norm"] = !reader.boolean("mamba_rms_norm", false) ? "none"
                  : norm_first                             ? "norm_then_gate"
                                                           : "gate_then_norm";
  reader.ignore("mamba_use_mlp");
  return mixer;
}

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {.kv_heads = 8, .epsilon = 1e-5});
  read_attention_bias(reader, decoder);
  read_mlp_bias(reader, decoder);
  decoder.mixer["input_scale"] = reader.number("attention_in_multiplier", 1.0);
  decoder.mixer["key_scale"] = reader.number("key_multiplier", 1.0);
  decoder.mixer["output_scale"] = reader.number("attention_out_multiplier", 1.0);
  decoder.settings["embedding_scale"] = reader.number("embedding_multiplier", 1.0);
  decoder.settings["logit_scale"] = reader.number("lm_head_multiplier", 1.0);
  const nlohmann::json mamba2 =
      read_mamba2(reader, decoder.settings.at("hidden_size").get<int64_t>());
  const nlohmann::json factors = read_factors(reader, "mlp_multipliers", 2);
  return decoder.finish_layers(reader, [&](int64_t, nlohmann::json& block) {
    block["mixers"] = {mamba2, block.at("mixer")};
    block["merge"] = "sum";
    block.erase("mixer");
    if (factors[0] == 1 && factors[1] == 1) return;
    if (block["ffn"]["type"] == "swiglu") {
      block["ffn"] = {{"type", "glu"}, {"size", decoder.size}, {"activation", "silu"}};
    }
    block["ffn"]["gate_scale"] = factors[0];
    block["ffn"]["output_scale"] = factors[1];
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = layer_blocks(config);
  if (layers.empty()) return {};
  const BlockConfig& first = *layers.front();
  const bool fits = first.mixers.size() == 2 && first.mixers[0].at("type") == "mamba2" &&
                    first.mixers[1].at("type") == "attention" && is_decoder_ffn(first.feed_forward);
  if (!fits) return {};
  BlockConfig plain = first;  // as a decoder has it
  plain.mixers.assign(1, first.mixers[1]);
  nlohmann::json json = write_decoder(config, {&plain}, "falcon_h1", "FalconH1ForCausalLM");
  const nlohmann::json &mamba2 = first.mixers[0], &attention = first.mixers[1];
  if (!heads_share_width(config, attention)) return {};
  json.erase("head_dim");
  json.update(write_mamba2_mixer(config, mamba2));
  json["mamba_d_ssm"] = mamba2.at("heads").get<int64_t>() * mamba2.at("head_dim").get<int64_t>();
  json["mamba_rms_norm"] = mamba2.at("norm") != "none";
  json["mamba_norm_before_gate"] = mamba2.at("norm") != "gate_then_norm";
  json["projectors_bias"] = mamba2.at("output_bias");
  json["ssm_in_multiplier"] = mamba2.at("input_scale");
  json["ssm_out_multiplier"] = mamba2.at("output_scale");
  json["ssm_multipliers"] = mamba2.at("projection_scales");
  json["attention_bias"] = attention.at("bias");
  json["attention_in_multiplier"] = attention.at("input_scale");
  json["key_multiplier"] = attention.at("key_scale");
  json["attention_out_multiplier"] = attention.at("output_scale");
  json["mlp_bias"] = has_bias(first.feed_forward);
  json["mlp_multipliers"] = {first.feed_forward.value("gate_scale", 1.0),
                             first.feed_forward.value("output_scale", 1.0)};
  json["embedding_multiplier"] = config.embedding_scale;
  json["lm_head_multiplier"] = config.logit_scale;
  return json;
}

TensorRules tensors(const ModelConfig& config) { return mamba_hybrid_tensors(config, "mamba2"); }

}  // namespace

Family falcon_h1_family() { return {"falcon_h1", read, write, tensors}; }

}  // namespace pronghorn
