// Models whose experts choose tokens: with thresholds that let some pass, settings, and files that
// have no words for them.
#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "model/checkpoint.h"
#include "model/families.h"
#include "model/gguf_format.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "support/steps.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::decode;
using testing_support::equal_steps;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::model_config;
using testing_support::random_tokens;

ModelConfig config_with(const std::string& more) {
  return model_config(
      R"("pattern": "2a", "tie_embeddings": false, "blocks": {"a": {"mixer": {"type": "attention",
          "heads": 4, "kv_heads": 2, "rope": {}}, "ffn": {"type": "moe", "experts": 4, "top_k": 2,
          "size": 20, "choice": "expert")" +
      more + "}}}");
}

// Steps change no bit of a token, however many experts take it.
TEST(ExpertChoice, InferenceDoesNotDependOnWhatElseIsRead) {
  const Model model(config_with(""), 3);
  for (const Parameter& parameter : model.parameters()) {
    if (!parameter.name.ends_with("gate.threshold")) continue;
    for (int64_t e = 0; e < 4; ++e) parameter.value.data()[e] = 0.15f + 0.1f * float(e);
    parameter.value.bump_version();
  }
  constexpr int64_t kTokens = 48;
  const std::vector<int32_t> text = random_tokens(kTokens, 61, 1);
  SequenceState ones = model.new_state(), steps = model.new_state(), other = model.new_state();
  const std::vector<float> expected = decode(model, ones, text, equal_steps(kTokens, 1));
  EXPECT_EQ(bit_difference(decode(model, steps, text, equal_steps(kTokens, 16)), expected), "");
  // Each expert takes some and leaves some.
  std::vector<int64_t> taken;
  ForwardObserver observer;
  observer.on_load = [&](const ExpertLoad& load) {
    if (load.layer == 0) taken = load.rows;
  };
  model.forward({}, continue_sequence(other, text), observer);
  ASSERT_EQ(taken.size(), 4u);
  for (const int64_t rows : taken) {
    EXPECT_LT(rows, kTokens);
    EXPECT_GT(rows, 0);
  }
}

TEST(ExpertChoice, SettingsAreChecked) {
  EXPECT_THAT(error_of([] { config_with(R"(, "scores": "sigmoid", "correction": true)"); }),
              HasSubstr("correction"));
  EXPECT_THAT(error_of([] { config_with(R"(, "balance_loss": 0.1)"); }), HasSubstr("balance_loss"));
  EXPECT_THAT(error_of([] { config_with(R"(, "groups": 2)"); }), HasSubstr("groups"));
  const nlohmann::json plain = config_with("").blocks.at('a').feed_forward;
  EXPECT_EQ(plain.at("normalize"), false);
  EXPECT_EQ(config_with(R"(, "normalize": true)").blocks.at('a').feed_forward.at("normalize"),
            true);
}

// But for the choice this is a Mixtral.
TEST(ExpertChoice, NoPublishedFamilyHasIt) {
  const Model model(config_with(R"(, "normalize": true)"), 3);
  EXPECT_EQ(family_for(model.config()).model_type, "pronghorn");
  ModelConfig tokens = model.config();
  tokens.blocks.at('a').feed_forward["choice"] = "token";
  EXPECT_NE(family_for(tokens).model_type, "pronghorn");
  const Folder folder;
  EXPECT_THAT(error_of([&] { save_gguf(model, folder / "model.gguf", GgufMetadata("test")); }),
              HasSubstr("no architecture of GGUF files can express this model"));
}

}  // namespace
}  // namespace pronghorn
