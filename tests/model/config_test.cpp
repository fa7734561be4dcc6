// Patterns, configurations and checkpoints that are wrong, huge or hostile: one clear Error each.
#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/files.h"
#include "formats/safetensors.h"
#include "model/families.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::model_config;
using testing_support::model_configs;

std::string expand(std::string_view pattern) {
  return expanded_pattern(parse_pattern(pattern, "test"));
}

TEST(Pattern, Expands) {
  EXPECT_EQ(expand("a"), "a");
  EXPECT_EQ(expand("3a"), "aaa");
  EXPECT_EQ(expand(" a\tB  2c "), "aBcc");
  EXPECT_EQ(expand("2a 2[3m a] (4a) 2a"), "aammmammma(aaaa)aa");
  EXPECT_EQ(expand("2[a 2[b]]"), "abbabb");
  EXPECT_EQ(expand("2(a)"), "(a)(a)");
  EXPECT_EQ(expand("4096a").size(), 4096u);
  EXPECT_EQ(expand("64[64a]").size(), 4096u);
  EXPECT_EQ(expand("0002a"), "aa");
}

TEST(Pattern, SaysWhereItIsWrong) {
  const auto error = [](std::string_view pattern) {
    return error_of([&] { parse_pattern(pattern, "file.json: pattern"); });
  };
  EXPECT_THAT(error("2a 3? b"), AllOf(HasSubstr("file.json: pattern"), HasSubstr("character 5"),
                                      HasSubstr("unexpected '?'")));
  EXPECT_THAT(error(""), HasSubstr("no block"));
  EXPECT_THAT(error("  "), HasSubstr("no block"));
  EXPECT_THAT(error("0a"), HasSubstr("count of 0"));
  EXPECT_THAT(error("3"), HasSubstr("must follow the count"));
  EXPECT_THAT(error("3 a"), HasSubstr("character 2"));
  EXPECT_THAT(error("[]"), HasSubstr("empty pair"));
  EXPECT_THAT(error("2[a"), HasSubstr("']' is missing"));
  EXPECT_THAT(error("(a"), HasSubstr("')' is missing"));
  EXPECT_THAT(error("a]"), HasSubstr("unexpected ']'"));
  EXPECT_THAT(error("[a)"), HasSubstr("unexpected ')'"));
  EXPECT_THAT(error("-1a"), HasSubstr("unexpected '-'"));
  EXPECT_THAT(error("a\xff"), HasSubstr("character 2"));
  EXPECT_THAT(error(std::string("a\0b", 3)), HasSubstr(R"(pattern 'a\x00b')"));
  EXPECT_LT(error(std::string(100000, 'x') + "?").size(), 400u);
}

TEST(Pattern, RefusesTooManyBlocksAtOnce) {
  const auto error = [](std::string_view pattern) {
    return error_of([&] { parse_pattern(pattern, "test"); });
  };
  EXPECT_THAT(error("4097a"), HasSubstr("4096"));
  EXPECT_THAT(error("99999999999999999999999a"), HasSubstr("4096"));
  EXPECT_THAT(error("4096a a"), HasSubstr("4096"));
  EXPECT_THAT(error("65[64a]"), HasSubstr("4096"));
  // A tower of repeats must not be expanded before it is refused.
  std::string tower = "a";
  for (int i = 0; i < 30; ++i) tower = "4096[" + tower + "]";
  EXPECT_THAT(error(tower), HasSubstr("4096"));
  EXPECT_THAT(error(std::string(100000, '[') + "a"), HasSubstr("nested too deeply"));
  EXPECT_THAT(error(std::string(1000, '(') + "a" + std::string(1000, ')')),
              HasSubstr("nested too deeply"));
}

TEST(Pattern, NeverCrashes) {
  Random random(1, "pattern");
  constexpr std::string_view kAlphabet = "ab012349[]() \t?";
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (uint64_t n = random.below(24); n > 0; --n) {
      text += kAlphabet[random.below(kAlphabet.size())];
    }
    try {
      const auto steps = parse_pattern(text, "test");
      EXPECT_LE(steps.size(), 3 * static_cast<size_t>(kMaxBlocks));
      EXPECT_EQ(expand(expanded_pattern(steps)), expanded_pattern(steps)) << text;
    } catch (const Error&) {
    }
  }
}

