// Hybrid and recurrent families in GGUF files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "formats/safetensors.h"
#include "model/checkpoint.h"
#include "model/families.h"
#include "model/gguf_format.h"
#include "model/lora.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/gguf_contents.h"
#include "support/golden_models.h"
#include "support/goldens.h"
#include "support/model_runs.h"
#include "support/steps.h"
#include "tensor/block_layouts.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing::UnorderedElementsAre;
using testing_support::bit_difference;
using testing_support::changed_golden;
using testing_support::Contents;
using testing_support::decode;
using testing_support::equal_steps;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::gguf_refusal;
using testing_support::golden_logits;
using testing_support::golden_path;
using testing_support::random_tokens;
using testing_support::relative_difference;
using testing_support::scores;

struct Case {
  std::string golden, architecture;
  // As which the file is read, if not as that of the golden.
  std::string family = "";
};

const Case kCases[] = {
    {"lfm2", "lfm2"},
    {"qwen3_5_text", "qwen35"},
    {"qwen3_5", "qwen35", "qwen3_5_text"},
    {"granitemoehybrid", "granitehybrid"},
    {"bamba", "granitehybrid"},
    {"falcon_h1", "falcon-h1"},
    {"nemotron_h", "nemotron_h"},
    {"jamba", "jamba"},
    {"mamba", "mamba"},
    {"falcon_mamba", "mamba"},
    {"mamba2", "mamba2"},
    {"qwen3_next_moe", "qwen3next"},
    {"qwen3_5_moe_text", "qwen35moe"},
    {"granitemoehybrid_moe", "granitehybrid"},
    {"granitemoehybrid_moe_rope", "granitehybrid"},
    {"jamba_moe", "jamba"},
    {"kimi_linear", "kimi-linear"},
};

// Decays come back from -exp(A_log) with other last bits, and factors in weights round them.
constexpr double kRounding = 5e-6;

TEST(GgufHybrids, WrittenAndReadComputeTheSame) {
  for (const Case& each : kCases) {
    SCOPED_TRACE(each.golden);
    const Folder folder;
    const auto model = Model::load(golden_path(each.golden));
    save_gguf(*model, folder / "model.gguf", GgufMetadata("test"));
    EXPECT_EQ(GgufFile(folder / "model.gguf").metadata().text("general.architecture"),
              each.architecture);
    const auto loaded = Model::load(folder / "model.gguf");
    const std::vector<float> found = scores(*loaded, each.golden);
    EXPECT_LE(relative_difference(found, scores(*model, each.golden)), kRounding);
    EXPECT_LE(relative_difference(found, golden_logits(each.golden)), 2e-5);
    // From there to a directory, in the same family.
    loaded->save(folder / "directory");
    const auto again = Model::load(folder / "directory");
    EXPECT_EQ(again->config().family, each.family.empty() ? model->config().family : each.family);
    EXPECT_EQ(bit_difference(scores(*again, each.golden), found), "");
  }
}

// The epsilon of the norm of heads is llama.cpp's for heads of 8 with this key.
TEST(GgufHybrids, Rwkv7) {
  const Folder folder;
  const auto model = changed_golden(folder, "rwkv7", {{"norm_eps", 8e-5}});
  save_gguf(*model, folder / "model.gguf", GgufMetadata("test"));
  const GgufFile file(folder / "model.gguf");
  EXPECT_EQ(file.metadata().text("general.architecture"), "rwkv7");
  EXPECT_EQ(file.metadata().integer("rwkv7.wkv.head_size"), 8);
  EXPECT_EQ(file.metadata().integer("rwkv7.attention.gate_lora_rank"), 6);
  EXPECT_EQ(file.find("blk.1.time_mix_lerp_fused.weight")->shape(),
            (std::vector<int64_t>{6, 1, 1, 24}));
  EXPECT_EQ(file.find("blk.0.time_mix_r_k.weight")->shape(), (std::vector<int64_t>{24}));
  // Not used, but asked for.
  EXPECT_EQ(file.find("blk.0.time_mix_v1.weight")->shape(), (std::vector<int64_t>{4, 24}));
  EXPECT_EQ(file.find("blk.1.time_mix_v1.weight")->shape(), (std::vector<int64_t>{3, 24}));
  const auto loaded = Model::load(folder / "model.gguf");
  const std::vector<float> found = scores(*loaded, "rwkv7");
  EXPECT_EQ(bit_difference(found, scores(*model, "rwkv7")), "");
  loaded->save(folder / "directory");
  const auto again = Model::load(folder / "directory");
  EXPECT_EQ(again->config().family, "rwkv7");
  EXPECT_EQ(bit_difference(scores(*again, "rwkv7"), found), "");

  Contents contents(folder / "model.gguf");
  contents.metadata.set("rwkv7.attention.layer_norm_epsilon", GgufValue::f32(1e-5f));
  contents.write(folder / "other.gguf");
  EXPECT_THAT(error_of([&] { Model::load(folder / "other.gguf"); }),
              HasSubstr("rwkv7.attention.layer_norm_epsilon"));
}

