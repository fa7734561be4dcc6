// Families in GGUF files: what can be said in them computes the same when it is read again, under
// the names that other programs use, and what cannot be said is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "model/checkpoint.h"
#include "model/families.h"
#include "model/gguf_format.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/golden_models.h"
#include "support/goldens.h"
#include "support/model_runs.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::changed_golden;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::gguf_refusal;
using testing_support::golden_logits;
using testing_support::golden_path;
using testing_support::relative_difference;
using testing_support::scores;

struct Case {
  std::string golden, architecture;
  nlohmann::json changes = nlohmann::json::object();
  // Angles that are stored as f32 divisors differ in the last bits.
  bool exact = true;
  // As which the file is read, if not as that of the golden.
  std::string family = "";
};

const Case kCases[] = {
    {"llama", "llama"},
    {"llama_tied", "llama"},
    {"llama_linear", "llama"},
    {"llama_dynamic", "llama"},
    {"llama_yarn", "llama"},
    {"llama_yarn_factors", "llama", {{"rope_parameters", {{"truncate", true}}}}, false},
    {"llama_3", "llama", nlohmann::json::object(), false},
    {"mistral", "llama", {{"sliding_window", nullptr}}, true, "llama"},
    {"qwen2_tied", "qwen2"},
    {"qwen3", "qwen3", {{"use_sliding_window", false}, {"layer_types", nullptr}}},
    {"smollm3", "smollm3"},
    {"gemma2", "gemma2", {{"query_pre_attn_scalar", 8}}},
    // Windows in another order than the architecture has by itself.
    {"gemma2",
     "gemma2",
     {{"query_pre_attn_scalar", 8},
      {"layer_types", {"full_attention", "full_attention", "sliding_attention"}}}},
    {"gemma3_text", "gemma3", {{"query_pre_attn_scalar", 8}}},
    {"gemma3_text_pattern", "gemma3", {{"query_pre_attn_scalar", 8}}},
    {"gemma3_text",
     "gemma3",
     {{"query_pre_attn_scalar", 8},
      {"layer_types", {"full_attention", "full_attention", "full_attention"}}}},
    {"phi3", "phi3", nlohmann::json::object(), false},
    {"phi3_window", "phi3"},
    {"olmo2", "olmo2"},
    {"granite", "granite"},
    {"granite_bias", "granite"},
    {"gpt2", "gpt2"},
    {"gpt_neox", "gptneox"},
    {"mixtral", "llama", {{"sliding_window", nullptr}}},
    {"mixtral_odd", "llama"},
    {"qwen2_moe_plain", "qwen2moe"},
    {"qwen3_moe", "qwen3moe"},
    {"olmoe", "olmoe"},
    {"granitemoe", "granitemoe"},
    {"granitemoe_bias", "granitemoe"},
    {"gpt_oss", "gpt-oss"},
    {"gpt_oss",
     "gpt-oss",
     {{"layer_types", {"full_attention", "sliding_attention", "sliding_attention"}}}},
    {"deepseek_v2_groups", "deepseek2"},
    {"deepseek_v3", "deepseek2", {{"rope_parameters", {{"mscale", 0.6}}}}},
    {"deepseek_v32", "deepseek32"},
    {"glm4_moe", "glm4moe"},
    {"glm4_moe_bias", "glm4moe"},
    {"glm4_moe_lite", "deepseek2", nlohmann::json::object(), true, "deepseek_v3"},
    {"minicpm3", "minicpm3", {{"scale_emb", 12.0}, {"scale_depth", 1.4}, {"dim_model_base", 256}}},
    {"llada", "llada"},
    {"llada_tied", "llada"},
    {"llada_moe", "llada-moe", nlohmann::json::object(), true, "lladamoe"},
    {"lladamoe", "llada-moe"},
    {"dream", "dream"},
    {"bitnet_online", "bitnet", {{"hidden_act", "silu"}, {"quantization_config", nullptr}}},
};