TEST(Pattern, IsCompressedToWhatExpandsToIt) {
  EXPECT_EQ(compressed_pattern("a"), "a");
  EXPECT_EQ(compressed_pattern("aaaa"), "4a");
  EXPECT_EQ(compressed_pattern("mmmammmaaa"), "2[3m a] 2a");
  EXPECT_EQ(compressed_pattern("aaaaaabaaaaaabaa"), "2[6a b] 2a");
  Random random(1, "compressed");
  for (int i = 0; i < 200; ++i) {
    std::string letters;
    const uint64_t length = 1 + random.below(80), kinds = 1 + random.below(4);
    while (letters.size() < length) letters += static_cast<char>('a' + random.below(kinds));
    EXPECT_EQ(expand(compressed_pattern(letters)), letters);
  }
  EXPECT_EQ(expand(compressed_pattern(std::string(kMaxBlocks, 'x'))), std::string(kMaxBlocks, 'x'));
}

// A complete configuration as text, with one value at `path` set to `value` (JSON), or removed if
// that is empty.
std::string changed(const std::string& pointer, const std::string& value) {
  nlohmann::json json = parse_json(R"({
    "vocab_size": 61, "hidden_size": 24, "pattern": "m a",
    "norm": {"type": "rms_norm", "epsilon": 1e-6},
    "blocks": {
      "a": {"mixer": {"type": "attention", "heads": 4, "kv_heads": 2, "rope": {"theta": 1e4}},
            "ffn": {"type": "swiglu", "size": 40}},
      "m": {"mixer": {"type": "mamba2", "heads": 4, "state": 10}}}})",
                                   "test");
  const nlohmann::json::json_pointer at(pointer);
  if (value.empty()) {
    json.at(at.parent_pointer()).erase(at.back());
  } else {
    json[at] = parse_json(value, "value");
  }
  return json.dump();
}

ModelConfig read(const std::string& text) {
  return read_pronghorn_config(ConfigReader(parse_json(text, "c.json"), "c.json"));
}

std::string error_with(const std::string& pointer, const std::string& value) {
  return error_of([&] { read(changed(pointer, value)); });
}

TEST(Config, RefusesUnknownKeysAndSuggests) {
  EXPECT_THAT(
      error_with("/blocks/a/mixer/kv_haeds", "2"),
      AllOf(HasSubstr("c.json: blocks.a.mixer"), HasSubstr("kv_haeds"), HasSubstr("kv_heads")));
  EXPECT_THAT(error_with("/hiden_size", "24"),
              AllOf(HasSubstr("hiden_size"), HasSubstr("hidden_size")));
  EXPECT_THAT(error_with("/blocks/m/mixer/n_groups", "1"), HasSubstr("n_groups"));
  EXPECT_THAT(error_with("/blocks/a/mixer/rope/base", "100"), HasSubstr("base"));
  EXPECT_THAT(error_with("/norm/eps", "1e-5"), HasSubstr("eps"));
  EXPECT_THAT(error_with("/blocks/a/fnn", "{}"), AllOf(HasSubstr("fnn"), HasSubstr("ffn")));
  EXPECT_THAT(error_with("/blocks/a/ffn/widht", "3"), HasSubstr("widht"));
}

TEST(Config, NamesWhatIsMissing) {
  for (const char* pointer :
       {"/hidden_size", "/pattern", "/blocks", "/blocks/m/mixer", "/blocks/a/mixer/type",
        "/blocks/a/mixer/heads", "/blocks/a/ffn/type", "/blocks/a/ffn/size"}) {
    const std::string key(std::string_view(pointer).substr(std::string(pointer).rfind('/') + 1));
    EXPECT_THAT(error_with(pointer, ""), AllOf(HasSubstr(key), HasSubstr("missing"))) << pointer;
  }
  // The vocabulary may wait for the tokenizer, but no model is built without.
  const ModelConfig config = read(changed("/vocab_size", ""));
  EXPECT_EQ(config.vocab_size, 0);
  EXPECT_THAT(error_of([&] { Model(config, 1); }), HasSubstr("vocab_size"));
}