TEST(GgufHybrids, Rwkv7Refused) {
  EXPECT_THAT(gguf_refusal("rwkv7"), HasSubstr("epsilon of the norm of heads"));
  EXPECT_THAT(gguf_refusal("rwkv7_plain"), HasSubstr("have a head besides"));
}

// llama.cpp always makes the weights of experts one in all here.
TEST(GgufHybrids, KimiLinearWithGroups) {
  EXPECT_THAT(gguf_refusal("kimi_linear_groups"), HasSubstr("ffn.normalize = false"));
  const Folder folder;
  const auto model = changed_golden(folder, "kimi_linear_groups", {{"moe_renormalize", true}});
  save_gguf(*model, folder / "model.gguf", GgufMetadata("test"));
  const auto loaded = Model::load(folder / "model.gguf");
  EXPECT_LE(relative_difference(scores(*loaded, "kimi_linear_groups"),
                                scores(*model, "kimi_linear_groups")),
            kRounding);
}

// Queries, keys, values and gates in one matrix, as the reference has them.
TEST(GgufHybrids, OlderFilesOfQwen3Next) {
  const Folder folder;
  const std::string name = "qwen3_next_moe";
  const auto model = Model::load(golden_path(name));
  save_gguf(*model, folder / "model.gguf", GgufMetadata("test"));
  Contents file(folder / "model.gguf");
  Contents::Tensor older = file.take("blk.0.attn_qkv.weight");
  const Contents::Tensor gate = file.take("blk.0.attn_gate.weight");
  const SafetensorsFile published(golden_path(name) / "model.safetensors");
  const SafetensorsEntry* whole = published.find("model.layers.0.linear_attn.in_proj_qkvz.weight");
  ASSERT_NE(whole, nullptr);
  older.shape[0] += gate.shape[0];
  older.bytes.assign(whole->bytes.begin(), whole->bytes.end());
  file.tensors["blk.0.ssm_in.weight"] = older;
  file.write(folder / "older.gguf");
  EXPECT_EQ(bit_difference(scores(*Model::load(folder / "older.gguf"), name),
                           scores(*Model::load(folder / "model.gguf"), name)),
            "");
}

// llama.cpp has no factor on the weights of this family's experts.
TEST(GgufHybrids, Lfm2WithExperts) {
  const Folder folder;
  const auto model = changed_golden(folder, "lfm2_moe", {{"routed_scaling_factor", 1.0}});
  save_gguf(*model, folder / "model.gguf", GgufMetadata("test"));
  const auto loaded = Model::load(folder / "model.gguf");
  EXPECT_EQ(loaded->config().family, "lfm2_moe");
  EXPECT_EQ(bit_difference(scores(*loaded, "lfm2_moe"), scores(*model, "lfm2_moe")), "");
  EXPECT_THAT(error_of([&] {
                save_gguf(*Model::load(golden_path("lfm2_moe")), folder / "other.gguf",
                          GgufMetadata("test"));
              }),
              HasSubstr("ffn.scale"));
}

