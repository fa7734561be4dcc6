// What a published config.json may say besides what its family reads: silence, one warning, or an
// error; and the context that it names.
#include "model/families/published_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/files.h"
#include "model/config.h"
#include "model/families.h"
#include "model/families/mapping.h"
#include "support/errors.h"
#include "support/folder.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::write_fast;

nlohmann::json golden(const std::string& name) {
  return read_config_json(std::filesystem::path(PRONGHORN_SOURCE_DIR) / "tests/model/golden" /
                          name / "config.json");
}

// The golden's configuration with these keys changed, and what was said of it on stderr.
struct Read {
  ModelConfig config;
  std::string warning;
};

Read read(const std::string& name, const nlohmann::json& changes) {
  nlohmann::json json = golden(name);
  json.update(changes);
  const Folder folder;
  write_fast(folder / "config.json", json.dump());
  testing::internal::CaptureStderr();
  Read result;
  try {
    result.config = load_config(folder.path());
  } catch (...) {
    testing::internal::GetCapturedStderr();
    throw;
  }
  result.warning = testing::internal::GetCapturedStderr();
  return result;
}

std::string error(const std::string& name, const nlohmann::json& changes) {
  return error_of([&] { read(name, changes); });
}

const char* const kFamilies[] = {"llama", "mistral", "qwen2", "qwen3", "mamba", "mamba2"};

TEST(PublishedKeys, ThatChangeNothingAreSilent) {
  const nlohmann::json harmless = {
      {"_name_or_path", "x"},
      {"_attn_implementation_autoset", true},
      {"auto_map", {{"AutoConfig", "x.Y"}}},
      {"torch_dtype", "bfloat16"},
      {"transformers.js_config", {{"kv_cache_dtype", "f16"}}},
      {"is_llama_config", true},
      {"attention_dropout", 0.1},
      {"embd_pdrop", 0.1},
      {"pretraining_tp", 2},
      {"initializer_range", 0.5},
      {"temperature", 0.7},
      {"image_token_id", 7},
      {"quantization_config", nullptr},
      {"quite_unknown", nullptr},
      {"rope_scaling", nullptr},
      {"rope_interleaved", false},
      {"partial_rotary_factor", 1},
      {"attn_logit_softcapping", nullptr},
      {"logit_scale", 1.0},
      {"num_experts", 0},
      {"layer_types_", nlohmann::json::array()},
  };
  for (const char* family : kFamilies) {
    // One by one, so that what is wrong has a name.
    for (const auto& item : harmless.items()) {
      const Read result = read(family, {{item.key(), item.value()}});
      EXPECT_EQ(result.warning, "") << family << " " << item.key();
    }
    EXPECT_EQ(read(family, harmless).warning, "") << family;
  }
}

TEST(PublishedKeys, ThatAreUnknownGiveOneWarning) {
  for (const char* family : kFamilies) {
    // A text is said once, so each family gets keys of its own.
    const std::string key = fmt::format("some_new_key_{}", family);
    const std::string warning = read(family, {{key, 3}, {"zz_other", {{"a", 1}}}}).warning;
    EXPECT_THAT(warning, AllOf(HasSubstr("config.json"), HasSubstr("'" + key + "'"),
                               HasSubstr("'zz_other'")));
    EXPECT_EQ(std::ranges::count(warning, '\n'), 1);
  }
}

TEST(PublishedKeys, AreQuotedInWarnings) {
  const std::string warning =
      read("llama", {{"a\x1b[31m\nb", 1}, {std::string(5000, 'k'), 1}}).warning;
  EXPECT_THAT(warning, AllOf(HasSubstr(R"('a\x1b[31m\nb')"), Not(HasSubstr("\x1b"))));
  EXPECT_LT(warning.size(), 600u);
}

TEST(PublishedKeys, NearOneThatIsMissingAreSuspected) {
  nlohmann::json json = golden("llama");
  json["rms_norm_epsi"] = json["rms_norm_eps"];
  json.erase("rms_norm_eps");
  const Folder folder;
  write_fast(folder / "config.json", json.dump());
  testing::internal::CaptureStderr();
  load_config(folder.path());
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("'rms_norm_epsi'"), HasSubstr("did you mean 'rms_norm_eps'?")));
}

TEST(PublishedKeys, ThatChangeTheComputationAreErrors) {
  const nlohmann::json changing = {
      {"rope_interleaved", true},       {"partial_rotary_factor", 0.5},
      {"attn_logit_softcapping", 50.0}, {"final_logit_softcapping", 30.0},
      {"logit_scale", 0.0625},          {"embedding_multiplier", 12},
      {"num_local_experts", 8},         {"use_parallel_residual", true},
      {"add_cross_attention", true},    {"quantization_config", {{"bits", 4}}}};
  for (const char* family : kFamilies) {
    for (const auto& item : changing.items()) {
      EXPECT_THAT(error(family, {{item.key(), item.value()}}),
                  AllOf(HasSubstr("config.json: " + item.key()), HasSubstr("supported")))
          << family;
    }
  }
  EXPECT_THAT(error("llama", {{"partial_rotary_factor", 0.5}}),
              AllOf(HasSubstr("0.5"), HasSubstr("1, null")));
  EXPECT_THAT(error("mamba", {{"rms_norm", false}}), HasSubstr("rms_norm"));
  EXPECT_THAT(error("mamba", {{"ssm_cfg", {{"layer", "Mamba3"}}}}), HasSubstr("ssm_cfg"));
  EXPECT_THAT(error("mamba3", {{"is_mimo", true}, {"mimo_rank", 1}}), HasSubstr("mimo_rank"));
  EXPECT_THAT(error("mamba3", {{"is_mimo", true}, {"state_size", 13}}), HasSubstr("state_size"));
}