TEST(Config, RefusesSizesThatDoNotDivide) {
  EXPECT_THAT(error_with("/blocks/a/mixer/heads", "5"), HasSubstr("heads"));
  EXPECT_THAT(error_with("/blocks/a/mixer/kv_heads", "3"),
              AllOf(HasSubstr("kv_heads"), HasSubstr("does not divide")));
  EXPECT_THAT(error_with("/blocks/a/mixer/kv_heads", "8"), HasSubstr("kv_heads"));
  EXPECT_THAT(error_with("/blocks/a/mixer/rope/rotary_dim", "3"), HasSubstr("odd"));
  EXPECT_THAT(error_with("/blocks/a/mixer/rope/rotary_dim", "8"), HasSubstr("rotary_dim"));
  EXPECT_THAT(error_with("/blocks/m/mixer/heads", "7"), HasSubstr("heads"));
  EXPECT_THAT(error_with("/blocks/m/mixer/groups", "3"), HasSubstr("groups"));
  EXPECT_THAT(
      error_with("/blocks/m/mixer", R"({"type": "gated_deltanet", "heads": 2, "value_heads": 3})"),
      HasSubstr("value_heads"));
  EXPECT_THAT(error_with("/blocks/m/mixer", R"({"type": "rg_lru", "gate_blocks": 5})"),
              AllOf(HasSubstr("gate_blocks"), HasSubstr("does not divide")));
  EXPECT_THAT(error_with("/blocks/m/mixer", R"({"type": "s4d", "state": 7})"),
              HasSubstr("state: 7 is odd"));
}

// Rotary positions turn pairs: with an odd head_dim there is one left over.
TEST(Config, RefusesRotaryPositionsOfOddHeads) {
  EXPECT_THAT(error_with("/blocks/a/mixer/head_dim", "7"), HasSubstr("rotary_dim"));
  EXPECT_THAT(error_with("/blocks/a/mixer/head_dim", "1"), HasSubstr("rotary_dim"));
}

TEST(Config, RefusesUnusedAndUndefinedBlocks) {
  EXPECT_THAT(error_with("/pattern", "\"a\""), AllOf(HasSubstr("blocks.m"), HasSubstr("not used")));
  EXPECT_THAT(error_with("/pattern", "\"m a x\""), HasSubstr("'x'"));
  EXPECT_THAT(error_with("/blocks/aa", "{}"), HasSubstr("aa"));
  EXPECT_THAT(error_with("/blocks/7", R"({"mixer": {"type": "mamba"}})"), HasSubstr("blocks.7"));
  EXPECT_THAT(error_with("/pattern", "\"m (a)\""), HasSubstr("subsampled"));
  EXPECT_THAT(error_with("/blocks", "{}"), HasSubstr("does not define"));
}

TEST(Config, RefusesWrongTypes) {
  for (const char* value : {"\"24\"", "24.5", "[24]", "{}", "true", "-1", "0", "1e300"}) {
    EXPECT_THAT(error_with("/hidden_size", value), HasSubstr("hidden_size")) << value;
  }
  for (const char* value : {"3", "[]", "\"a\"", "true"}) {
    EXPECT_THAT(error_with("/blocks", value), HasSubstr("blocks")) << value;
    EXPECT_THAT(error_with("/blocks/a", value), HasSubstr("blocks")) << value;
    EXPECT_THAT(error_with("/blocks/a/mixer", value), HasSubstr("mixer")) << value;
    EXPECT_THAT(error_with("/blocks/a/ffn", value), HasSubstr("ffn")) << value;
    EXPECT_THAT(error_with("/norm", value), HasSubstr("norm")) << value;
    EXPECT_THAT(error_with("/train", value), HasSubstr("train")) << value;
  }
  EXPECT_THAT(error_with("/pattern", "7"), HasSubstr("pattern"));
  EXPECT_THAT(error_with("/tie_embeddings", "1"), HasSubstr("tie_embeddings"));
  EXPECT_THAT(error_with("/recompute", "\"yes\""), HasSubstr("recompute"));
  EXPECT_THAT(error_with("/norm/epsilon", "-1"), HasSubstr("epsilon"));
  EXPECT_THAT(error_with("/initializer_range", "\"wide\""), HasSubstr("initializer_range"));
  EXPECT_THAT(error_with("/blocks/a/mixer/type", "\"attentoin\""), HasSubstr("attention"));
  EXPECT_THAT(error_with("/blocks/a/ffn/type", "\"relu\""), HasSubstr("swiglu"));
  EXPECT_THAT(error_with("/norm/type", "\"batch_norm\""), HasSubstr("rms_norm"));
  EXPECT_THAT(error_with("/model_type", "\"llama\""), HasSubstr("model_type"));
  EXPECT_THAT(error_with("/blocks/a/mixers", "[]"), HasSubstr("mixer"));
  for (const char* limit : {"3", "[1]", "[0, 1, 2]", "[\"a\", 1]", "[null, 1]", "[0, {}]"}) {
    EXPECT_THAT(error_with("/blocks/m/mixer/time_step_limit", limit), HasSubstr("time_step_limit"))
        << limit;
  }
}