std::vector<float> numbers(const GgufTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  to_f32({std::string(tensor.type->name), tensor.shape(), tensor.bytes, nullptr, nullptr},
         values.data());
  return values;
}

TEST(GgufHybrids, AFileThatIsReadAndWrittenKeepsItsNumbers) {
  for (const Case& each : kCases) {
    SCOPED_TRACE(each.golden);
    const Folder folder;
    save_gguf(*Model::load(golden_path(each.golden)), folder / "a.gguf", GgufMetadata("test"));
    save_gguf(*Model::load(folder / "a.gguf"), folder / "b.gguf", GgufMetadata("test"));
    const GgufFile a(folder / "a.gguf"), b(folder / "b.gguf");
    ASSERT_EQ(a.tensors().size(), b.tensors().size());
    for (const GgufTensor& tensor : a.tensors()) {
      const GgufTensor* other = b.find(tensor.name);
      ASSERT_NE(other, nullptr) << tensor.name;
      EXPECT_EQ(tensor.shape(), other->shape());
      const std::vector<float> one = numbers(tensor), two = numbers(*other);
      if (!tensor.name.ends_with("ssm_a")) {
        EXPECT_EQ(bit_difference(one, two), "") << tensor.name;
        continue;
      }
      for (size_t i = 0; i < one.size(); ++i) {
        // Made of f32 logarithms, they come back but where those are within a factor of two of 1.
        const double log = std::abs(std::log(-one[i]));
        if (log < 0.5 || log > 1.01) {
          EXPECT_EQ(one[i], two[i]);
        }
        EXPECT_NEAR(two[i] / static_cast<double>(one[i]), 1, 6e-8 * (1 + log));
      }
    }
    EXPECT_EQ(a.metadata().all().size(), b.metadata().all().size());
  }
}

// The names of the gguf package.
TEST(GgufHybrids, NamesAreThoseOfOtherPrograms) {
  const auto names = [](const std::string& golden, const std::string& layer) {
    const Folder folder;
    save_gguf(*Model::load(golden_path(golden)), folder / "model.gguf", GgufMetadata("test"));
    std::vector<std::string> all;
    const GgufFile file(folder / "model.gguf");
    for (const GgufTensor& tensor : file.tensors()) {
      const std::string name(tensor.name);
      if (name.starts_with(layer)) all.push_back(name.substr(layer.size()));
      if (!name.starts_with("blk.")) all.push_back(name);
    }
    return all;
  };
  EXPECT_THAT(names("lfm2", "blk.0."),
              UnorderedElementsAre("attn_norm.weight", "ffn_norm.weight", "ffn_gate.weight",
                                   "ffn_up.weight", "ffn_down.weight", "shortconv.conv.weight",
                                   "shortconv.in_proj.weight", "shortconv.out_proj.weight",
                                   "token_embd.weight", "token_embd_norm.weight"));
  EXPECT_THAT(names("qwen3_5_text", "blk.0."),
              UnorderedElementsAre(
                  "attn_norm.weight", "post_attention_norm.weight", "attn_qkv.weight",
                  "attn_gate.weight", "ssm_alpha.weight", "ssm_beta.weight", "ssm_conv1d.weight",
                  "ssm_a", "ssm_dt.bias", "ssm_norm.weight", "ssm_out.weight", "ffn_gate.weight",
                  "ffn_up.weight", "ffn_down.weight", "token_embd.weight", "output_norm.weight"));
  EXPECT_THAT(
      names("falcon_h1", "blk.0."),
      UnorderedElementsAre("attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight",
                           "attn_output.weight", "ssm_in.weight", "ssm_conv1d.weight",
                           "ssm_conv1d.bias", "ssm_dt.bias", "ssm_a", "ssm_d", "ssm_out.weight",
                           "ffn_norm", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight",
                           "token_embd.weight", "output_norm.weight", "output.weight"));
  EXPECT_THAT(names("mamba", "blk.0."),
              UnorderedElementsAre("attn_norm.weight", "ssm_in.weight", "ssm_conv1d.weight",
                                   "ssm_conv1d.bias", "ssm_x.weight", "ssm_dt.weight",
                                   "ssm_dt.bias", "ssm_a", "ssm_d", "ssm_out.weight",
                                   "token_embd.weight", "output_norm.weight"));
}

