// Experts and latent attention in GGUF files: names and sizes of stacks, older layouts, blocks that
// stay in them, layers of predictors, and files whose numbers do not fit together.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "model/checkpoint.h"
#include "model/families.h"
#include "model/gguf_format.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/gguf_contents.h"
#include "support/goldens.h"
#include "support/model_runs.h"
#include "support/steps.h"
#include "tensor/block_layouts.h"

namespace pronghorn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::Bytes;
using testing_support::Contents;
using testing_support::decode;
using testing_support::equal_steps;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::golden_path;
using testing_support::golden_tokens;
using testing_support::relative_difference;

std::vector<float> scores(const Model& model, const std::vector<int32_t>& tokens) {
  SequenceState state = model.new_state();
  return decode(model, state, tokens, equal_steps(std::ssize(tokens), 9));
}

// A golden as a GGUF file.
class GoldenFile {
 public:
  explicit GoldenFile(const std::string& golden, const SaveOptions& options = {})
      : tokens_(golden_tokens(golden)) {
    const auto model = Model::load(golden_path(golden));
    save_gguf(*model, path(), GgufMetadata("test"), options);
    expected_ = scores(*Model::load(path()), tokens_);
  }

  std::filesystem::path path() const { return folder_ / "model.gguf"; }
  Contents contents() const { return Contents(path()); }
  void expect_the_same(const Contents& changed) const {
    changed.write(folder_ / "changed.gguf");
    EXPECT_EQ(bit_difference(scores(*Model::load(folder_ / "changed.gguf"), tokens_), expected_),
              "");
  }
  std::string error(const std::function<void(Contents&)>& change) const {
    Contents changed = contents();
    change(changed);
    changed.write(folder_ / "changed.gguf");
    return error_of([&] { Model::load(folder_ / "changed.gguf"); });
  }
  std::string error(const std::string& key, int64_t value) const {
    return error([&](Contents& file) {
      file.metadata.set(key, GgufValue::u32(static_cast<uint32_t>(value)));
    });
  }

 private:
  Folder folder_;
  std::vector<int32_t> tokens_;
  std::vector<float> expected_;
};

TEST(GgufExperts, NamesAndSizesAreThoseOfOtherPrograms) {
  const Contents mixture = GoldenFile("qwen2_moe_plain").contents();
  const auto shape = [](const Contents& file, const std::string& name) {
    return file.tensors.at("blk.0." + name).shape;
  };
  EXPECT_THAT(shape(mixture, "ffn_gate_exps.weight"), ElementsAre(5, 12, 16));
  EXPECT_THAT(shape(mixture, "ffn_up_exps.weight"), ElementsAre(5, 12, 16));
  EXPECT_THAT(shape(mixture, "ffn_down_exps.weight"), ElementsAre(5, 16, 12));
  EXPECT_THAT(shape(mixture, "ffn_gate_inp.weight"), ElementsAre(5, 16));
  EXPECT_THAT(shape(mixture, "ffn_gate_inp_shexp.weight"), ElementsAre(1, 16));
  EXPECT_THAT(shape(mixture, "ffn_down_shexp.weight"), ElementsAre(16, 14));
  EXPECT_EQ(mixture.metadata.integer("qwen2moe.expert_count"), 5);
  EXPECT_EQ(mixture.metadata.integer("qwen2moe.expert_used_count"), 2);
  EXPECT_EQ(mixture.metadata.integer("qwen2moe.expert_feed_forward_length"), 12);
  EXPECT_EQ(mixture.metadata.integer("qwen2moe.expert_shared_feed_forward_length"), 14);

  const Contents gpt = GoldenFile("gpt_oss").contents();
  EXPECT_THAT(shape(gpt, "ffn_gate_exps.bias"), ElementsAre(5, 20));
  EXPECT_THAT(shape(gpt, "ffn_gate_inp.bias"), ElementsAre(5));
  EXPECT_THAT(shape(gpt, "attn_sinks.weight"), ElementsAre(4));
  EXPECT_THAT(shape(gpt, "post_attention_norm.weight"), ElementsAre(16));

  const Contents latent = GoldenFile("deepseek_v2_groups").contents();
  EXPECT_THAT(shape(latent, "attn_k_b.weight"), ElementsAre(4, 10, 6));
  EXPECT_THAT(shape(latent, "attn_v_b.weight"), ElementsAre(4, 5, 10));
  EXPECT_THAT(shape(latent, "attn_kv_a_mqa.weight"), ElementsAre(14, 16));
  EXPECT_EQ(latent.metadata.integer("deepseek2.attention.head_count_kv"), 1);
  EXPECT_EQ(latent.metadata.integer("deepseek2.attention.key_length"), 14);
  EXPECT_EQ(latent.metadata.integer("deepseek2.attention.key_length_mla"), 10);
  EXPECT_EQ(latent.metadata.integer("deepseek2.expert_gating_func"), 1);
  EXPECT_NEAR(latent.metadata.number("deepseek2.rope.scaling.yarn_log_multiplier"), 0.07, 1e-8);

  const Contents sparse = GoldenFile("deepseek_v32").contents();
  EXPECT_THAT(shape(sparse, "indexer.attn_q_b.weight"), ElementsAre(8 * 6, 7));
  EXPECT_THAT(shape(sparse, "indexer.attn_k.weight"), ElementsAre(6, 16));
  EXPECT_THAT(shape(sparse, "indexer.k_norm.bias"), ElementsAre(6));
  EXPECT_THAT(shape(sparse, "indexer.proj.weight"), ElementsAre(8, 16));
  EXPECT_EQ(sparse.metadata.integer("deepseek32.attention.indexer.top_k"), 24);
}