TEST(Config, BlocksAreMixersOrAFeedForwardOrBoth) {
  const std::string ffn = R"({"type": "mlp", "size": 20, "activation": "relu2")";
  EXPECT_EQ(error_with("/blocks/a", R"({"ffn": )" + ffn + "}}"), "no error");
  EXPECT_THAT(error_with("/blocks/a", "{}"), HasSubstr("mixer"));
  EXPECT_THAT(error_with("/blocks/a", R"({"residual": "parallel", "ffn": )" + ffn + "}}"),
              HasSubstr("residual"));
  const std::string two = R"({"mixers": [{"type": "mamba"}, {"type": "short_conv"}], "merge": )";
  EXPECT_EQ(error_with("/blocks/a", two + "\"sum\"}"), "no error");
  EXPECT_THAT(error_with("/blocks/a", two + "\"product\"}"), HasSubstr("mean_of_norms"));
  EXPECT_THAT(error_with("/blocks/a", R"({"merge": "sum", "mixer": {"type": "mamba"}})"),
              HasSubstr("merge"));
  for (const char* scales : {"[1, 1, 1, 1]", "[1, 1, 1, 1, 1e9]", "[1, 1, 1, 1, null]", "1"}) {
    EXPECT_THAT(error_with("/blocks/m/mixer/projection_scales", scales),
                HasSubstr("projection_scales"))
        << scales;
  }
}

TEST(Config, RefusesEmptyOrReversedTimeSteps) {
  EXPECT_THAT(error_with("/blocks/m/mixer/time_step_limit", "[0.5, 0.1]"),
              HasSubstr("time_step_limit"));
  EXPECT_THAT(error_with("/blocks/m/mixer/time_step_limit", "[-1, 1]"),
              HasSubstr("time_step_limit"));
  EXPECT_THAT(error_with("/blocks/m/mixer/time_step_max", "1e-5"), HasSubstr("time_step_max"));
}

// Every size of a configuration, as large as numbers get: refused, or refused when the model is
// built, and nothing is allocated for it.
TEST(Config, NeverAllocatesWhatHugeNumbersAskFor) {
  reset_memory_peak();
  const int64_t before = memory_use().bytes;
  const char* const pointers[] = {"/vocab_size",
                                  "/hidden_size",
                                  "/blocks/a/mixer/heads",
                                  "/blocks/a/mixer/kv_heads",
                                  "/blocks/a/mixer/head_dim",
                                  "/blocks/a/ffn/size",
                                  "/blocks/m/mixer/heads",
                                  "/blocks/m/mixer/head_dim",
                                  "/blocks/m/mixer/state",
                                  "/blocks/m/mixer/groups",
                                  "/blocks/m/mixer/conv_kernel"};
  for (const char* pointer : pointers) {
    for (const char* value : {"1000000000000000", "9223372036854775807", "18446744073709551615",
                              "1e18", "-9223372036854775808", "4611686018427387904"}) {
      EXPECT_THROW(Model(read(changed(pointer, value)), 1), Error) << pointer << " " << value;
    }
  }
  EXPECT_LE(memory_use().peak - before, int64_t{1} << 20);
}

// Each number is allowed, together they ask for 10^15 parameters.
TEST(Config, RefusesAModelLargerThanMemory) {
  nlohmann::json json = {{"vocab_size", 1 << 22}, {"hidden_size", 1 << 17}, {"pattern", "4096a"}};
  json["blocks"]["a"] = {{"mixer", {{"type", "attention"}, {"heads", 4096}, {"head_dim", 4096}}},
                         {"ffn", {{"type", "swiglu"}, {"size", 1 << 20}}}};
  EXPECT_THAT(error_of([&] { Model(read(json.dump()), 1); }), HasSubstr("memory"));
  // A block of 4 GiB is not much, 4096 of them are.
  json["hidden_size"] = 1 << 12;
  json["vocab_size"] = 100;
  json["blocks"]["a"] = {{"mixer", {{"type", "attention"}, {"heads", 32}}},
                         {"ffn", {{"type", "swiglu"}, {"size", 1 << 16}}}};
  EXPECT_THAT(error_of([&] { Model(read(json.dump()), 1); }), HasSubstr("memory"));
}