TEST(GgufHybrids, WhatCannotBeSaidIsNamed) {
  EXPECT_THAT(gguf_refusal("lfm2_bias"), HasSubstr("in_proj.bias"));
  EXPECT_THAT(gguf_refusal("qwen3_5_text_bias"), HasSubstr("g_proj.bias"));
  EXPECT_THAT(gguf_refusal("granitemoehybrid", {{"time_step_limit", {0.0, 0.5}}}),
              HasSubstr("time_step_limit"));
  EXPECT_THAT(gguf_refusal("granitemoehybrid_rope"), HasSubstr("in_proj.bias"));
  EXPECT_THAT(gguf_refusal("bamba_bias"), HasSubstr("in_proj.bias"));
  EXPECT_THAT(gguf_refusal("falcon_h1_norm"), HasSubstr("bias"));
  EXPECT_THAT(gguf_refusal("falcon_h1_gate"), HasSubstr("out_proj.bias"));
  EXPECT_THAT(gguf_refusal("nemotron_h_bias"), HasSubstr("in_proj.bias"));
  EXPECT_THAT(gguf_refusal("nemotron_h", {{"time_step_min", 0.01}}), HasSubstr("time_step_limit"));
  EXPECT_THAT(gguf_refusal("mamba_bias"), HasSubstr("in_proj.bias"));
  EXPECT_THAT(gguf_refusal("falcon_mamba", {{"mixer_rms_eps", 1e-4}}),
              HasSubstr("inner_norm_epsilon = 0.0001"));
  EXPECT_THAT(gguf_refusal("mamba2_groups"), HasSubstr("in_proj.bias"));
}

// Where the first layer is attention, and all of it and the feed-forwards have biases.
TEST(GgufHybrids, BambaWithBiases) {
  nlohmann::json json = read_config_json(golden_path("bamba_bias") / "config.json");
  json["mamba_proj_bias"] = false;
  json.erase("time_step_limit");
  const Folder folder;
  const Model model(find_family("bamba", "").read(ConfigReader(json, "test")), 1);
  save_gguf(model, folder / "model.gguf", GgufMetadata("test"));
  EXPECT_EQ(
      GgufFile(folder / "model.gguf").metadata().integer("granitehybrid.rope.dimension_count"), 2);
  EXPECT_EQ(Model::load(folder / "model.gguf")->config().family, "bamba");
}

TEST(GgufHybrids, OneMatrixHoldsOneFactor) {
  nlohmann::json json = read_config_json(golden_path("falcon_h1") / "config.json");
  json["tie_word_embeddings"] = true;
  const auto saved = [&](const Folder& folder) {
    const Model model(find_family("falcon_h1", "").read(ConfigReader(json, "test")), 1);
    save_gguf(model, folder / "model.gguf", GgufMetadata("test"));
  };
  const Folder folder;
  EXPECT_THAT(error_of([&] { saved(folder); }),
              HasSubstr("cannot hold embeddings times 3 and a head times 0.6"));
  json["lm_head_multiplier"] = 3.0;
  saved(folder);
  EXPECT_TRUE(Model::load(folder / "model.gguf")->config().tie_embeddings);
}

// A file of a golden, with keys changed.
std::string error_with(const std::string& golden, const std::string& key, const GgufValue& value) {
  const Folder folder;
  GgufMetadata extra("test");
  extra.set(key, value);
  save_gguf(*Model::load(golden_path(golden)), folder / "model.gguf", extra);
  return error_of([&] { Model::load(folder / "model.gguf"); });
}