TEST(GgufFamilies, WrittenAndReadComputeTheSame) {
  for (const Case& each : kCases) {
    SCOPED_TRACE(each.golden + " " + each.changes.dump());
    const Folder folder;
    const auto model = changed_golden(folder, each.golden, each.changes);
    const auto path = folder / "model.gguf";
    save_gguf(*model, path, GgufMetadata("test"));
    const auto loaded = Model::load(path);
    EXPECT_EQ(GgufFile(path).metadata().text("general.architecture"), each.architecture);
    const std::vector<float> wanted = scores(*model, each.golden);
    const std::vector<float> found = scores(*loaded, each.golden);
    if (each.exact) {
      EXPECT_EQ(bit_difference(found, wanted), "");
    }
    EXPECT_LE(relative_difference(found, wanted), 2e-6);
    if (each.changes.empty()) {
      EXPECT_LE(relative_difference(found, golden_logits(each.golden)), 2e-4);
    }
    // From there to a directory, in the same family.
    loaded->save(folder / "directory");
    const auto again = Model::load(folder / "directory");
    EXPECT_EQ(again->config().family, each.family.empty() ? model->config().family : each.family);
    EXPECT_EQ(bit_difference(scores(*again, each.golden), found), "");
  }
}

TEST(GgufFamilies, WhatCannotBeSaidIsNamed) {
  EXPECT_THAT(gguf_refusal("llama_yarn_factors"), HasSubstr("layers.0.mixer.rope = "));
  EXPECT_THAT(gguf_refusal("mistral"), HasSubstr("layers.0.mixer.window = 23"));
  EXPECT_THAT(gguf_refusal("qwen2"), HasSubstr("layers.1.mixer.window = 19"));
  EXPECT_THAT(gguf_refusal("qwen3_bias"), HasSubstr("layers.0.mixer.o_proj.bias"));
  EXPECT_THAT(gguf_refusal("smollm3_window"), HasSubstr("bias"));
  EXPECT_THAT(gguf_refusal("gemma2"), HasSubstr("layers.0.mixer.scale"));
  EXPECT_THAT(gguf_refusal("gemma2", {{"query_pre_attn_scalar", 8}, {"embedding_scale", 1}}),
              HasSubstr("embedding_scale = 1"));
  EXPECT_THAT(
      gguf_refusal("gemma2", {{"query_pre_attn_scalar", 8}, {"attn_logit_softcapping", nullptr}}),
      HasSubstr("soft_cap"));
  EXPECT_THAT(gguf_refusal("phi3_long"), HasSubstr("rope"));
  EXPECT_THAT(gguf_refusal("olmo2_yarn"), HasSubstr("olmo2: tensor rules: none fits"));
  EXPECT_THAT(gguf_refusal("gpt2_variants"), HasSubstr("activation"));
  EXPECT_THAT(gguf_refusal("gpt_neox_sequential"), HasSubstr("have a head besides"));
  EXPECT_THAT(gguf_refusal("bitnet"), HasSubstr("have no head besides"));
  EXPECT_THAT(gguf_refusal("bitnet_online"), HasSubstr("activation"));
  EXPECT_THAT(gguf_refusal("mixtral"), HasSubstr("layers.0.mixer.window = 19"));
  EXPECT_THAT(gguf_refusal("qwen2_moe_window"), HasSubstr("have a head besides"));
  EXPECT_THAT(gguf_refusal("qwen2_moe"), HasSubstr("layers.1.ffn"));  // without experts
  EXPECT_THAT(gguf_refusal("qwen2_moe_plain", {{"norm_topk_prob", true}}),
              HasSubstr("ffn.normalize = true"));
  EXPECT_THAT(gguf_refusal("qwen3_moe", {{"norm_topk_prob", false}}),
              HasSubstr("ffn.normalize = false"));
  EXPECT_THAT(gguf_refusal("qwen3_moe_all"), HasSubstr("o_proj.bias"));
  EXPECT_THAT(gguf_refusal("olmoe", {{"norm_topk_prob", true}}), HasSubstr("ffn.normalize = true"));
  EXPECT_THAT(gguf_refusal("gpt_oss", {{"swiglu_limit", 0.8}}), HasSubstr("ffn.clamp = 0.8"));
  EXPECT_THAT(
      gguf_refusal("gpt_oss", {{"rope_parameters",
                                {{"truncate", true}, {"original_max_position_embeddings", 200}}}}),
      HasSubstr("mixer.rope = "));
  EXPECT_THAT(gguf_refusal("deepseek_v2"), HasSubstr("bias"));
  EXPECT_THAT(gguf_refusal("deepseek_v3"), HasSubstr("mixer.rope = "));
  EXPECT_THAT(gguf_refusal("deepseek_v3_plain"), HasSubstr("bias"));
  EXPECT_THAT(gguf_refusal("glm4_moe_lite", {{"rope_interleave", false}}),
              HasSubstr("mixer.rope = "));
  EXPECT_THAT(gguf_refusal("glm4_moe_lite_layers"), HasSubstr("bias"));
  EXPECT_THAT(gguf_refusal("minicpm3"), HasSubstr("embedding_scale = 3"));
  EXPECT_THAT(gguf_refusal("deepseek_v32_layers"), HasSubstr("bias"));
  EXPECT_THAT(gguf_refusal("zamba2"), HasSubstr("no architecture of GGUF files"));
  EXPECT_THAT(gguf_refusal("sdar"), HasSubstr("no architecture of GGUF files"));
  // Tables of divisors, which the architecture does not look at.
  EXPECT_THAT(gguf_refusal("qwen2_tied", {{"rope_parameters",
                                           {{"rope_type", "llama3"},
                                            {"factor", 8.0},
                                            {"low_freq_factor", 1.0},
                                            {"high_freq_factor", 4.0},
                                            {"original_max_position_embeddings", 32}}}}),
              HasSubstr("rotary positions are scaled"));
}

