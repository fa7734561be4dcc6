// Published families against transformers: golden/ holds tiny models that it wrote and the scores
// that it computed with them (scripts/make_model_goldens.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <sstream>

#include "base/error.h"
#include "base/files.h"
#include "formats/safetensors.h"
#include "model/checkpoint.h"
#include "model/computation.h"
#include "model/families.h"
#include "model/families/mapping.h"
#include "model/lora.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/goldens.h"
#include "support/machine.h"
#include "support/model_runs.h"
#include "support/steps.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing_support::decode;
using testing_support::equal_steps;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::golden_logits;
using testing_support::golden_path;
using testing_support::golden_tokens;
using testing_support::InstructionSet;
using testing_support::relative_difference;
using testing_support::test_name;

// Two float32 programs that add up in different orders: transformers with its own threads or
// machine differs from itself by a few 1e-6 on these models, a wrong formula by 1e-2 and more.
constexpr double kTolerance = 2e-4;

const std::string kGoldens[] = {"llama",
                                "llama_tied",
                                "llama_linear",
                                "llama_dynamic",
                                "llama_yarn",
                                "llama_yarn_factors",
                                "llama_3",
                                "mistral",
                                "qwen2",
                                "qwen2_tied",
                                "qwen3",
                                "qwen3_bias",
                                "smollm3",
                                "smollm3_window",
                                "gemma2",
                                "gemma2_layers",
                                "gemma3_text",
                                "gemma3_text_pattern",
                                "phi3",
                                "phi3_long",
                                "phi3_window",
                                "olmo2",
                                "olmo2_yarn",
                                "granite",
                                "granite_bias",
                                "mixtral",
                                "mixtral_odd",
                                "qwen2_moe",
                                "qwen2_moe_window",
                                "qwen2_moe_plain",
                                "qwen3_moe",
                                "qwen3_moe_all",
                                "olmoe",
                                "olmoe_normalized",
                                "granitemoe",
                                "granitemoe_bias",
                                "gpt_oss",
                                "gpt_oss_plain",
                                "gpt2",
                                "gpt2_variants",
                                "gpt_neox",
                                "gpt_neox_sequential",
                                "bitnet",
                                "bitnet_online",
                                "bitnet_offline",
                                "mamba",
                                "mamba_bias",
                                "mamba2",
                                "mamba2_groups",
                                "mamba3",
                                "mamba3_groups",
                                "mamba3_ranks",
                                "mamba3_mimo",
                                "mega",
                                "megalodon",
                                "lfm2",
                                "lfm2_bias",
                                "lfm2_moe",
                                "lfm2_moe_plain",
                                "qwen3_next",
                                "qwen3_next_moe",
                                "qwen3_next_moe_step",
                                "qwen3_5_text",
                                "qwen3_5_text_bias",
                                "qwen3_5_text_mtp",
                                "qwen3_5",
                                "qwen3_5_moe_text",
                                "qwen3_5_moe_text_all",
                                "qwen3_5_moe",
                                "kimi_linear",
                                "kimi_linear_groups",
                                "minimax",
                                "minimax_odd",
                                "xlstm",
                                "xlstm_caps",
                                "gla",
                                "gla_conv",
                                "retnet",
                                "retnet_relu",
                                "hgrn",
                                "hgrn_wide",
                                "hgrn2",
                                "hgrn2_free",
                                "delta_net",
                                "delta_net_gate",
                                "gated_deltanet",
                                "kda",
                                "kda_grouped",
                                "olmo_hybrid",
                                "olmo_hybrid_rope",
                                "granitemoehybrid",
                                "granitemoehybrid_rope",
                                "granitemoehybrid_moe",
                                "granitemoehybrid_moe_rope",
                                "bamba",
                                "bamba_bias",
                                "falcon_h1",
                                "falcon_h1_norm",
                                "falcon_h1_gate",
                                "nemotron_h",
                                "nemotron_h_bias",
                                "nemotron_h_moe",
                                "nemotron_h_moe_latent",
                                "zamba2",
                                "zamba2_rope",
                                "llada",
                                "llada_tied",
                                "llada_moe",
                                "lladamoe",
                                "dream",
                                "sdar",
                                "sdar_tied",
                                "samba",
                                "samba_bias",
                                "recurrent_gemma",
                                "recurrent_gemma_blocks",
                                "hymba",
                                "hymba_groups",
                                "hymba_plain",
                                "rwkv6",
                                "rwkv6_plain",
                                "rwkv7",
                                "rwkv7_plain",
                                "rwkv7_negative",
                                "falcon_mamba",
                                "falcon_mamba_bias",
                                "jamba",
                                "jamba_bias",
                                "jamba_moe",
                                "jamba_moe_all",
                                "minicpm3",
                                "minicpm3_plain",
                                "deepseek_v2",
                                "deepseek_v2_groups",
                                "deepseek_v3",
                                "deepseek_v3_plain",
                                "deepseek_v3_mtp",
                                "deepseek_v32",
                                "deepseek_v32_layers",
                                "kimi_k2",
                                "kimi_k25",
                                "sarvam_mla",
                                "youtu",
                                "glm4_moe",
                                "glm4_moe_bias",
                                "glm4_moe_lite",
                                "glm4_moe_lite_layers"};

// A row of the table of docs/models.md.
struct PageRow {
  std::string family, golden, keys;
  double deviation = 0;
};