TEST(GgufHybrids, WhatFilesSayIsChecked) {
  const auto list = [](const std::vector<int32_t>& values) { return GgufValue::i32s(values); };
  const std::string heads = "lfm2.attention.head_count_kv";
  EXPECT_THAT(error_with("lfm2", heads, list({0, 2})), HasSubstr("there are 3 layers"));
  EXPECT_THAT(error_with("lfm2", heads, list({2, 1, 0})), HasSubstr("differs between layers"));
  EXPECT_THAT(error_with("lfm2", heads, list({0, 0, 0})), HasSubstr("no layer has key/value"));
  EXPECT_THAT(error_with("lfm2", heads, list({2, 0, 0})), HasSubstr("no tensor"));
  EXPECT_THAT(error_with("lfm2", "lfm2.block_count", GgufValue::u32(4000000000)),
              HasSubstr("4000000000"));
  const auto truths = [](const std::vector<bool>& values) { return GgufValue::booleans(values); };
  const std::string recurrent = "qwen35.attention.recurrent_layers";
  EXPECT_THAT(error_with("qwen3_5_text", recurrent, truths({true})),
              HasSubstr("there are 4 layers"));
  EXPECT_THAT(error_with("qwen3_5_text", recurrent, GgufValue::u32(1)),
              HasSubstr("there are 4 layers"));
  for (const bool all : {true, false}) {
    EXPECT_THAT(error_with("qwen3_5_text", recurrent, truths({all, all, all, all})),
                HasSubstr("no tensor"));
  }
  EXPECT_THAT(error_with("qwen3_5_text", "qwen35.ssm.inner_size", GgufValue::u32(31)),
              HasSubstr("31 channels are not 6 heads"));
  EXPECT_THAT(error_with("qwen3_5_text", "qwen35.ssm.time_step_rank", GgufValue::u32(0)),
              HasSubstr("time_step_rank"));
  EXPECT_THAT(error_with("qwen3_5_text", "qwen35.nextn_predict_layers", GgufValue::u32(9)),
              HasSubstr("nextn_predict_layers"));
  EXPECT_THAT(error_with("granitemoehybrid", "granitehybrid.ssm.group_count", GgufValue::u32(3)),
              HasSubstr("groups"));
  EXPECT_THAT(error_with("nemotron_h", "nemotron_h.feed_forward_length", list({24, 0, 0, 24})),
              HasSubstr("a list where there are 5 layers"));
  EXPECT_THAT(error_with("nemotron_h", "nemotron_h.feed_forward_length", list({24, 0, 24, 24, 0})),
              HasSubstr("layer 2 is attention and has a feed-forward"));
  EXPECT_THAT(error_with("jamba", "jamba.attention.head_count_kv", list({0, 2, 2, 0})),
              HasSubstr("do not follow one another"));
  EXPECT_THAT(error_with("mamba", "mamba.ssm.inner_size", GgufValue::u32(0)),
              HasSubstr("inner_size"));
}

TEST(GgufHybrids, ValuesAreAsWideAsKeys) {
  for (const auto& [golden, architecture] :
       {std::pair("lfm2", "lfm2"), std::pair("qwen3_5_text", "qwen35"),
        std::pair("granitemoehybrid", "granitehybrid"), std::pair("nemotron_h", "nemotron_h"),
        std::pair("jamba", "jamba"), std::pair("falcon_h1", "falcon-h1")}) {
    const std::string key = fmt::format("{}.attention.value_length", architecture);
    EXPECT_THAT(error_with(golden, key, GgufValue::u32(7)), HasSubstr(key + "': 7 where keys have"))
        << golden;
  }
}

// A model like Qwen3.5 with two value heads of `value_dim` channels for each key head.
Model qwen(int64_t hidden, int64_t value_dim) {
  const nlohmann::json json = {{"model_type", "qwen3_5_text"},
                               {"vocab_size", 64},
                               {"hidden_size", hidden},
                               {"num_hidden_layers", 2},
                               {"layer_types", {"linear_attention", "full_attention"}},
                               {"num_attention_heads", 2},
                               {"num_key_value_heads", 1},
                               {"head_dim", hidden / 2},
                               {"intermediate_size", hidden},
                               {"linear_num_key_heads", 2},
                               {"linear_num_value_heads", 4},
                               {"linear_key_head_dim", 32},
                               {"linear_value_head_dim", value_dim}};
  return {find_family("qwen3_5_text", "").read(ConfigReader(json, "test")), 5};
}