// Scores are scaled by the width of heads, but in the largest models; and the factor on embeddings
// is what bf16 makes of it.
TEST(GgufFamilies, GemmasOwnRules) {
  for (const auto& [family, layers] : {std::pair{"gemma2", 46}, {"gemma3_text", 62}}) {
    nlohmann::json json = {{"model_type", family},     {"vocab_size", 8},
                           {"hidden_size", 24},        {"num_hidden_layers", layers},
                           {"num_attention_heads", 2}, {"num_key_value_heads", 1},
                           {"intermediate_size", 8},   {"head_dim", 4},
                           {"sliding_window", 16},     {"query_pre_attn_scalar", 12},
                           {"torch_dtype", "bfloat16"}};
    const auto config = [&, family = family] {
      return find_family(family, "").read(ConfigReader(json, "test"));
    };
    const Folder folder;
    const Model model(config(), 5);
    save_gguf(model, folder / "model.gguf", GgufMetadata("test"));
    EXPECT_EQ(Model::load(folder / "model.gguf")->fingerprint(), model.fingerprint());
    json["query_pre_attn_scalar"] = 4;
    const Model other(config(), 5);
    EXPECT_THAT(error_of([&] { save_gguf(other, folder / "b.gguf", GgufMetadata("test")); }),
                HasSubstr("layers.0.mixer.scale"));
  }
}

// A file of the golden, with keys of the architecture changed.
class Changed {
 public:
  explicit Changed(const std::string& golden) : model_(Model::load(golden_path(golden))) {}

  ModelConfig with(const std::vector<std::pair<std::string, GgufValue>>& keys) {
    GgufMetadata extra("test");
    for (const auto& [key, value] : keys) extra.set(key, value);
    save_gguf(*model_, folder_ / "model.gguf", extra);
    return load_config(folder_ / "model.gguf");
  }
  nlohmann::json scaling(const std::vector<std::pair<std::string, GgufValue>>& keys) {
    return with(keys).blocks.at('a').mixers.front().at("rope").at("scaling");
  }
  std::string error(const std::string& key, const GgufValue& value) {
    return error_of([&] { with({{key, value}}); });
  }

 private:
  Folder folder_;
  std::unique_ptr<Model> model_;
};