TEST(Config, WritesWhatItReads) {
  for (const auto& [name, body] : model_configs()) {
    ModelConfig config = model_config(body);
    config.train = {{"learning_rate", 0.001}};
    const nlohmann::json written = write_pronghorn_config(config);
    const ModelConfig again = read(written.dump());
    EXPECT_EQ(write_pronghorn_config(again), written) << name;
    EXPECT_EQ(Model(again, 1).fingerprint(), Model(config, 1).fingerprint()) << name;
    EXPECT_EQ(again.norm_epsilon, config.norm_epsilon) << name;
  }
}

// A published name stands for the published rule; a variant has to be asked for.
TEST(Config, TitansLearnsByThePublishedRuleUnlessToldOtherwise) {
  const auto settings = [](const std::string& keys) {
    const ModelConfig config = model_config(
        R"("pattern": "m", "blocks": {"m": {"mixer": {"type": "titans_mag", "heads": 2)" + keys +
        "}}}");
    const nlohmann::json mixer = write_pronghorn_config(config)["blocks"]["m"]["mixer"];
    nlohmann::json chosen;
    for (const char* key : {"rule", "online_errors", "average_momentum", "forget_to",
                            "hidden_learning_rate", "error_limit", "answer_bias"}) {
      chosen.push_back(mixer.at(key));
    }
    return chosen.dump();
  };
  EXPECT_EQ(settings(""), R"(["published",false,false,"zero",1.0,0.0,false])");
  EXPECT_EQ(settings(R"(, "rule": "online")"), R"(["online",true,true,"start",0.001,2.0,true])");
  EXPECT_EQ(settings(R"(, "rule": "online", "forget_to": "zero")"),
            R"(["online",true,true,"zero",0.001,2.0,true])");
  EXPECT_THAT(error_of([&] { settings(R"(, "rule": "own")"); }), HasSubstr("rule"));
}

TEST(Config, DifferentModelsHaveDifferentFingerprints) {
  std::set<uint64_t> seen;
  for (const auto& [name, body] : model_configs()) {
    EXPECT_TRUE(seen.insert(Model(model_config(body), 1).fingerprint()).second) << name;
  }
}

TEST(Config, RefusesFilesThatAreNone) {
  const Folder folder;
  const auto error = [&](std::string_view text) {
    write_file(folder.path() / "config.json", text);
    return error_of([&] { load_config(folder.path()); });
  };
  for (const char* text : {"", "{", "[]", "null", "{}", "{\"model_type\": 3}", "\xff\xfe",
                           "{\"pattern\": \"a\", \"pattern\": \"a\"}"}) {
    EXPECT_THAT(error(text), HasSubstr("config.json")) << text;
  }
  EXPECT_THAT(error("GGUF\3" + std::string(100, 'x')), HasSubstr("a model in GGUF"));
  EXPECT_THAT(error("PK\3\4" + std::string(100, 'x')), HasSubstr("an archive"));
  write_safetensors(folder.path() / "config.json", {});
  EXPECT_THAT(error_of([&] { load_config(folder.path()); }), HasSubstr("weights in safetensors"));
  EXPECT_THAT(error(R"({"model_type": "gpt9"})"), AllOf(HasSubstr("gpt9"), HasSubstr("llama")));
  EXPECT_THAT(error(std::string(100000, '[')), HasSubstr("nested"));
  EXPECT_THAT(error_of([&] { load_config(folder.path() / "absent.json"); }), HasSubstr("absent"));
}

TEST(Config, DamagedTextNeverCrashes) {
  const std::string text = changed("/recompute", "true");
  Random random(2, "config");
  for (int i = 0; i < 3000; ++i) {
    std::string damaged = text;
    for (uint64_t n = random.below(3) + 1; n > 0; --n) {
      damaged[random.below(damaged.size())] = static_cast<char>(32 + random.below(95));
    }
    try {
      read(damaged);
    } catch (const Error&) {
    }
  }
}

// A checkpoint whose tensors `change` has altered.
struct StoredTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