std::vector<float> scores_of(const Model& model) {
  const std::vector<int32_t> tokens = random_tokens(40, 64, 3);
  SequenceState state = model.new_state();
  return decode(model, state, tokens, equal_steps(std::ssize(tokens), 7));
}

TEST(GgufHybrids, WeightsStayInTheirBlocks) {
  for (const auto& [encoding, most] :
       {std::pair{&encodings::q8_0, 0.02}, std::pair{&encodings::q4_0, 0.3}}) {
    SCOPED_TRACE(encoding->name);
    const Folder folder;
    const Model model = qwen(64, 32);
    SaveOptions options;
    options.encoding = encoding;
    save_gguf(model, folder / "a.gguf", GgufMetadata("test"), options);
    const auto loaded = Model::load(folder / "a.gguf");
    for (const Parameter& parameter : loaded->parameters()) {
      if (!parameter.matrix.defined() || !parameter.name.starts_with("layers.")) continue;
      EXPECT_EQ(&parameter.matrix.encoding(), encoding) << parameter.name;
    }
    const double deviation = relative_difference(scores_of(*loaded), scores_of(model));
    EXPECT_LE(deviation, most);
    EXPECT_GT(deviation, 0);
    // Written again without another encoding, the same bytes.
    save_gguf(*loaded, folder / "b.gguf", GgufMetadata("test"));
    const GgufFile a(folder / "a.gguf"), b(folder / "b.gguf");
    for (const GgufTensor& tensor : a.tensors()) {
      if (tensor.name.ends_with("ssm_a")) continue;
      EXPECT_TRUE(std::ranges::equal(tensor.bytes, b.find(tensor.name)->bytes)) << tensor.name;
    }
  }
}

// Two heads are one block of a row, so that no head can be moved.
class DealtHeads : public testing::Test {
 protected:
  DealtHeads() {
    SaveOptions options;
    options.encoding = &encodings::q6_k;
    save_gguf(qwen(256, 128), folder_ / "model.gguf", GgufMetadata("test"), options);
    dealt_ = Model::load(folder_ / "model.gguf");
    // A directory has the usual order, and says that the model has another.
    dealt_->save(folder_ / "directory");
    again_ = Model::load(folder_ / "directory");
    nlohmann::json json = read_config_json(folder_ / "directory/config.json");
    EXPECT_EQ(json.at("linear_output_order"), "dealt");
    json.erase("linear_output_order");
    write_file(folder_ / "directory/config.json", json.dump());
    grouped_ = Model::load(folder_ / "directory");
  }

  static std::string order(const Model& model) {
    return model.config().blocks.at('a').mixers.front().at("output_order");
  }

  Folder folder_;
  std::unique_ptr<Model> dealt_, again_, grouped_;
};

TEST_F(DealtHeads, StayInTheirBlocksAndComputeTheSame) {
  EXPECT_EQ(order(*dealt_), "dealt");
  EXPECT_EQ(order(*again_), "dealt");
  EXPECT_EQ(order(*grouped_), "grouped");
  for (const Parameter& parameter : dealt_->parameters()) {
    if (parameter.name.ends_with("mixer.o_proj.weight")) {
      EXPECT_EQ(&parameter.matrix.encoding(), &encodings::q6_k);
    }
  }
  const std::vector<float> wanted = scores_of(*grouped_);
  // The same numbers in f32, whose sums are in another order.
  EXPECT_LE(relative_difference(scores_of(*dealt_), wanted), 5e-6);
  EXPECT_LE(relative_difference(scores_of(*again_), wanted), 5e-6);
  EXPECT_LE(relative_difference(wanted, scores_of(qwen(256, 128))), 0.1);
  // Files have one order, whichever the model has.
  save_gguf(*dealt_, folder_ / "a.gguf", GgufMetadata("test"));
  save_gguf(*grouped_, folder_ / "b.gguf", GgufMetadata("test"));
  const GgufFile a(folder_ / "a.gguf"), b(folder_ / "b.gguf");
  const GgufFile first(folder_ / "model.gguf");
  constexpr const char* kOut = "blk.0.ssm_out.weight";
  EXPECT_TRUE(std::ranges::equal(a.find(kOut)->bytes, first.find(kOut)->bytes));
  const GgufTensor &blocks = *a.find(kOut), &plain = *b.find(kOut);
  std::vector<float> decoded(static_cast<size_t>(blocks.elements()));
  encodings::q6_k.decode(blocks.bytes.data(), blocks.elements(), decoded.data());
  EXPECT_EQ(bit_difference(numbers(plain), decoded), "");
}

