// Published families against transformers: golden/ holds tiny models that it wrote and the scores
// that it computed with them (scripts/make_model_goldens.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/files.h"
#include "formats/safetensors.h"
#include "model/families.h"
#include "support/folder.h"
#include "support/machine.h"
#include "support/model_runs.h"
#include "support/steps.h"

namespace pronghorn {
namespace {

using testing_support::decode;
using testing_support::equal_steps;
using testing_support::Folder;
using testing_support::InstructionSet;
using testing_support::relative_difference;
using testing_support::test_name;

// Two float32 programs that add up in different orders: transformers with its own threads or
// machine differs from itself by a few 1e-6 on these models, a wrong formula by 1e-2 and more.
constexpr double kTolerance = 2e-4;

const std::string kGoldens[] = {"llama",      "llama_tied", "mamba",
                                "mamba_bias", "mamba2",     "mamba2_groups"};

std::filesystem::path golden_path(const std::string& name) {
  return std::filesystem::path(PRONGHORN_SOURCE_DIR) / "tests/model/golden" / name;
}

std::vector<int32_t> golden_tokens(const std::string& name) {
  const std::string file = (golden_path(name) / "tokens.json").string();
  return parse_json(read_file(file), file).get<std::vector<int32_t>>();
}

std::vector<float> golden_logits(const std::string& name) {
  const SafetensorsFile file(golden_path(name) / "logits.safetensors");
  const SafetensorsEntry* entry = file.find("logits");
  require(entry != nullptr, name, "has no logits");
  std::vector<float> logits(static_cast<size_t>(entry->elements()));
  to_f32(*entry, logits.data());
  return logits;
}

class FamilyTest : public testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  const std::string& name() const { return std::get<0>(GetParam()); }
  InstructionSet instruction_set_{std::get<1>(GetParam())};
};

TEST_P(FamilyTest, GivesTheScoresOfTheReferenceHoweverTheTextIsCut) {
  const auto model = Model::load(golden_path(name()));
  const std::vector<int32_t> tokens = golden_tokens(name());
  const std::vector<float> expected = golden_logits(name());
  const auto count = static_cast<int64_t>(tokens.size());
  const std::vector<std::vector<int64_t>> cuts = {
      {count}, equal_steps(count, 1), {5, 40, 1, 1, 16, 7}, {17, 53}, {64, 1, 5}};
  for (const auto& cut : cuts) {
    SequenceState state = model->new_state();
    const double difference = relative_difference(decode(*model, state, tokens, cut), expected);
    EXPECT_LE(difference, kTolerance) << "steps " << fmt::format("{}", fmt::join(cut, " "));
    RecordProperty("largest_relative_difference", fmt::format("{:.3g}", difference));
  }
  // The training form: a fresh segment without state.
  EXPECT_LE(
      relative_difference(
          testing_support::run(*model, fresh_segments(tokens, count), Precision::f32), expected),
      kTolerance);
}

TEST_P(FamilyTest, SavesWhatItLoadedInTheSameFamily) {
  const auto model = Model::load(golden_path(name()));
  const Folder folder;
  model->save(folder.path());
  const auto again = Model::load(folder.path());

  const std::string type = "model_type";
  EXPECT_EQ(read_config_json(folder.path() / "config.json").at(type),
            read_config_json(golden_path(name()) / "config.json").at(type));
  const SafetensorsFile published(golden_path(name()) / "model.safetensors");
  const SafetensorsFile saved(folder.path() / "model.safetensors");
  EXPECT_EQ(saved.names(), published.names());
  for (const std::string& tensor : published.names()) {
    const SafetensorsEntry *ours = saved.find(tensor), *theirs = published.find(tensor);
    ASSERT_NE(ours, nullptr) << tensor;
    EXPECT_EQ(ours->shape, theirs->shape) << tensor;
    EXPECT_TRUE(std::ranges::equal(ours->bytes, theirs->bytes)) << tensor;
  }

  const std::vector<int32_t> tokens = golden_tokens(name());
  const auto steps = equal_steps(static_cast<int64_t>(tokens.size()), 9);
  SequenceState one = model->new_state(), two = again->new_state();
  EXPECT_EQ(testing_support::bit_difference(decode(*again, two, tokens, steps),
                                            decode(*model, one, tokens, steps)),
            "");
}

// Otherwise the tests above would not notice a tensor that is not used, or used for another.
TEST_P(FamilyTest, DependsOnEveryTensor) {
  const std::vector<int32_t> tokens = golden_tokens(name());
  const std::vector<float> expected = golden_logits(name());
  const auto model = Model::load(golden_path(name()));
  for (const Parameter& parameter : model->parameters()) {
    const Tensor before = parameter.value.clone();
    for (float& value : parameter.value.values()) value *= 1.25f;
    parameter.value.bump_version();
    SequenceState state = model->new_state();
    const std::vector<int64_t> whole = {static_cast<int64_t>(tokens.size())};
    EXPECT_GT(relative_difference(decode(*model, state, tokens, whole), expected), kTolerance)
        << parameter.name << " times 1.25";
    parameter.value.copy_from(before);
    parameter.value.bump_version();
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, FamilyTest,
                         testing::Combine(testing::ValuesIn(kGoldens),
                                          testing::ValuesIn(cpu_instruction_sets())),
                         [](const auto& test) {
                           return test_name(std::get<0>(test.param) + "__" +
                                            std::get<1>(test.param));
                         });

// What a published config.json may say, over that of the golden "mamba2".
nlohmann::json read_mamba2(const std::string& key, const std::string& value) {
  nlohmann::json json = read_config_json(golden_path("mamba2") / "config.json");
  json[key] = "@";
  std::string text = json.dump();
  text.replace(text.find("\"@\""), 3, value);
  const Folder folder;
  write_file(folder.path() / "config.json", text);
  return load_config(folder.path()).blocks.at('a').mixers.front();
}

TEST(Mamba2Configs, ReadInfinityHoweverItIsWritten) {
  const nlohmann::json none = {0.0, nullptr};
  for (const char* limit : {"[0.0, Infinity]", "[0.0,Infinity]", "[0.0, null]",
                            R"([0.0, {"__float__": "Infinity"}])"}) {
    EXPECT_EQ(read_mamba2("time_step_limit", limit).at("time_step_limit"), none) << limit;
  }
  const nlohmann::json finite = {0.01, 0.5};
  EXPECT_EQ(read_mamba2("time_step_limit", "[0.01, 0.5]").at("time_step_limit"), finite);
}

TEST(Mamba2Configs, TakeBareWordsNowhereElse) {
  for (const char* limit : {"[0.0, -Infinity]", "[0.0, NaN]", "[NaN, 1.0]", "[0.0, infinity]",
                            "[0.0, \"much\"]", "[0.0]", "Infinity", "[0.0, InfinityInfinity]"}) {
    EXPECT_THROW(read_mamba2("time_step_limit", limit), Error) << limit;
  }
  EXPECT_THROW(read_mamba2("layer_norm_epsilon", "Infinity"), Error);
  EXPECT_THROW(read_mamba2("state_size", "NaN"), Error);
  // Inside a string they are text, escaped quotes or not.
  EXPECT_NO_THROW(read_mamba2("_name_or_path", R"("NaN \" Infinity \\")"));
}

TEST(Mamba2Configs, KeepALimitThroughSaving) {
  ModelConfig config = load_config(golden_path("mamba2"));
  config.blocks.at('a').mixers.front()["time_step_limit"] = {0.01, 0.5};
  const Model model(config, 1);
  const Folder folder;
  model.save(folder.path());
  EXPECT_EQ(Model::load(folder.path())->fingerprint(), model.fingerprint());
}

TEST(Families, RefuseWhatTheyCannotHonour) {
  const auto read = [](const char* name, const char* key, const nlohmann::json& value) {
    nlohmann::json json = read_config_json(golden_path(name) / "config.json");
    json[key] = value;
    const Folder folder;
    write_file(folder.path() / "config.json", json.dump());
    load_config(folder.path());
  };
  EXPECT_NO_THROW(read("llama", "use_cache", false));
  EXPECT_THROW(read("llama", "attention_bias", true), Error);
  EXPECT_THROW(read("llama", "hidden_act", "gelu"), Error);
  EXPECT_THROW(read("llama", "rope_parameters", {{"rope_type", "llama3"}}), Error);
  EXPECT_THROW(read("llama", "rope_scaling", {{"type", "linear"}, {"factor", 2.0}}), Error);
  EXPECT_THROW(read("llama", "num_key_value_heads", 3), Error);
  EXPECT_THROW(read("llama", "sliding_windows", 128), Error);
  EXPECT_THROW(read("mamba", "hidden_act", "relu"), Error);
  EXPECT_THROW(read("mamba2", "rms_norm", false), Error);
  EXPECT_THROW(read("mamba2", "num_heads", 5), Error);
  EXPECT_THROW(read("mamba2", "n_groups", 3), Error);
  EXPECT_THROW(read("mamba2", "model_type", "mamba3"), Error);
}

}  // namespace
}  // namespace pronghorn