std::string error_of_checkpoint(
    const std::function<void(std::map<std::string, StoredTensor>&)>& change) {
  const Folder folder;
  const Model model(model_config(model_configs()[0].second), 3);
  model.save(folder.path());
  std::map<std::string, StoredTensor> tensors;
  {
    const SafetensorsFile file(folder.path() / "model.safetensors");
    for (const std::string& name : file.names()) {
      const SafetensorsEntry& entry = *file.find(name);
      tensors[name] = {entry.dtype, entry.shape, {}};
      tensors[name].values.resize(static_cast<size_t>(entry.elements()));
      to_f32(entry, tensors[name].values.data());
    }
  }
  change(tensors);
  std::vector<TensorToWrite> list;
  for (const auto& [name, tensor] : tensors) {
    list.push_back({name, tensor.dtype, tensor.shape, tensor.values.data(),
                    tensor.values.size() * sizeof(float)});
  }
  write_safetensors(folder.path() / "model.safetensors", std::move(list));
  return error_of([&] { Model::load(folder.path()); });
}

constexpr const char* kTensor = "model.layers.1.self_attn.k_proj.weight";  // [12, 24]

TEST(Checkpoint, LoadsUnchanged) {
  EXPECT_EQ(error_of_checkpoint([](auto& tensors) { ASSERT_TRUE(tensors.contains(kTensor)); }),
            "no error");
}

TEST(Checkpoint, NamesAMissingTensor) {
  EXPECT_THAT(error_of_checkpoint([](auto& tensors) { tensors.erase(kTensor); }),
              HasSubstr(kTensor));
  EXPECT_THAT(error_of_checkpoint([](auto& tensors) { tensors.erase("lm_head.weight"); }),
              HasSubstr("lm_head.weight"));
}

TEST(Checkpoint, NamesAnExtraTensor) {
  EXPECT_THAT(error_of_checkpoint([](auto& tensors) {
                tensors["model.layers.2.mlp.up_proj.weight"] = tensors[kTensor];
              }),
              HasSubstr("model.layers.2.mlp.up_proj.weight"));
}

TEST(Checkpoint, NamesAWrongShape) {
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{24, 12}, {288}, {12, 24, 1}, {2, 6, 24}}) {
    EXPECT_THAT(error_of_checkpoint([&](auto& tensors) { tensors[kTensor].shape = shape; }),
                AllOf(HasSubstr(kTensor), HasSubstr("[12, 24]")));
  }
}

TEST(Checkpoint, RefusesAnotherDtype) {
  EXPECT_THAT(error_of_checkpoint([](auto& tensors) { tensors[kTensor].dtype = "I32"; }),
              AllOf(HasSubstr(kTensor), HasSubstr("I32")));
}

// Only a published convolution has an axis of one in the middle.
TEST(Checkpoint, RefusesAnAxisOfOneWhereNoneBelongs) {
  EXPECT_THAT(error_of_checkpoint([](auto& tensors) {
                tensors[kTensor].shape = {12, 1, 24};
              }),
              HasSubstr(kTensor));
}

TEST(Checkpoint, RefusesATruncatedFile) {
  const Folder folder;
  Model(model_config(model_configs()[3].second), 3).save(folder.path());
  const auto file = folder.path() / "model.safetensors";
  const std::string whole = read_file(file);
  for (const size_t size : {size_t{0}, size_t{7}, size_t{100}, whole.size() - 1}) {
    write_file(file, std::string_view(whole).substr(0, size));
    EXPECT_THAT(error_of([&] { Model::load(folder.path()); }), HasSubstr("model.safetensors"));
  }
  std::filesystem::remove(file);
  EXPECT_THAT(error_of([&] { Model::load(folder.path()); }), HasSubstr("safetensors"));
  EXPECT_THAT(error_of([&] { Model::load(folder.path() / "absent"); }), HasSubstr("absent"));
}

TEST(Checkpoint, SavesAndLoadsEveryKindOfModel) {
  for (const auto& [name, body] : model_configs()) {
    const Folder folder;
    const Model model(model_config(body), 4);
    model.save(folder.path());
    const auto again = Model::load(folder.path(), Purpose::training);
    EXPECT_EQ(again->fingerprint(), model.fingerprint()) << name;
    ASSERT_EQ(again->parameters().size(), model.parameters().size()) << name;
    for (size_t p = 0; p < model.parameters().size(); ++p) {
      EXPECT_EQ(testing_support::bit_difference(again->parameters()[p].value.values(),
                                                model.parameters()[p].value.values()),
                "")
          << name << " " << model.parameters()[p].name;
    }
  }
}

}  // namespace
}  // namespace pronghorn