// An adapter's names and columns are those of a directory.
TEST_F(DealtHeads, TakeAdapters) {
  const LoraConfig config{.rank = 2, .alpha = 4, .targets = {"o_proj", "v_proj"}};
  const auto path = folder_ / "adapter";
  const auto fresh = Adapter::fresh(*dealt_, config, 1);
  fresh->save(*dealt_, path, "test");
  // B is zero in a fresh one.
  const SafetensorsFile file(path / "adapter_model.safetensors");
  std::vector<TensorToWrite> tensors;
  std::vector<std::vector<float>> kept;
  Random random(7, "adapter");
  for (const std::string& name : file.names()) {
    const SafetensorsEntry& entry = *file.find(name);
    std::vector<float>& values = kept.emplace_back(static_cast<size_t>(entry.elements()));
    to_f32(entry, values.data());
    if (name.ends_with("lora_B.weight")) {
      for (float& value : values) value = static_cast<float>(random.uniform(-0.1, 0.1));
    }
    tensors.push_back({name, "F32", entry.shape, values.data(), values.size() * sizeof(float)});
  }
  write_safetensors(path / "changed.safetensors", tensors, {});
  std::filesystem::rename(path / "changed.safetensors", path / "adapter_model.safetensors");
  const std::vector<float> before = scores_of(*grouped_);
  dealt_->set_adapter(Adapter::load(*dealt_, path));
  grouped_->set_adapter(Adapter::load(*grouped_, path));
  const std::vector<float> wanted = scores_of(*grouped_);
  EXPECT_GT(relative_difference(wanted, before), 1e-3);
  EXPECT_LE(relative_difference(scores_of(*dealt_), wanted), 5e-6);
  // And back: what one saves the other reads.
  Adapter::load(*dealt_, path)->save(*dealt_, folder_ / "back", "test");
  grouped_->set_adapter(Adapter::load(*grouped_, folder_ / "back"));
  EXPECT_EQ(bit_difference(scores_of(*grouped_), wanted), "");
}

// Layers of attention at other places than every fourth, and a head for multi-token prediction.
TEST(GgufHybrids, FilesOfQwenMaySayTheirLayersByAnInterval) {
  const Folder folder;
  const auto model = Model::load(golden_path("qwen3_5"));  // the second of two
  GgufMetadata extra("test");
  extra.set("qwen35.full_attention_interval", GgufValue::u32(2));
  save_gguf(*model, folder / "model.gguf", extra);
  const GgufFile mapped(folder / "model.gguf");
  GgufModel file = gguf_model(mapped);
  GgufMetadata interval("interval");
  for (const auto& [key, value] : file.metadata.all()) {
    if (!key.ends_with("recurrent_layers")) interval.set(key, value);
  }
  file.metadata = interval;
  const std::vector<std::string> kinds = {"linear_attention", "full_attention"};
  EXPECT_EQ(gguf_config(file).at("layer_types"), kinds);
  file.metadata.set("qwen35.block_count", GgufValue::u32(3));
  file.metadata.set("qwen35.nextn_predict_layers", GgufValue::u32(1));
  file.shapes["blk.2.attn_norm.weight"] = {16};
  EXPECT_EQ(gguf_config(file).at("layer_types"), kinds);
  EXPECT_EQ(gguf_config(file).at("num_hidden_layers"), 2);
}

}  // namespace
}  // namespace pronghorn