// A tensor for each expert, gates and values in one stack, a vector for a matrix of one row, sizes
// that only the tensors say.
TEST(GgufExperts, OlderLayoutsAreRead) {
  const auto piece = [](const Contents::Tensor& stack, int64_t e) {
    const size_t bytes = stack.bytes.size() / static_cast<size_t>(stack.shape[0]);
    const auto begin = stack.bytes.begin() + e * static_cast<std::ptrdiff_t>(bytes);
    return Bytes(begin, begin + static_cast<std::ptrdiff_t>(bytes));
  };
  const GoldenFile mixtral("mixtral_odd");
  Contents singles = mixtral.contents();
  for (const std::string layer : {"blk.0.", "blk.1."}) {
    for (const std::string name : {"ffn_gate", "ffn_up", "ffn_down"}) {
      const Contents::Tensor stack = singles.take(layer + name + "_exps.weight");
      for (int64_t e = 0; e < stack.shape[0]; ++e) {
        singles.tensors[layer + name + "." + std::to_string(e) + ".weight"] = {
            stack.type, {stack.shape[1], stack.shape[2]}, piece(stack, e)};
      }
    }
  }
  mixtral.expect_the_same(singles);

  const GoldenFile qwen("qwen2_moe_plain");
  Contents fused = qwen.contents();
  for (const std::string layer : {"blk.0.", "blk.1."}) {
    const Contents::Tensor gate = fused.take(layer + "ffn_gate_exps.weight");
    const Contents::Tensor up = fused.take(layer + "ffn_up_exps.weight");
    Contents::Tensor both = {gate.type, {gate.shape[0], 2 * gate.shape[1], gate.shape[2]}, {}};
    for (int64_t e = 0; e < gate.shape[0]; ++e) {
      for (const Contents::Tensor* stack : {&gate, &up}) {
        const Bytes bytes = piece(*stack, e);
        both.bytes.insert(both.bytes.end(), bytes.begin(), bytes.end());
      }
    }
    fused.tensors[layer + "ffn_gate_up_exps.weight"] = both;
    fused.tensors.at(layer + "ffn_gate_inp_shexp.weight").shape = {16};
  }
  fused.metadata.set("qwen2moe.expert_shared_feed_forward_length", GgufValue::u32(14));
  qwen.expect_the_same(fused);

  Contents silent = qwen.contents();
  const GgufMetadata all = silent.metadata;
  silent.metadata = GgufMetadata("test");
  for (const auto& [key, value] : all.all()) {
    if (key.find("feed_forward_length") == std::string::npos ||
        key == "qwen2moe.feed_forward_length") {
      silent.metadata.set(key, value);
    }
  }
  qwen.expect_the_same(silent);
}