TEST(PublishedKeys, ThatRepeatASizeMustAgree) {
  EXPECT_EQ(read("mamba", {{"d_model", golden("mamba").at("hidden_size")}}).warning, "");
  EXPECT_THAT(read("mamba", {{"d_model", 12345}}).warning, HasSubstr("'d_model'"));
  EXPECT_EQ(read("llama", {{"n_layers", golden("llama").at("num_hidden_layers")}}).warning, "");
  EXPECT_THAT(error("rwkv7", {{"head_dim", 0}, {"num_heads", 4096}}),
              HasSubstr("head_dim: 0 does not divide"));
  EXPECT_THAT(error("rwkv7", {{"head_dim", nullptr}, {"num_heads", nullptr}}),
              HasSubstr("num_heads: is missing"));
}

TEST(PublishedKeys, OurOwnFormatStaysStrict) {
  EXPECT_THAT(error_of([] {
                read_pronghorn_config(ConfigReader(
                    {{"hidden_size", 8},
                     {"pattern", "a"},
                     {"transformer_version", "5"},
                     {"blocks", {{"a", {{"mixer", {{"type", "attention"}, {"heads", 1}}}}}}}},
                    "c.json"));
              }),
              HasSubstr("unknown key 'transformer_version'"));
}

TEST(TrainedContext, IsReadUnderItsNamesAndKept) {
  const auto context = [](const nlohmann::json& changes) {
    return read("llama", changes).config.context;
  };
  EXPECT_EQ(context({{"max_position_embeddings", 2048}}).tokens, 2048);
  EXPECT_EQ(context({{"max_position_embeddings", nullptr}, {"n_positions", 512}}).tokens, 512);
  EXPECT_EQ(context({{"max_position_embeddings", nullptr}}).tokens, 0);
  EXPECT_EQ(context({{"max_position_embeddings", -1}}).tokens, 0);
  EXPECT_EQ(context({{"max_position_embeddings", 2048}}).original, 0);

  for (const char* family : kFamilies) {
    const ModelConfig config = read(family, {{"max_position_embeddings", 777}}).config;
    EXPECT_EQ(config.context.tokens, 777) << family;
    const Family& writer = family_for(config);
    EXPECT_EQ(writer.model_type, family);
    EXPECT_EQ(writer.write(config).value().at("max_position_embeddings"), 777) << family;
    EXPECT_EQ(
        read_pronghorn_config(ConfigReader(write_pronghorn_config(config), "test")).context.tokens,
        777);
  }
}

TEST(TrainedContext, IsThatOfTheTokenizerOrOfTrainingWhereTheConfigurationSaysNothing) {
  const Folder folder;
  write_fast(folder / "config.json", golden("mamba").dump());
  EXPECT_EQ(load_config(folder.path()).context.tokens, 0);
  write_fast(folder / "tokenizer_config.json", R"({"model_max_length": 1024})");
  EXPECT_EQ(load_config(folder.path()).context.tokens, 1024);
  write_fast(folder / "tokenizer_config.json",
             R"({"model_max_length": 1000000000000000019884624838656})");
  EXPECT_EQ(load_config(folder.path()).context.tokens, 0);
  nlohmann::json trained = golden("mamba");
  trained["train"] = {{"window", 300}};
  write_fast(folder / "config.json", trained.dump());
  EXPECT_EQ(trained_context(load_config(folder.path())).tokens, 300);
}

TEST(TrainedContext, OfScaledPositions) {
  const auto context = [](const nlohmann::json& rope, int64_t tokens) {
    nlohmann::json settings;
    read_trained_context(
        ConfigReader({{"max_position_embeddings", tokens}, {"rope_scaling", rope}}, "test"),
        settings);
    return std::pair(settings.value("max_position_embeddings", int64_t{0}),
                     settings.value("original_max_position_embeddings", int64_t{0}));
  };
  using Pair = std::pair<int64_t, int64_t>;
  // Llama 3.1, Qwen 2.5 with YaRN, Vicuna 16k.
  EXPECT_EQ(
      context(
          {{"rope_type", "llama3"}, {"factor", 8.0}, {"original_max_position_embeddings", 8192}},
          131072),
      Pair(131072, 8192));
  EXPECT_EQ(
      context({{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}},
              32768),
      Pair(131072, 32768));
  EXPECT_EQ(context({{"type", "linear"}, {"factor", 4.0}}, 4096), Pair(16384, 4096));
  EXPECT_EQ(context({{"type", "default"}}, 4096), Pair(4096, 0));
  EXPECT_EQ(context(nullptr, 4096), Pair(4096, 0));
}

}  // namespace
}  // namespace pronghorn