std::vector<PageRow> page_rows() {
  std::istringstream lines(
      read_file(std::filesystem::path(PRONGHORN_SOURCE_DIR) / "docs/models.md"));
  std::vector<PageRow> rows;
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (line == "<!-- goldens -->") inside = true;
    if (!inside || !line.starts_with("| `")) continue;
    std::vector<std::string> cells;
    std::istringstream row(line.substr(2));
    for (std::string cell; std::getline(row, cell, '|');) cells.push_back(cell);
    require(cells.size() == 4, "docs/models.md", "a row of {} cells: {}", cells.size(), line);
    const auto name = [](const std::string& cell) {
      return cell.substr(cell.find('`') + 1, cell.rfind('`') - cell.find('`') - 1);
    };
    rows.push_back({name(cells[0]), name(cells[1]), cells[2], std::stod(cells[3])});
  }
  return rows;
}

double deviation_on_page(const std::string& golden) {
  for (const PageRow& row : page_rows()) {
    if (row.golden == golden) return row.deviation;
  }
  throw Error("docs/models.md", fmt::format("has no row for {}", golden));
}

bool has_key(const nlohmann::json& json, const std::string& key) {
  if (!json.is_object()) return false;
  return json.contains(key) ||
         std::ranges::any_of(json, [&](const auto& inner) { return has_key(inner, key); });
}

TEST(ModelsPage, ListsEveryGoldenAndKeysThatItHas) {
  std::vector<std::string> listed;
  for (const PageRow& row : page_rows()) {
    SCOPED_TRACE(row.golden);
    listed.push_back(row.golden);
    const nlohmann::json config = read_config_json(golden_path(row.golden) / "config.json");
    EXPECT_EQ(config.at("model_type"), row.family);
    EXPECT_LE(row.deviation, kTolerance);
    std::istringstream keys(row.keys);
    std::string between, key;
    while (std::getline(keys, between, '`') && std::getline(keys, key, '`')) {
      EXPECT_TRUE(has_key(config, key)) << key;
    }
  }
  EXPECT_THAT(listed, testing::UnorderedElementsAreArray(kGoldens));
  // A family that can be read has a row.
  for (const Family& family : families()) {
    if (family.model_type == "pronghorn" || family.model_type == "mamba_ssm") continue;
    EXPECT_TRUE(std::ranges::any_of(page_rows(), [&](const PageRow& row) {
      return row.family == family.model_type;
    })) << family.model_type;
  }
}

// The scores of a text, read in steps; a model that sees texts whole reads it at once.
std::vector<float> scores_of(const Model& model, std::span<const int32_t> tokens,
                             const std::vector<int64_t>& steps) {
  if (model.config().diffusion) {
    return testing_support::run(model, fresh_segments(tokens, std::ssize(tokens)), Precision::f32);
  }
  SequenceState state = model.new_state();
  return decode(model, state, tokens, steps);
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
  const double tolerance = deviation_on_page(name());
  double largest = 0;
  const std::vector<std::vector<int64_t>> cuts = {
      {count}, equal_steps(count, 1), {5, 40, 1, 1, 16, 7}, {17, 53}, {64, 1, 5}};
  for (const auto& cut : cuts) {
    const double difference = relative_difference(scores_of(*model, tokens, cut), expected);
    EXPECT_LE(difference, tolerance) << "steps " << fmt::format("{}", fmt::join(cut, " "));
    largest = std::max(largest, difference);
  }
  RecordProperty("largest_relative_difference", fmt::format("{:.3g}", largest));
  // The training form: a fresh segment without state.
  EXPECT_LE(
      relative_difference(
          testing_support::run(*model, fresh_segments(tokens, count), Precision::f32), expected),
      tolerance);
}

// Bits of -1, 0 and 1 are no numbers that another encoding could hold.
TEST(Families, PackedNumbersStayAsTheyAreWhateverIsAskedFor) {
  const auto model = Model::load(golden_path("bitnet_offline"));
  const SafetensorsFile published(golden_path("bitnet_offline") / "model.safetensors");
  for (const Encoding* asked : {&encodings::f32, &encodings::bf16}) {
    const Folder folder;
    int64_t packed = 0;
    SaveOptions options{.encoding = asked, .on_tensor = {}};
    options.on_tensor = [&](std::string_view, const Encoding& in, int64_t) {
      packed += in.name == "u8" ? 1 : 0;
    };
    save_checkpoint(*model, folder.path(), family_for(model->config()), {}, options);
    const SafetensorsFile saved(folder.path() / "model.safetensors");
    int64_t same = 0;
    for (const std::string& name : saved.names()) {
      const SafetensorsEntry &ours = *saved.find(name), &theirs = *published.find(name);
      if (theirs.dtype == "U8") {
        EXPECT_EQ(ours.dtype, "U8") << name;
        same += std::ranges::equal(ours.bytes, theirs.bytes) ? 1 : 0;
      } else {
        EXPECT_EQ(ours.dtype, asked->file_dtype) << name;
      }
    }
    EXPECT_GT(packed, 0);
    EXPECT_EQ(same, packed);
    EXPECT_NO_THROW(Model::load(folder.path()));
  }
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
  std::vector<std::string> names = published.names();
  // Tables that follow from the configuration.
  if (name() == "minimax") {
    EXPECT_EQ(std::erase_if(names,
                            [](const std::string& tensor) {
                              return tensor.ends_with("_decay") || tensor.ends_with("slope_rate");
                            }),
              8u);
  }
  EXPECT_EQ(saved.names(), names);
  for (const std::string& tensor : names) {
    const SafetensorsEntry *ours = saved.find(tensor), *theirs = published.find(tensor);
    ASSERT_NE(ours, nullptr) << tensor;
    EXPECT_EQ(ours->shape, theirs->shape) << tensor;
    // Norms that are published less 1 are rounded when 1 is added.
    const bool less_one = name().starts_with("gemma") || name().starts_with("qwen3_5") ||
                          name().starts_with("qwen3_next") || name().starts_with("recurrent_gemma");
    if (less_one && tensor.find("norm") != std::string::npos) {
      std::vector<float> one(static_cast<size_t>(ours->elements())), two(one.size());
      to_f32(*ours, one.data());
      to_f32(*theirs, two.data());
      for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(one[i], two[i], 6e-8f) << tensor;
      continue;
    }
    EXPECT_TRUE(std::ranges::equal(ours->bytes, theirs->bytes)) << tensor;
  }

  const std::vector<int32_t> tokens = golden_tokens(name());
  const auto steps = equal_steps(static_cast<int64_t>(tokens.size()), 9);
  EXPECT_EQ(testing_support::bit_difference(scores_of(*again, tokens, steps),
                                            scores_of(*model, tokens, steps)),
            "");
}