TEST(GgufFamilies, ScalingsAreReadAsOthersWriteThem) {
  Changed llama("llama");
  const GgufValue four = GgufValue::f32(4);
  EXPECT_TRUE(llama.scaling({}).is_null());
  EXPECT_TRUE(llama
                  .scaling({{"llama.rope.scaling.type", GgufValue::text("none")},
                            {"llama.rope.scaling.factor", four}})
                  .is_null());
  // Without a type, and under the older name.
  for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    EXPECT_EQ(llama.scaling({{key, four}}).at("type"), "linear");
    EXPECT_EQ(llama.scaling({{key, four}}).at("factor"), 4);
  }
  const GgufValue yarn = GgufValue::text("yarn");
  const auto attention_factor = [&](const char* key, float value) {
    return llama
        .scaling({{"llama.rope.scaling.type", yarn},
                  {"llama.rope.scaling.factor", four},
                  {key, GgufValue::f32(value)}})
        .at("attention_factor")
        .get<double>();
  };
  EXPECT_EQ(attention_factor("llama.rope.scaling.yarn_attn_factor", 1.3f), 1.3);
  EXPECT_EQ(attention_factor("llama.rope.scaling.yarn_attn_factor", 1), 0);  // by the factor
  EXPECT_NEAR(attention_factor("llama.rope.scaling.attn_factor", 0.5f), 0.5 * 1.138629436, 1e-6);

  EXPECT_THAT(llama.error("llama.rope.scaling.type", GgufValue::text("spiral")),
              HasSubstr("'spiral'"));
  EXPECT_THAT(llama.error("llama.rope.scaling.type", GgufValue::text("longrope")),
              HasSubstr("rope_factors_short.weight"));
  EXPECT_THAT(llama.error("llama.rope.scaling.attn_factor", four), HasSubstr("attn_factor"));
  EXPECT_THAT(llama.error("llama.attention.causal", GgufValue::boolean(false)),
              HasSubstr("causal"));
  EXPECT_THAT(llama.error("llama.attention.head_count_kv", GgufValue::u32(3)),
              HasSubstr(".mixer.kv_heads (llama.attention.head_count_kv): 3"));
  Changed granite("granite");
  EXPECT_THAT(granite.error("granite.rope.scaling.finetuned", GgufValue::boolean(false)),
              HasSubstr("finetuned"));
}

TEST(GgufFamilies, MaskedDiffusionIsReadAsOthersWriteIt) {
  for (const auto& [golden, architecture, shift] : {std::tuple("dream", "dream", true),
                                                    {"llada", "llada", false},
                                                    {"llada_moe", "llada-moe", false}}) {
    SCOPED_TRACE(golden);
    Changed changed(golden);
    const std::string mask = "tokenizer.ggml.mask_token_id", causal = ".attention.causal";
    const DiffusionConfig read = changed.with({{mask, GgufValue::u32(5)}}).diffusion.value();
    EXPECT_EQ(read.mask_token, 5);
    EXPECT_EQ(read.shift, shift);
    EXPECT_THAT(changed.error(architecture + causal, GgufValue::boolean(true)),
                HasSubstr("causal"));
    EXPECT_THAT(changed.error("diffusion.shift_logits", GgufValue::boolean(!shift)),
                HasSubstr("shift_logits"));
    EXPECT_THAT(changed.error(mask, GgufValue::u32(1000)), HasSubstr("mask_token"));
  }
}