// Keys and values of latent attention in one matrix, with the heads' sizes under other keys, plain
// and in blocks.
TEST(GgufExperts, LatentAttentionOfOlderFilesIsRead) {
  const GoldenFile golden("deepseek_v2_groups");
  Contents file = golden.contents();
  constexpr size_t kHeads = 4, kKeys = 6, kValues = 5, kLatent = 10;
  for (const std::string layer : {"blk.0.", "blk.1."}) {
    const Contents::Tensor keys = file.take(layer + "attn_k_b.weight");
    const Contents::Tensor values = file.take(layer + "attn_v_b.weight");
    Contents::Tensor both = {keys.type, {kHeads * (kKeys + kValues), kLatent}, {}};
    both.bytes.resize(kHeads * (kKeys + kValues) * kLatent * sizeof(float));
    const auto copy = [&](size_t row, size_t column, const Contents::Tensor& from, size_t at) {
      std::memcpy(both.bytes.data() + (row * kLatent + column) * sizeof(float),
                  from.bytes.data() + at * sizeof(float), sizeof(float));
    };
    for (size_t head = 0; head < kHeads; ++head) {
      for (size_t column = 0; column < kLatent; ++column) {
        const size_t first = head * (kKeys + kValues);
        for (size_t i = 0; i < kKeys; ++i) {
          copy(first + i, column, keys, (head * kLatent + column) * kKeys + i);
        }
        for (size_t i = 0; i < kValues; ++i) {
          copy(first + kKeys + i, column, values, (head * kValues + i) * kLatent + column);
        }
      }
    }
    file.tensors[layer + "attn_kv_b.weight"] = both;
  }
  const GgufMetadata all = file.metadata;
  file.metadata = GgufMetadata("test");
  for (const auto& [key, value] : all.all()) {
    if (!key.ends_with("_mla")) file.metadata.set(key, value);
  }
  file.metadata.set("deepseek2.attention.head_count_kv", GgufValue::u32(4));
  file.metadata.set("deepseek2.attention.key_length", GgufValue::u32(10));
  file.metadata.set("deepseek2.attention.value_length", GgufValue::u32(5));
  golden.expect_the_same(file);
}

// A model of a family with experts, with rows of whole blocks.
ModelConfig config_of(const std::string& family, const nlohmann::json& more) {
  nlohmann::json json = {{"model_type", family},     {"vocab_size", 96},
                         {"hidden_size", 64},        {"num_hidden_layers", 2},
                         {"num_attention_heads", 2}, {"num_key_value_heads", 2},
                         {"intermediate_size", 96},  {"num_experts_per_tok", 3},
                         {"rms_norm_eps", 1e-5},     {"tie_word_embeddings", false}};
  json.update(more);
  return find_family(family, "test").read(ConfigReader(json, "test"));
}

