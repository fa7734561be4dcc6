// The Falcon-H1 family (arXiv 2507.22448): attention and Mamba-2 side by side in every layer, their
// outputs added, and factors on everything.
#include <algorithm>
#include <iterator>
#include <utility>

#include "base/error.h"
#include "model/families.h"
#include "model/families/gguf_hybrid.h"
#include "model/families/hybrid.h"
#include "model/families/mixture.h"

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

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_attention(file, config);
  read_gguf_mamba2(file, config);
  config["mamba_d_ssm"] = file.metadata.integer(file.key("ssm.inner_size"));
  config["mamba_rms_norm"] = file.has("blk.0.ssm_norm.weight");
  config["mamba_norm_before_gate"] = false;
  read_gguf_biases(file, config);
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_gguf_attention(config, json, file);
  write_gguf_mamba2(config, file);
}

// Factors are in the weights that they are factors of.
ModelConfig folded(ModelConfig config) {
  require(!config.tie_embeddings || config.embedding_scale == config.logit_scale, "falcon-h1",
          "one matrix cannot hold embeddings times {} and a head times {}", config.embedding_scale,
          config.logit_scale);
  nlohmann::json json = write(config).value();
  for (const char* key :
       {"ssm_in_multiplier", "ssm_out_multiplier", "attention_in_multiplier", "key_multiplier",
        "attention_out_multiplier", "embedding_multiplier", "lm_head_multiplier"}) {
    json[key] = 1.0;
  }
  for (const char* key : {"ssm_multipliers", "mlp_multipliers"}) json.erase(key);
  return read(ConfigReader(std::move(json), "falcon-h1"));
}

Transform factor(double value) { return value == 1 ? Transform() : transforms::unscale({value}); }

// Of the rows of the projection to z, x, B, C and dt.
Transform projection_factors(const nlohmann::json& mamba2) {
  const int64_t heads = mamba2.at("heads"), inner = heads * mamba2.at("head_dim").get<int64_t>();
  const int64_t state = mamba2.at("groups").get<int64_t>() * mamba2.at("state").get<int64_t>();
  const int64_t rows[] = {inner, inner, state, state, heads};
  const double input = mamba2.at("input_scale");
  std::vector<double> factors;
  for (size_t i = 0; i < std::size(rows); ++i) {
    factors.insert(factors.end(), static_cast<size_t>(rows[i]),
                   input * mamba2.at("projection_scales").at(i).get<double>());
  }
  const bool plain = std::ranges::all_of(factors, [](double value) { return value == 1; });
  return plain ? Transform() : transforms::unscale(factors);
}

TensorRules gguf_tensors(const ModelConfig& config) {
  const BlockConfig& block = *layer_blocks(config).front();
  const nlohmann::json &mamba2 = block.mixers[0], &attention = block.mixers[1];
  const double input = attention.at("input_scale"), key = attention.at("key_scale");
  std::vector<TensorRule> recurrent = {
      {{"in_proj.weight"}, {"ssm_in.weight"}, projection_factors(mamba2)},
      {{"out_proj.weight"}, {"ssm_out.weight"}, factor(mamba2.at("output_scale"))}};
  for (const TensorRule& rule : gguf_mamba2_rules(config)) recurrent.push_back(rule);
  TensorRules tensors = gguf_hybrid_tensors(
      config, {},
      {{"mamba2", "", recurrent},
       {"attention",
        "",
        {{{"q_proj.weight"}, {"attn_q.weight"}, factor(input)},
         {{"k_proj.weight"}, {"attn_k.weight"}, factor(input * key)},
         {{"v_proj.weight"}, {"attn_v.weight"}, factor(input)},
         {{"o_proj.weight"}, {"attn_output.weight"}, factor(attention.at("output_scale"))}}}});
  const std::string ffn = "layers.*.ffn.";
  const nlohmann::json& glu = block.feed_forward;
  return with_rules(
      std::move(tensors),
      {{{"embeddings.weight"}, {"token_embd.weight"}, factor(config.embedding_scale)},
       {{"lm_head.weight"}, {"output.weight"}, factor(config.logit_scale)},
       // Without ".weight", which llama.cpp insists on.
       {{"layers.*.ffn_norm.weight"}, {"blk.*.ffn_norm"}, {}},
       {{ffn + "gate_proj.*"}, {"blk.*.ffn_gate.*"}, factor(glu.value("gate_scale", 1.0))},
       {{ffn + "up_proj.*"}, {"blk.*.ffn_up.*"}, {}},
       {{ffn + "down_proj.*"}, {"blk.*.ffn_down.*"}, factor(glu.value("output_scale", 1.0))}});
}

}  // namespace

Family falcon_h1_family() {
  static const GgufFormat gguf = {"falcon-h1",
                                  gguf_decoder_keys(gguf_mamba2_keys()),
                                  gguf_hybrid_other_keys({"ssm.inner_size"}),
                                  read_gguf,
                                  write_gguf,
                                  gguf_tensors,
                                  {},
                                  nullptr,
                                  folded};
  return {"falcon_h1", read, write, tensors, &gguf};
}

}  // namespace pronghorn