TEST(GgufFamilies, WindowsAreReadAsOthersWriteThem) {
  const Folder folder;
  const auto model = changed_golden(folder, "gemma2", {{"query_pre_attn_scalar", 8}});
  const auto windows = [&](const GgufValue& pattern) {
    GgufMetadata extra("test");
    extra.set("gemma2.attention.sliding_window_pattern", pattern);
    save_gguf(*model, folder / "model.gguf", extra);
    std::vector<int64_t> all;
    const ModelConfig config = load_config(folder / "model.gguf");
    for (const PatternStep& step : config.steps) {
      all.push_back(config.blocks.at(step.block).mixers.front().at("window"));
    }
    return all;
  };
  using testing::ElementsAre;
  EXPECT_THAT(windows(GgufValue::u32(3)), ElementsAre(21, 21, 0));
  EXPECT_THAT(windows(GgufValue::u32(1)), ElementsAre(0, 0, 0));
  EXPECT_THAT(windows(GgufValue::u32(0)), ElementsAre(21, 21, 21));
  EXPECT_THAT(windows(GgufValue::booleans({false, true, false})), ElementsAre(0, 21, 0));
  const std::vector<int32_t> numbers = {0, 1, 1};
  EXPECT_THAT(windows(GgufValue::i32s(numbers)), ElementsAre(0, 21, 21));
  EXPECT_THAT(error_of([&] { windows(GgufValue::booleans({true})); }),
              HasSubstr("there are 3 layers"));
}

// The names of the gguf package, where an architecture has its own.
TEST(GgufFamilies, NamesAreThoseOfOtherPrograms) {
  const auto names = [](const std::string& golden, const nlohmann::json& changes) {
    const Folder folder;
    save_gguf(*changed_golden(folder, golden, changes), folder / "model.gguf",
              GgufMetadata("test"));
    std::vector<std::string> all;
    const GgufFile file(folder / "model.gguf");
    for (const GgufTensor& tensor : file.tensors()) {
      const bool other_layer =
          tensor.name.starts_with("blk.") && !tensor.name.starts_with("blk.0.");
      if (!other_layer) all.emplace_back(tensor.name);
    }
    return all;
  };
  const nlohmann::json none = nlohmann::json::object(), head = {{"query_pre_attn_scalar", 8}};
  using testing::UnorderedElementsAre;
  EXPECT_THAT(names("llama_3", none),
              UnorderedElementsAre(
                  "blk.0.attn_k.weight", "blk.0.attn_norm.weight", "blk.0.attn_output.weight",
                  "blk.0.attn_q.weight", "blk.0.attn_v.weight", "blk.0.ffn_down.weight",
                  "blk.0.ffn_gate.weight", "blk.0.ffn_norm.weight", "blk.0.ffn_up.weight",
                  "output_norm.weight", "rope_freqs.weight", "token_embd.weight"));
  EXPECT_THAT(
      names("gemma3_text", head),
      UnorderedElementsAre(
          "blk.0.attn_k.weight", "blk.0.attn_k_norm.weight", "blk.0.attn_norm.weight",
          "blk.0.attn_output.weight", "blk.0.attn_q.weight", "blk.0.attn_q_norm.weight",
          "blk.0.attn_v.weight", "blk.0.ffn_down.weight", "blk.0.ffn_gate.weight",
          "blk.0.ffn_norm.weight", "blk.0.ffn_up.weight", "blk.0.post_attention_norm.weight",
          "blk.0.post_ffw_norm.weight", "output_norm.weight", "token_embd.weight"));
  EXPECT_THAT(names("phi3", none),
              UnorderedElementsAre(
                  "blk.0.attn_norm.weight", "blk.0.attn_output.weight", "blk.0.attn_qkv.weight",
                  "blk.0.ffn_down.weight", "blk.0.ffn_norm.weight", "blk.0.ffn_up.weight",
                  "output_norm.weight", "output.weight", "rope_factors_long.weight",
                  "rope_factors_short.weight", "token_embd.weight"));
  EXPECT_THAT(
      names("gpt2", none),
      UnorderedElementsAre("blk.0.attn_norm.bias", "blk.0.attn_norm.weight",
                           "blk.0.attn_output.bias", "blk.0.attn_output.weight",
                           "blk.0.attn_qkv.bias", "blk.0.attn_qkv.weight", "blk.0.ffn_down.bias",
                           "blk.0.ffn_down.weight", "blk.0.ffn_norm.bias", "blk.0.ffn_norm.weight",
                           "blk.0.ffn_up.bias", "blk.0.ffn_up.weight", "output_norm.bias",
                           "output_norm.weight", "position_embd.weight", "token_embd.weight"));
}

}  // namespace
}  // namespace pronghorn