// Every token gets all experts, so that none is chosen otherwise because of a rounded weight.
TEST(GgufExperts, StacksStayInTheirBlocks) {
  const nlohmann::json plain = {{"rope_type", "default"}};
  for (const auto& [family, more] :
       {std::pair<std::string, nlohmann::json>{"mixtral", {{"num_local_experts", 3}}},
        {"gpt_oss", {{"num_local_experts", 3}, {"head_dim", 32}, {"rope_scaling", plain}}},
        {"deepseek_v3",
         {{"n_routed_experts", 3},
          {"n_group", 1},
          {"topk_group", 1},
          {"moe_intermediate_size", 32},
          {"first_k_dense_replace", 1},
          {"kv_lora_rank", 32},
          {"q_lora_rank", 32},
          {"qk_nope_head_dim", 32},
          {"qk_rope_head_dim", 32},
          {"v_head_dim", 32}}}}) {
    const Folder folder;
    const Model model(config_of(family, more), 7);
    const std::vector<int32_t> tokens = testing_support::random_tokens(20, 96, 4);
    const std::vector<float> wanted = scores(model, tokens);
    for (const auto& [encoding, error] :
         {std::pair{&encodings::q8_0, 0.03}, {&encodings::q4_0, 0.4}, {&encodings::mxfp4, 0.5}}) {
      SCOPED_TRACE(family + " " + std::string(encoding->name));
      SaveOptions options;
      options.encoding = encoding;
      save_gguf(model, folder / "first.gguf", GgufMetadata("test"), options);
      const auto loaded = Model::load(folder / "first.gguf");
      for (const Parameter& parameter : loaded->parameters()) {
        const bool matrix = parameter.matrix.defined() && parameter.name.starts_with("layers.");
        if (!matrix) continue;
        EXPECT_EQ(&parameter.matrix.encoding(), encoding) << parameter.name;
      }
      const std::vector<float> found = scores(*loaded, tokens);
      const double deviation = relative_difference(found, wanted);
      EXPECT_GT(deviation, 1e-5);
      EXPECT_LT(deviation, error);
      save_gguf(*loaded, folder / "second.gguf", GgufMetadata("test"));
      const Contents one(folder / "first.gguf"), two(folder / "second.gguf");
      for (const auto& [name, tensor] : one.tensors) {
        EXPECT_EQ(tensor.type->name, two.tensors.at(name).type->name) << name;
        EXPECT_TRUE(tensor.bytes == two.tensors.at(name).bytes) << name;
      }
      EXPECT_EQ(bit_difference(scores(*Model::load(folder / "second.gguf"), tokens), found), "");
      // Routers choose by what is written in f32.
      EXPECT_EQ(one.tensors.at("blk.1.ffn_gate_inp.weight").type->name, "F32");
    }
  }
}

// They follow the other layers and are counted with them.
TEST(GgufExperts, PartsOfPredictorsArePassedOver) {
  for (const std::string name : {"glm4_moe", "glm4_moe_lite"}) {
    const GoldenFile golden(name);
    Contents file = golden.contents();
    const std::string architecture(file.metadata.text("general.architecture"));
    const int64_t layers = file.metadata.integer(architecture + ".block_count");
    const std::string last = fmt::format("blk.{}.", layers - 1),
                      next = fmt::format("blk.{}.", layers);
    for (const auto& [tensor, numbers] : golden.contents().tensors) {
      if (!tensor.starts_with(last)) continue;
      file.tensors[next + tensor.substr(last.size())] = numbers;
    }
    file.tensors[next + "nextn.eh_proj.weight"] = file.tensors.at("token_embd.weight");
    const auto count = [&](const char* key, int64_t value) {
      file.metadata.set(architecture + key, GgufValue::u32(static_cast<uint32_t>(value)));
    };
    count(".block_count", layers + 1);
    count(".nextn_predict_layers", 1);
    golden.expect_the_same(file);
    count(".nextn_predict_layers", layers + 1);
    EXPECT_THAT(golden.error([&](Contents& changed) { changed = file; }),
                HasSubstr(fmt::format("nextn_predict_layers': {0} of {0} layers", layers + 1)));
  }
}

// Not all that follows the last layer is a predictor.
TEST(GgufExperts, LayersBeyondTheCountAreErrors) {
  const GoldenFile glm("glm4_moe");
  const int64_t layers = glm.contents().metadata.integer("glm4moe.block_count");
  EXPECT_THAT(glm.error("glm4moe.block_count", layers - 1),
              HasSubstr(fmt::format("blk.{}.", layers - 1)));
  EXPECT_THAT(glm.error("glm4moe.block_count", layers + 1),
              HasSubstr(fmt::format("no tensor of layer {}", layers)));
}