// It adds the same to all scores of a row, which the softmax takes away again.
bool is_key_bias_without_positions(const Model& model, const std::string& name) {
  if (!name.ends_with("mixer.k_proj.bias")) return false;
  const size_t layer = std::stoul(name.substr(std::string("layers.").size()));
  return layer_blocks(model.config())[layer]->mixers.front().at("rope").is_null();
}

// Experts that are given so many tokens, by the beginnings of their parameters' names.
std::vector<std::string> experts_given(int64_t rows, const Model& model,
                                       std::span<const int32_t> tokens) {
  std::vector<std::string> experts;
  ForwardObserver observer;
  observer.on_load = [&](const ExpertLoad& load) {
    for (size_t e = 0; e < load.rows.size(); ++e) {
      if (load.rows[e] != rows) continue;
      experts.push_back(fmt::format("layers.{}.ffn.experts.{}.", load.layer, e));
    }
  };
  const Batch batch = fresh_segments(tokens, std::ssize(tokens));
  model.forward({}, batch, observer);
  return experts;
}

// Otherwise the tests above would not notice a tensor that is not used, or used for another.
TEST_P(FamilyTest, DependsOnEveryTensor) {
  const std::vector<int32_t> tokens = golden_tokens(name());
  const std::vector<float> expected = golden_logits(name());
  const auto model = Model::load(golden_path(name()), Purpose::training);
  const std::vector<std::string> unused = experts_given(0, *model, tokens);
  if (name().starts_with("gpt_oss")) {
    EXPECT_FALSE(unused.empty());
    EXPECT_FALSE(experts_given(std::ssize(tokens), *model, tokens).empty());
  }
  for (const Parameter& parameter : model->parameters()) {
    if (is_key_bias_without_positions(*model, parameter.name)) continue;
    if (parameter.name.starts_with("mtp.")) continue;  // tests/decode/predictor_test.cpp
    if (std::ranges::any_of(unused, [&](const std::string& expert) {
          return parameter.name.starts_with(expert);
        })) {
      continue;
    }
    const Tensor before = parameter.value.clone();
    // Every second value: a norm after a projection undoes a factor on all of them.
    const std::span<float> values = parameter.value.values();
    for (size_t i = 0; i < values.size(); i += 2) values[i] *= 1.5f;
    parameter.value.bump_version();
    EXPECT_GT(relative_difference(scores_of(*model, tokens, {std::ssize(tokens)}), expected),
              kTolerance)
        << parameter.name << " changed";
    parameter.value.copy_from(before);
    parameter.value.bump_version();
  }
}

