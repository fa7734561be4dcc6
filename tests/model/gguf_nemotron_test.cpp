// GGUF files of Nemotron-H with experts, which are another architecture than those without.
#include <gmock/gmock.h>

#include <algorithm>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/families.h"
#include "model/gguf_format.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/gguf_contents.h"
#include "support/golden_models.h"
#include "support/goldens.h"
#include "support/model_runs.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing::UnorderedElementsAre;
using testing_support::bit_difference;
using testing_support::changed_golden;
using testing_support::Contents;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::gguf_refusal;
using testing_support::golden_path;
using testing_support::random_tokens;
using testing_support::relative_difference;

// Decays come back from -exp(A_log) with other last bits.
constexpr double kRounding = 5e-6;

std::vector<float> scores(const Model& model) {
  return testing_support::run(
      model, fresh_segments(random_tokens(20, model.config().vocab_size, 1), 20), Precision::f32);
}

// A model of the golden's configuration with changes, of random numbers.
Model random_model(const std::string& golden, const nlohmann::json& changes) {
  nlohmann::json json = read_config_json(golden_path(golden) / "config.json");
  json.update(changes);
  ModelConfig config = find_family("nemotron_h", "").read(ConfigReader(json, "test"));
  config.family = "nemotron_h";
  Model model(config, 1);
  Random random(2, "numbers");
  for (const Parameter& parameter : model.parameters()) {
    for (float& value : parameter.value.values()) {
      value += static_cast<float>(random.uniform(-0.2, 0.2));
    }
    parameter.value.bump_version();
  }
  return model;
}

const nlohmann::json kPlain = {
    {"layers_block_type", {"linear_attention", "moe", "full_attention", "moe"}}};
const nlohmann::json kLatent = {{"mlp_hidden_act", "relu2"}};

std::vector<std::string> names_of(const GgufFile& file, const std::string& layer) {
  std::vector<std::string> names;
  for (const GgufTensor& tensor : file.tensors()) {
    const std::string name(tensor.name);
    if (name.starts_with(layer)) names.push_back(name.substr(layer.size()));
  }
  return names;
}

TEST(GgufNemotron, ModelsWithExpertsComeBack) {
  for (const bool latent : {false, true}) {
    const Folder folder;
    const Model model = random_model(latent ? "nemotron_h_moe_latent" : "nemotron_h_moe",
                                     latent ? kLatent : kPlain);
    save_gguf(model, folder / "model.gguf", GgufMetadata("test"));
    const GgufFile file(folder / "model.gguf");
    EXPECT_EQ(file.metadata().text("general.architecture"), "nemotron_h_moe");
    EXPECT_EQ(file.metadata().integers("nemotron_h_moe.feed_forward_length"),
              latent ? std::vector<int64_t>({0, 12, 0}) : std::vector<int64_t>({0, 12, 0, 12}));
    std::vector<std::string> expected = {
        "attn_norm.weight",     "ffn_gate_inp.weight", "exp_probs_b.bias",     "ffn_up_exps.weight",
        "ffn_down_exps.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"};
    if (latent) {
      expected.insert(expected.end(), {"ffn_latent_down.weight", "ffn_latent_up.weight"});
    }
    EXPECT_THAT(names_of(file, "blk.1."), testing::UnorderedElementsAreArray(expected));
    const auto loaded = Model::load(folder / "model.gguf");
    EXPECT_EQ(loaded->config().family, "nemotron_h");
    EXPECT_LE(relative_difference(scores(*loaded), scores(model)), kRounding);
    // From there to a directory, and to a file again.
    loaded->save(folder / "directory");
    EXPECT_EQ(bit_difference(scores(*Model::load(folder / "directory")), scores(*loaded)), "");
    save_gguf(*loaded, folder / "again.gguf", GgufMetadata("test"));
    EXPECT_LE(relative_difference(scores(*Model::load(folder / "again.gguf")), scores(*loaded)),
              kRounding);
  }
}