TEST(GgufExperts, RoutersThatAreOthersAreErrors) {
  for (const std::string name : {"qwen3_moe", "mixtral_odd", "olmoe", "granitemoe", "gpt_oss"}) {
    const GoldenFile golden(name);
    const std::string architecture(golden.contents().metadata.text("general.architecture"));
    EXPECT_THAT(golden.error(architecture + ".expert_gating_func", 2),
                HasSubstr("expert_gating_func"))
        << name;
  }
}

TEST(GgufExperts, NumbersThatDoNotFitAreNamed) {
  const GoldenFile qwen("qwen3_moe");  // 7 experts, 3 a token
  EXPECT_THAT(qwen.error("qwen3moe.expert_count", 8),
              HasSubstr("has shape [7, 16] where the configuration says [8, 16]"));
  EXPECT_THAT(qwen.error("qwen3moe.expert_count", 6), HasSubstr("where the configuration says [6"));
  EXPECT_THAT(qwen.error("qwen3moe.expert_count", 2), HasSubstr("num_experts_per_tok"));
  EXPECT_THAT(qwen.error("qwen3moe.expert_count", 0), HasSubstr("num_experts"));
  EXPECT_THAT(qwen.error("qwen3moe.expert_count", 1 << 30), HasSubstr("num_experts"));
  EXPECT_THAT(qwen.error("qwen3moe.expert_used_count", 0), HasSubstr("num_experts_per_tok"));
  EXPECT_THAT(qwen.error("qwen3moe.expert_feed_forward_length", 13), HasSubstr("has shape"));
  EXPECT_THAT(qwen.error("qwen3moe.block_count", 1 << 30), HasSubstr("block_count"));
  EXPECT_THAT(qwen.error([](Contents& file) { file.take("blk.1.ffn_up_exps.weight"); }),
              HasSubstr("no tensor 'blk.1.ffn_up_exps.weight'"));
  EXPECT_THAT(qwen.error([](Contents& file) {
    Contents::Tensor& stack = file.tensors.at("blk.1.ffn_up_exps.weight");
    std::swap(stack.shape[0], stack.shape[1]);
  }),
              HasSubstr("blk.1.ffn_up_exps.weight: has shape [12, 7, 16]"));
  EXPECT_THAT(qwen.error([](Contents& file) { file.take("blk.0.ffn_gate_inp.weight"); }),
              HasSubstr("no tensor 'blk.0.ffn_gate_inp.weight'"));
  EXPECT_THAT(qwen.error("qwen3moe.expert_shared_count", 1), HasSubstr("expert_shared_count"));

  const GoldenFile deepseek("deepseek_v2_groups");
  EXPECT_THAT(deepseek.error("deepseek2.attention.kv_lora_rank", 11), HasSubstr("has shape"));
  EXPECT_THAT(deepseek.error("deepseek2.attention.key_length_mla", 4),
              HasSubstr("key_length_mla': 4 of which 4 are turned"));
  EXPECT_THAT(deepseek.error("deepseek2.rope.dimension_count", 5), HasSubstr("rope"));
  EXPECT_THAT(deepseek.error("deepseek2.expert_gating_func", 9), HasSubstr("expert_gating_func"));
  EXPECT_THAT(deepseek.error("deepseek2.expert_group_count", 3), HasSubstr("groups"));
  EXPECT_THAT(deepseek.error("deepseek2.leading_dense_block_count", 1),
              HasSubstr("no tensor 'blk.0.ffn_gate.weight'"));
}

TEST(GgufExperts, RoutersThatAFamilyDoesNotHaveAreNamed) {
  EXPECT_THAT(GoldenFile("deepseek_v32").error("deepseek32.expert_gating_func", 1),
              HasSubstr("a softmax is not what this family has"));
}

}  // namespace
}  // namespace pronghorn