// Adapters that the PEFT library wrote.
TEST(AdapterGoldens, GiveTheScoresOfTheReference) {
  for (const std::string name : {"llama_linear", "phi3", "gpt_neox", "gpt2"}) {
    SCOPED_TRACE(name);
    const auto model = Model::load(golden_path(name));
    const std::vector<int32_t> tokens = golden_tokens(name);
    const std::vector<float> expected = golden_logits(name + "/adapter");
    EXPECT_GT(relative_difference(golden_logits(name), expected), 0.01);
    model->set_adapter(Adapter::load(*model, golden_path(name) / "adapter"));
    for (const int64_t step : {int64_t{1}, int64_t{9}, std::ssize(tokens)}) {
      SequenceState state = model->new_state();
      const auto cut = equal_steps(std::ssize(tokens), step);
      EXPECT_LE(relative_difference(decode(*model, state, tokens, cut), expected), kTolerance);
    }
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

// The golden's configuration with a key changed, or without it (erase).
ModelConfig read_changed(const char* name, const char* key, const nlohmann::json& value,
                         bool erase = false) {
  nlohmann::json json = read_config_json(golden_path(name) / "config.json");
  json[key] = value;
  if (erase) json.erase(key);
  const Folder folder;
  write_file(folder.path() / "config.json", json.dump());
  return load_config(folder.path());
}

std::vector<int64_t> windows_of(const ModelConfig& config) {
  std::vector<int64_t> windows;
  for (const BlockConfig* block : layer_blocks(config)) {
    windows.push_back(block->mixers.front().at("window"));
  }
  return windows;
}

using testing::ElementsAre;

TEST(LayerWindows, AreThoseOfTheReference) {
  const auto qwen = [](const char* key, const nlohmann::json& value, bool erase = false) {
    return windows_of(read_changed("qwen2", key, value, erase));
  };
  // The golden spells out layer_types, which count; without them max_window_layers does.
  EXPECT_THAT(qwen("max_window_layers", 2), ElementsAre(0, 19, 19));
  EXPECT_THAT(qwen("layer_types", nullptr), ElementsAre(0, 19, 19));
  EXPECT_THAT(qwen("layer_types", {"sliding_attention", "full_attention", "sliding_attention"}),
              ElementsAre(19, 0, 19));
  EXPECT_THROW(qwen("layer_types", {"full_attention"}), Error);
  EXPECT_THROW(qwen("layer_types", {"full_attention", "full_attention", "chunked_attention"}),
               Error);
  EXPECT_THROW(qwen("use_sliding_window", false), Error);  // but layer_types say it
  EXPECT_THROW(qwen("sliding_window", nullptr), Error);
  EXPECT_THAT(windows_of(read_changed("qwen2_tied", "sliding_window", 5)), ElementsAre(0, 0));

  EXPECT_THAT(windows_of(read_changed("mistral", "sliding_window", nullptr)), ElementsAre(0, 0));
  EXPECT_THAT(windows_of(read_changed("mistral", "sliding_window", 0, true)),
              ElementsAre(4096, 4096));
  EXPECT_THROW(read_changed("mistral", "sliding_window", 0), Error);
}

TEST(LayerWindows, AreWrittenWhereTheFamilyHasAPlaceForThem) {
  const auto family = [](const char* name, std::vector<int64_t> windows, bool bias, bool qk_norm) {
    ModelConfig config = load_config(golden_path(name));
    std::vector<nlohmann::json> layers;
    const BlockConfig block = *layer_blocks(config).front();
    for (const int64_t window : windows) {
      nlohmann::json mixer = block.mixers.front();
      mixer["window"] = window;
      mixer["bias"] = bias;
      mixer["qk_norm"] = qk_norm;
      layers.push_back({{"mixer", mixer}, {"ffn", block.feed_forward}});
    }
    nlohmann::json settings = write_pronghorn_config(config);
    settings.erase("blocks");
    const ModelConfig changed =
        layered_config(ConfigReader(nlohmann::json::object(), "test"), settings, layers);
    return family_for(changed).model_type;
  };
  EXPECT_EQ(family("llama", {0, 0}, false, false), "llama");
  EXPECT_EQ(family("mistral", {0, 0}, false, false), "llama");
  EXPECT_EQ(family("llama", {8, 8}, false, false), "mistral");
  EXPECT_EQ(family("llama", {0, 8}, false, false), "smollm3");
  EXPECT_EQ(family("llama", {0, 8, 9}, false, false), "pronghorn");
  EXPECT_EQ(family("llama", {8, 0, 8}, true, false), "qwen2");
  EXPECT_EQ(family("llama", {8, 0, 9}, true, false), "pronghorn");
  EXPECT_EQ(family("llama", {0, 8}, false, true), "qwen3");
  EXPECT_EQ(family("llama", {0, 0}, true, true), "pronghorn");
}

TEST(Families, AreNotWrittenForWhatTheyWouldReadOtherwise) {
  const auto family = [](const std::function<void(ModelConfig&)>& change) {
    ModelConfig config = load_config(golden_path("llama"));
    change(config);
    return family_for(config).model_type;
  };
  const auto block = [](ModelConfig& config) -> BlockConfig& { return config.blocks.at('a'); };
  EXPECT_EQ(family([](ModelConfig& config) { config.recompute = true; }), "llama");
  EXPECT_EQ(family([](ModelConfig& config) { config.vocab_size = 0; }), "llama");
  EXPECT_EQ(family([](ModelConfig& config) { config.mtp.heads = 1; }), "pronghorn");
  EXPECT_EQ(family([](ModelConfig& config) { config.norm = Norm::Kind::layer_norm; }), "pronghorn");
  EXPECT_EQ(
      family([&](ModelConfig& config) { block(config).mixers.front()["rope"]["rotary_dim"] = 4; }),
      "phi3");
  EXPECT_EQ(family([&](ModelConfig& config) { block(config).mixers.front()["rope"] = nullptr; }),
            "smollm3");
  EXPECT_EQ(family([&](ModelConfig& config) {
              block(config).mixers.front()["rope"]["interleaved"] = true;
            }),
            "pronghorn");
  EXPECT_EQ(family([&](ModelConfig& config) { block(config).mixers.front()["sinks"] = true; }),
            "pronghorn");
  EXPECT_EQ(family([&](ModelConfig& config) { block(config).feed_forward = nullptr; }),
            "pronghorn");
  EXPECT_EQ(family([&](ModelConfig& config) {
              block(config).mixers.push_back(block(config).mixers.front());
            }),
            "pronghorn");
  // An option that a layer gets one day and that no family has heard of.
  ModelConfig config = load_config(golden_path("llama"));
  EXPECT_TRUE(expresses(llama_family(), config));
  block(config).mixers.front()["new"] = 1;
  EXPECT_FALSE(expresses(llama_family(), config));
}

TEST(Families, RefuseWhatTheyCannotHonour) {
  const auto read = [](const char* name, const char* key, const nlohmann::json& value) {
    read_changed(name, key, value);
  };
  EXPECT_NO_THROW(read("llama", "use_cache", false));
  EXPECT_THROW(read("llama", "hidden_act", "quick_gelu"), Error);
  EXPECT_THROW(read("llama", "rope_parameters", {{"rope_type", "llama3"}}), Error);
  EXPECT_THROW(read("llama", "rope_scaling", {{"type", "linear"}}), Error);
  EXPECT_THROW(read("llama", "rope_scaling", {{"type", "spiral"}, {"factor", 2.0}}), Error);
  EXPECT_THROW(read("llama", "rope_scaling", {{"type", "linear"}, {"factor", 0}}), Error);
  EXPECT_THROW(read("llama", "rope_parameters", {{"partial_rotary_factor", 0.5}}), Error);
  EXPECT_THROW(read("phi3", "rope_parameters",
                    {{"rope_type", "longrope"}, {"short_factor", {1}}, {"long_factor", {1, 2}}}),
               Error);
  EXPECT_THROW(read("gpt2", "add_cross_attention", true), Error);
  EXPECT_THROW(read("gemma2", "use_bidirectional_attention", true), Error);
  EXPECT_THROW(read("smollm3", "no_rope_layers", {1, 2, 1, 0}), Error);
  EXPECT_THROW(read("smollm3", "no_rope_layers", {1}), Error);
  EXPECT_THROW(read("llama", "num_key_value_heads", 3), Error);
  EXPECT_THROW(read("mistral", "quantization_config", {{"bits", 4}}), Error);
  EXPECT_THROW(read("mamba", "hidden_act", "relu"), Error);
  EXPECT_THROW(read("mamba2", "rms_norm", false), Error);
  EXPECT_THROW(read("mamba2", "num_heads", 5), Error);
  EXPECT_THROW(read("mamba2", "n_groups", 3), Error);
  EXPECT_THROW(read("mamba2", "model_type", "no_such_family"), Error);
}

TEST(Hybrids, RefuseWhatTheyCannotHonour) {
  const auto read = [](const char* name, const char* key, const nlohmann::json& value) {
    read_changed(name, key, value);
  };
  // Experts, and layers of unknown kinds or too few of them.
  EXPECT_THROW(read("granitemoehybrid_moe", "num_experts_per_tok", 7), Error);
  EXPECT_THROW(read("granitemoehybrid_moe", "num_local_experts", -1), Error);
  EXPECT_THROW(read("jamba_moe", "num_experts_per_tok", 6), Error);
  EXPECT_THROW(read("jamba_moe", "expert_layer_offset", 2), Error);
  EXPECT_THROW(read("qwen3_next_moe", "mlp_only_layers", {"0"}), Error);
  EXPECT_THROW(read("qwen3_next_moe", "shared_expert_intermediate_size", 0), Error);
  EXPECT_THROW(read("qwen3_5_moe_text", "norm_topk_prob", false), Error);
  EXPECT_THROW(read("lfm2_moe", "num_dense_layers", -1), Error);
  EXPECT_THROW(read("nemotron_h_moe", "num_experts_per_tok", 7), Error);
  EXPECT_THROW(read("nemotron_h_moe", "moe_shared_expert_intermediate_size", 0), Error);
  EXPECT_THROW(read("nemotron_h_moe", "mlp_bias", true), Error);
  EXPECT_THROW(read("nemotron_h_moe_latent", "n_group", 3), Error);
  EXPECT_THROW(read("nemotron_h_moe_latent", "moe_latent_size", -1), Error);
  EXPECT_THROW(read("nemotron_h", "layers_block_type", {"mlp", "lstm"}), Error);
  EXPECT_THROW(read("nemotron_h", "layers_block_type", "mlp"), Error);
  EXPECT_THROW(read("lfm2", "layer_types", {"conv", "full_attention"}), Error);
  EXPECT_THROW(read("lfm2", "layer_types", {"conv", "full_attention", "recurrent"}), Error);
  EXPECT_THROW(read("qwen3_5_text", "layer_types", {1, 2, 3, 4}), Error);
  // Factors and sizes that do not fit.
  EXPECT_THROW(read("falcon_h1", "ssm_multipliers", {1, 1, 1, 1}), Error);
  EXPECT_NO_THROW(read("jamba", "mamba_dt_rank", "auto"));
  EXPECT_THROW(read("jamba", "mamba_dt_rank", "automatic"), Error);
  EXPECT_THROW(read("falcon_mamba", "time_step_rank", 2.5), Error);
  EXPECT_THROW(read("samba", "use_conv_bias", false), Error);
  EXPECT_THROW(read("samba", "hidden_act", "gelu"), Error);
  EXPECT_THROW(read("samba", "attn", nullptr), Error);
  EXPECT_THROW(read("samba", "attn", {{"layers", 1}, {"num_heads", 3}}), Error);
  EXPECT_THROW(read("recurrent_gemma", "block_types", {"recurrent", "conv"}), Error);
  EXPECT_THROW(read("recurrent_gemma", "block_types", nlohmann::json::array()), Error);
  EXPECT_THROW(read("recurrent_gemma", "intermediate_size", 41), Error);
  EXPECT_THROW(read("recurrent_gemma", "head_dim", 5), Error);
  EXPECT_THROW(read("recurrent_gemma", "lru_width", 17), Error);
  EXPECT_THROW(read("recurrent_gemma", "embeddings_scale_by_sqrt_dim", false), Error);
  EXPECT_THROW(read("zamba2", "n_mamba_heads", 5), Error);
  EXPECT_THROW(read("zamba2", "num_attention_heads", 5), Error);
  EXPECT_THROW(read("zamba2", "num_key_value_heads", 2), Error);
  EXPECT_THROW(read("zamba2", "rms_norm_eps", 1e-6), Error);
  EXPECT_THROW(read("zamba2", "use_long_context", true), Error);
  EXPECT_THROW(read("zamba2", "tie_word_embeddings", false), Error);
  EXPECT_THROW(read("zamba2", "use_shared_mlp_adapter", false), Error);
  EXPECT_THROW(read("zamba2", "num_mem_blocks", 0), Error);
  EXPECT_THROW(read("zamba2", "layers_block_type", {"hybrid", "mamba"}), Error);
  EXPECT_THROW(read("falcon_h1", "mlp_multipliers", {1, "1"}), Error);
  EXPECT_THROW(read("falcon_h1", "mamba_d_ssm", 30), Error);
  EXPECT_THROW(read("bamba", "mamba_d_head", 7), Error);
  EXPECT_THROW(read("bamba", "mamba_n_groups", 3), Error);
  EXPECT_THROW(read("minicpm3", "num_key_value_heads", 2), Error);
  EXPECT_THROW(read("minicpm3", "qk_rope_head_dim", 3), Error);
  EXPECT_THROW(read("qwen3_5", "text_config", 1), Error);
  EXPECT_THROW(read("qwen3_5_text", "attn_output_gate", false), Error);
}

TEST(Diffusion, RefusesWhatItCannotHonour) {
  EXPECT_NO_THROW(read_changed("llada_moe", "moe_layer_freq", 1));
  for (const auto& [name, key, value] :
       std::vector<std::tuple<const char*, const char*, nlohmann::json>>{
           {"llada_moe", "moe_layer_freq", {0, 1}},
           {"llada_moe", "norm_topk_prob", true},
           {"llada_moe", "shared_expert_intermediate_size", 8},
           {"llada_moe", "routed_scaling_factor", 2},
           {"llada_moe", "moe_router_score_function", "sigmoid"},
           {"llada_moe", "num_experts_per_tok", 7},
           {"llada_moe", "mask_token_id", 48},
           {"sdar", "block_size", 0},
           {"sdar", "mask_token_id", -1},
           {"sdar", "use_sliding_window", true}}) {
    EXPECT_THROW(read_changed(name, key, value), Error) << name << " " << key;
  }
}

TEST(Hymba, RefusesWhatItCannotHonour) {
  const auto read = [](const char* key, const nlohmann::json& value) {
    read_changed("hymba", key, value);
  };
  EXPECT_NO_THROW(read("layer_type", {"h", "h", "h", "h", "h", "h", "h"}));
  EXPECT_NO_THROW(read("kv_reuse_group", nlohmann::json::array()));
  EXPECT_THROW(read("kv_reuse_group", {1, 2}), Error);
  EXPECT_THROW(read("kv_reuse_group", {{1, 7}}), Error);
  EXPECT_THROW(read("kv_reuse_group", {{2, 1}}), Error);
  EXPECT_THROW(read("kv_reuse_group", {{1, 2}, {2, 4}}), Error);
  EXPECT_THROW(read("kv_reuse_group", {{1, "2"}}), Error);
  // A layer that sees everything cannot read keys of which a window is kept.
  EXPECT_THROW(read("kv_reuse_group", {{2, 3}}), Error);
  EXPECT_THROW(read("kv_weight_reuse", true), Error);
  EXPECT_THROW(read("kq_norm", "rms"), Error);
  EXPECT_THROW(read("kq_head_dim", 8), Error);
  EXPECT_THROW(read("num_experts", 2), Error);
  EXPECT_THROW(read("num_mamba", 2), Error);
  EXPECT_THROW(read("num_attention_heads", 5), Error);
  EXPECT_THROW(read("num_key_value_heads", 2), Error);
  EXPECT_THROW(read("num_memory_tokens", -1), Error);
  EXPECT_THROW(read("memory_tokens_interspersed_every", 16), Error);
  EXPECT_THROW(read("rope_type", "dynamic_ntk"), Error);
  EXPECT_THROW(read("rope_type", "ntk"), Error);
  EXPECT_THROW(read("mlp_hidden_act", "gelu"), Error);
  EXPECT_THROW(read("global_attn_idx", 3), Error);
  EXPECT_THROW(read("intermediate_size", 0), Error);
}

TEST(Hymba, ErrorsNameLayersAndPublishedKeys) {
  const auto error = [](const char* key, const nlohmann::json& value) {
    return error_of([&] { read_changed("hymba", key, value); });
  };
  EXPECT_THAT(
      error("num_key_value_heads", 2),
      AllOf(HasSubstr("config.json: layers[0,3,6].mixer.kv_heads"), Not(HasSubstr("block"))));
  EXPECT_THAT(error("kv_reuse_group", {{2, 3}}), HasSubstr("config.json: layers[3].mixer"));
  EXPECT_THAT(error("num_memory_tokens", 1 << 20), HasSubstr("config.json: num_memory_tokens"));
}

TEST(Families, ErrorsNameTheFirstFewOfManyLayers) {
  nlohmann::json json = read_config_json(golden_path("qwen2") / "config.json");
  json["num_hidden_layers"] = 12;
  json["layer_types"] = nlohmann::json::array();
  for (int i = 0; i < 12; ++i) {
    json["layer_types"].push_back(i < 3 || i % 2 == 0 ? "full_attention" : "sliding_attention");
  }
  json["num_key_value_heads"] = 3;
  const Folder folder;
  write_file(folder.path() / "config.json", json.dump());
  EXPECT_THAT(
      error_of([&] { load_config(folder.path()); }),
      HasSubstr("config.json: layers[0-2,4,6,8,...].mixer.kv_heads (num_key_value_heads): 3"));
}

TEST(Families, ErrorsNameTheKeysOfTheFile) {
  const auto error = [](const char* name, const char* key, const nlohmann::json& value) {
    return error_of([&] { read_changed(name, key, value); });
  };
  EXPECT_THAT(error("deepseek_v3", "n_group", 3), HasSubstr(".ffn.groups (n_group): 3"));
  EXPECT_THAT(error("qwen2", "hidden_size", 1 << 18), HasSubstr("config.json: hidden_size: must"));
}

TEST(Deepseek, RefuseWhatTheyCannotHonour) {
  const auto read = [](const char* name, const char* key, const nlohmann::json& value) {
    read_changed(name, key, value);
  };
  EXPECT_NO_THROW(read("deepseek_v3", "topk_method", "noaux_tc"));
  EXPECT_NO_THROW(read("deepseek_v3", "moe_layer_freq", 1));
  EXPECT_THROW(read("deepseek_v3", "topk_method", "greedy"), Error);
  EXPECT_THROW(read("deepseek_v3", "scoring_func", "softmax"), Error);
  EXPECT_THROW(read("deepseek_v3", "moe_layer_freq", 2), Error);
  EXPECT_THROW(read("deepseek_v3", "n_group", 3), Error);
  EXPECT_THROW(read("deepseek_v3", "topk_group", 5), Error);
  EXPECT_THROW(read("deepseek_v3", "num_nextn_predict_layers", -1), Error);
  EXPECT_THROW(read("deepseek_v2", "topk_method", "noaux_tc"), Error);
  EXPECT_THROW(read("deepseek_v2", "scoring_func", "sigmoid"), Error);
  EXPECT_THROW(read("deepseek_v2", "norm_topk_prob", true), Error);
  EXPECT_THROW(read("deepseek_v2", "mlp_bias", true), Error);
  EXPECT_THROW(read("deepseek_v2", "num_experts_per_tok", nullptr), Error);
  EXPECT_THROW(read("deepseek_v2_groups", "n_group", nullptr), Error);
  EXPECT_THROW(read("glm4_moe_lite", "mlp_layer_types", {"dense"}), Error);
  EXPECT_THROW(read("glm4_moe_lite", "mlp_layer_types", {"dense", "thin"}), Error);
}

TEST(Deepseek, IsWrittenWhateverTheBlockOfItsHeadIsCalled) {
  nlohmann::json json = write_pronghorn_config(load_config(golden_path("deepseek_v3_mtp")));
  ASSERT_EQ(json.at("mtp").at("block"), "b");
  json["pattern"] = "az";
  json["mtp"]["block"] = "z";
  json["blocks"]["z"] = nlohmann::json(json.at("blocks").at("b"));
  json["blocks"].erase("b");
  EXPECT_EQ(family_for(read_pronghorn_config({json, "test"})).model_type, "deepseek_v3");
  // A head of the first layer's kind is not what such a file can say.
  json["mtp"]["block"] = "a";
  EXPECT_EQ(family_for(read_pronghorn_config({json, "test"})).model_type, "pronghorn");
}

TEST(KimiK25, ReadsTheTextModel) {
  // What the whole says of the head counts for more than what its text model says.
  EXPECT_FALSE(read_changed("kimi_k25", "tie_word_embeddings", nullptr).tie_embeddings);
  EXPECT_TRUE(read_changed("kimi_k25", "tie_word_embeddings", true).tie_embeddings);
  EXPECT_THAT(error_of([] { read_changed("kimi_k25", "text_config", 1); }),
              HasSubstr("config.json: text_config"));
  nlohmann::json text = read_config_json(golden_path("kimi_k25") / "config.json")["text_config"];
  text["n_group"] = 4;
  EXPECT_THAT(error_of([&] { read_changed("kimi_k25", "text_config", text); }),
              HasSubstr("config.json: text_config.layers[1].ffn"));

  const ModelConfig config = load_config(golden_path("kimi_k25"));
  const TensorRules rules = find_family("kimi_k25", "").tensors(config);
  for (const char* tower : {"vision_tower.patch_embed.proj.bias", "mm_projector.proj.0.weight"}) {
    EXPECT_TRUE(is_passed_over(rules, tower)) << tower;
    EXPECT_TRUE(is_passed_over(rules, std::string("model.") + tower)) << tower;
  }
  EXPECT_THAT(other_names(rules, "language_model.lm_head.weight"), ElementsAre("lm_head.weight"));
  EXPECT_THAT(other_names(rules, "language_model.model.norm.weight"),
              ElementsAre("model.language_model.norm.weight"));
}

TEST(Deepseek, DenseLayersAreTheFirst) {
  // e: with experts.
  const auto kinds = [](const ModelConfig& config) {
    std::string all;
    for (const BlockConfig* block : layer_blocks(config)) {
      all += block->feed_forward.at("type") == "moe" ? 'e' : '-';
    }
    return all;
  };
  EXPECT_EQ(kinds(read_changed("glm4_moe", "first_k_dense_replace", 2)), "--e");
  EXPECT_EQ(kinds(read_changed("glm4_moe", "first_k_dense_replace", 9)), "---");
  EXPECT_EQ(kinds(read_changed("glm4_moe_lite", "mlp_layer_types", nullptr)), "-e");
  EXPECT_EQ(kinds(read_changed("glm4_moe_lite_layers", "first_k_dense_replace", 2)), "e-e");
}

TEST(Deepseek, ReadSarvamsOlderNames) {
  nlohmann::json json = read_config_json(golden_path("sarvam_mla") / "config.json");
  const ModelConfig expected = load_config(golden_path("sarvam_mla"));
  for (const auto& [name, older] : {std::pair("n_routed_experts", "num_experts"),
                                    {"n_shared_experts", "num_shared_experts"},
                                    {"rope_parameters", "rope_scaling"}}) {
    json[older] = json.at(name);
    json.erase(name);
  }
  json["rope_theta"] = json.at("rope_scaling").at("rope_theta");
  json["rope_scaling"].erase("rope_type");
  json["rope_scaling"]["type"] = "deepseek_yarn";
  json["head_dim"] = 14;
  json["q_head_dim"] = 10;
  const Folder folder;
  write_file(folder.path() / "config.json", json.dump());
  EXPECT_EQ(computes_otherwise(load_config(folder.path()), expected), "");
}

TEST(Hybrids, ReadOlderNames) {
  const auto kinds = [](const ModelConfig& config) {
    std::string all;
    for (const BlockConfig* block : layer_blocks(config)) {
      if (block->mixers.empty()) {
        all += block->feed_forward.at("type") == "moe" ? 'E' : '-';
      } else {
        all += block->mixers.front().at("type") == "mamba2" ? 'M' : '*';
      }
    }
    return all;
  };
  EXPECT_EQ(kinds(read_changed("granitemoehybrid", "layer_types", {"mamba", "attention", "mamba"})),
            "M*M");
  nlohmann::json nemotron = read_config_json(golden_path("nemotron_h") / "config.json");
  nemotron.erase("layers_block_type");
  nemotron["hybrid_override_pattern"] = "M-*-ME";
  const Folder folder;
  write_file(folder.path() / "config.json", nemotron.dump());
  EXPECT_EQ(kinds(load_config(folder.path())), "M-*-ME");
}

template <Family (*family)()>
Family in_other_layout() {
  Family turned = family();
  turned.tensors = [](const ModelConfig& config) {
    TensorRules rules = family().tensors(config);
    rules.rules.insert(rules.rules.begin(), rules.layouts.begin(), rules.layouts.end());
    return rules;
  };
  return turned;
}

// Experts one by one where the family writes stacks, and the other way round.
TEST(Hybrids, ReadExpertsHoweverTheyArePublished) {
  for (const auto& [name, turned] :
       {std::pair<const char*, Family>("qwen3_5_moe", in_other_layout<qwen3_5_moe_family>()),
        {"qwen3_5_moe_text", in_other_layout<qwen3_5_moe_text_family>()},
        {"qwen3_next_moe", in_other_layout<qwen3_next_family>()}}) {
    SCOPED_TRACE(name);
    const auto model = Model::load(golden_path(name));
    const Folder folder;
    save_checkpoint(*model, folder.path(), turned);
    EXPECT_NE(SafetensorsFile(folder.path() / "model.safetensors").names(),
              SafetensorsFile(golden_path(name) / "model.safetensors").names());
    EXPECT_EQ(Model::load(folder.path())->fingerprint(), model->fingerprint());
  }
}

// One kind of layers only: still a model, whatever family it is written in.
TEST(MiniMax, MayHaveOneKindOfLayers) {
  for (const std::string kind : {"full_attention", "linear_attention"}) {
    ModelConfig config =
        read_changed("minimax", "layer_types", nlohmann::json::array({kind, kind, kind}));
    const Folder folder;
    const Model model(config, 3);
    model.save(folder.path());
    EXPECT_EQ(Model::load(folder.path())->fingerprint(), model.fingerprint()) << kind;
    EXPECT_FALSE(find_family("minimax", "test").tensors(config).rules.empty());
  }
}

TEST(MiniMax, ReadsAndWritesHowMuchOfAHeadIsTurned) {
  const ModelConfig config = read_changed("minimax", "rotary_dim", 2);
  const nlohmann::json written = *find_family("minimax", "test").write(config);
  EXPECT_EQ(written.at("rotary_dim"), 2);
  EXPECT_EQ(computation(find_family("minimax", "test").read({written, "again"})),
            computation(config));
}

TEST(Hybrids, MayHaveOneKindOfLayers) {
  for (const auto& [name, kind] : {std::pair("qwen3_5_text", "linear_attention"),
                                   {"qwen3_5_text", "full_attention"},
                                   {"granitemoehybrid", "linear_attention"},
                                   {"granitemoehybrid", "full_attention"}}) {
    SCOPED_TRACE(fmt::format("{} {}", name, kind));
    const nlohmann::json config = read_config_json(golden_path(name) / "config.json");
    const auto layers = config.at("layer_types").size();
    const Model model(read_changed(name, "layer_types", std::vector<std::string>(layers, kind)), 1);
    const Folder folder;
    model.save(folder.path());
    EXPECT_EQ(Model::load(folder.path())->fingerprint(), model.fingerprint());
  }
}

}  // namespace
}  // namespace pronghorn