// Sizes of the experts are those of the tensors where the keys do not say them.
TEST(GgufNemotron, FilesWithoutTheSizesOfExperts) {
  const Folder folder;
  const Model model = random_model("nemotron_h_moe", kPlain);
  GgufMetadata extra("test");
  for (const char* key : {"expert_feed_forward_length", "expert_shared_feed_forward_length",
                          "expert_group_count", "expert_group_used_count", "moe_latent_size"}) {
    // 0 says nothing.
    extra.set(fmt::format("nemotron_h_moe.{}", key), GgufValue::u32(0));
  }
  save_gguf(model, folder / "model.gguf", extra);
  EXPECT_LE(relative_difference(scores(*Model::load(folder / "model.gguf")), scores(model)),
            kRounding);
}

// A layer of attention and experts in one, which follows the others and is counted with them.
TEST(GgufNemotron, PredictorsArePassedOver) {
  const Folder folder;
  save_gguf(random_model("nemotron_h_moe", kPlain), folder / "model.gguf", GgufMetadata("test"));
  const Contents without(folder / "model.gguf");
  Contents file = without;
  for (const auto& [name, tensor] : without.tensors) {
    for (const std::string layer : {"blk.2.", "blk.3."}) {
      if (name.starts_with(layer)) file.tensors["blk.4." + name.substr(layer.size())] = tensor;
    }
  }
  file.tensors["blk.4.nextn.eh_proj.weight"] = file.tensors.at("token_embd.weight");
  const auto set = [&](const std::string& key, const GgufValue& value) {
    file.metadata.set("nemotron_h_moe." + key, value);
  };
  for (const std::string key : {"attention.head_count_kv", "feed_forward_length"}) {
    std::vector<int32_t> values;
    for (const int64_t value : without.metadata.integers("nemotron_h_moe." + key)) {
      values.push_back(static_cast<int32_t>(value));
    }
    values.push_back(std::ranges::max(values));
    set(key, GgufValue::i32s(values));
  }
  set("block_count", GgufValue::u32(5));
  set("nextn_predict_layers", GgufValue::u32(1));
  file.write(folder / "with.gguf");
  EXPECT_EQ(bit_difference(scores(*Model::load(folder / "with.gguf")),
                           scores(*Model::load(folder / "model.gguf"))),
            "");
}

TEST(GgufNemotron, WhatCannotBeSaidIsNamed) {
  EXPECT_THAT(gguf_refusal("nemotron_h_moe"), HasSubstr("experts in every feed-forward"));
  EXPECT_THAT(gguf_refusal("nemotron_h_moe_latent"), HasSubstr("activation"));
}

TEST(GgufNemotron, WhatFilesSayIsChecked) {
  const Model model = random_model("nemotron_h_moe", kPlain);
  const auto error_with = [&](const std::string& key, const GgufValue& value) {
    const Folder folder;
    GgufMetadata extra("test");
    extra.set("nemotron_h_moe." + key, value);
    save_gguf(model, folder / "model.gguf", extra);
    return error_of([&] { Model::load(folder / "model.gguf"); });
  };
  EXPECT_THAT(error_with("expert_gating_func", GgufValue::u32(1)), HasSubstr("1 is not what"));
  EXPECT_THAT(error_with("expert_used_count", GgufValue::u32(7)), HasSubstr("num_experts_per_tok"));
  EXPECT_THAT(
      error_with("expert_feed_forward_length", GgufValue::i32s(std::vector<int32_t>{0, 12, 0, 10})),
      HasSubstr("differs between layers"));
  EXPECT_THAT(error_with("expert_group_count", GgufValue::u32(4)),
              HasSubstr("nemotron_h_moe.expert_group_count): 4 does not divide experts 6"));
  EXPECT_THAT(error_with("nextn_predict_layers", GgufValue::u32(4)), HasSubstr("4 of 4 layers"));
  EXPECT_THAT(error_with("expert_count", GgufValue::u32(0)), HasSubstr("ffn"));
  EXPECT_THAT(error_with("attention.value_length", GgufValue::u32(7)),
              HasSubstr("attention.value_length': 7 where keys have"));
}

}  // namespace
}  // namespace pronghorn
