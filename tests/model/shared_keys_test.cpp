// Layers that read the keys and values of earlier ones (layers/shared_keys.h): what they lack, what
// they cost, which configurations are refused. The laws and gradients of such models are checked
// with those of all others, the operator against its float64 form in tests/laws.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/model.h"
#include "support/errors.h"
#include "support/model_runs.h"
#include "support/steps.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::error_of;
using testing_support::model_config;
using testing_support::random_tokens;

std::string attention(const std::string& more) {
  return R"({"type": "attention", "heads": 2, "rope": {}, )" + more + "}";
}

std::string two_blocks(const std::string& pattern, const std::string& a, const std::string& b) {
  return R"("pattern": ")" + pattern + R"(", "blocks": {"a": {"mixer": )" + attention(a) +
         R"(}, "b": {"mixer": )" + attention(b) + "}}";
}

TEST(SharedKeys, ABorrowerHasNoProjectionsOfKeysAndNoState) {
  const Model model(model_config(two_blocks("a2b", R"("keys_to": 1)", R"("keys_from": 1)")), 1);
  std::vector<std::string> names;
  for (const Parameter& parameter : model.parameters()) names.push_back(parameter.name);
  EXPECT_THAT(names, testing::Contains("layers.0.mixer.k_proj.weight"));
  for (const char* layer : {"1", "2"}) {
    const std::string mixer = std::string("layers.") + layer + ".mixer.";
    EXPECT_THAT(names, testing::Contains(mixer + "q_proj.weight"));
    for (const char* part : {"k_proj.weight", "v_proj.weight"}) {
      EXPECT_THAT(names, testing::Not(testing::Contains(mixer + part)));
    }
  }
  const Model alone(model_config(two_blocks("ab", R"("keys_to": 1)", R"("keys_from": 1)")), 1);
  EXPECT_EQ(model.predicted_state_bytes(300), alone.predicted_state_bytes(300));
  EXPECT_GT(model.cost(300).sequence, alone.cost(300).sequence);
}

// Zero queries weigh all keys alike: the borrower's answer is the mean of the lender's values.
TEST(SharedKeys, ABorrowerReadsTheNearestLender) {
  const Model model(model_config(two_blocks("aab", R"("keys_to": 1)", R"("keys_from": 1)")), 2);
  const auto parameter = [&](const std::string& name) -> const Parameter& {
    return *std::ranges::find(model.parameters(), name, &Parameter::name);
  };
  const auto fill = [&](const std::string& name, float value) {
    parameter(name).value.fill(value);
    parameter(name).value.bump_version();
  };
  fill("layers.2.mixer.q_proj.weight", 0);
  const auto tokens = random_tokens(40, 61, 3);
  const auto last = [&] {
    const Tensor hidden = model.forward({}, fresh_segments(tokens, 40));
    return std::vector<float>(hidden.values().begin(), hidden.values().end());
  };
  // The first layer adds nothing to the stream, so its values could only be seen by the borrower.
  fill("layers.0.mixer.o_proj.weight", 0);
  const std::vector<float> before = last();
  fill("layers.0.mixer.v_proj.weight", 1);
  EXPECT_EQ(last(), before);
  fill("layers.1.mixer.o_proj.weight", 0);
  const std::vector<float> between = last();
  fill("layers.1.mixer.v_proj.weight", 1);
  EXPECT_NE(last(), between);
}

// A window drops old rows only when all layers that read them are done, and does drop them.
TEST(SharedKeys, AWindowIsDroppedAtTheEndOfAForward) {
  const Model model(model_config(two_blocks("a2b", R"("window": 9, "keys_to": 1)",
                                            R"("window": 9, "keys_from": 1)")),
                    3);
  SequenceState state = model.new_state();
  testing_support::decode(model, state, random_tokens(1000, 61, 4), std::vector<int64_t>{700, 300});
  const Journal& journal = state.journal(0, 0);
  EXPECT_EQ(journal.length(), 1000);
  EXPECT_GE(journal.first_row(), 1000 - 3 * Journal::kPageRows);
  EXPECT_EQ(state.bytes(), model.predicted_state_bytes(1000));
}

TEST(SharedKeys, RefusesWhatCannotBeShared) {
  const auto refused = [](const std::string& body, const char* what) {
    EXPECT_THAT(error_of([&] { model_config(body); }), HasSubstr(what)) << body;
  };
  refused(two_blocks("ab", R"("keys_to": 2)", R"("keys_from": 1)"), "no layer before it");
  refused(two_blocks("ba", R"("keys_to": 1)", R"("keys_from": 1)"), "no layer before it");
  refused(two_blocks("ab", R"("keys_to": 1)", R"("keys_from": 1, "keys_to": 2)"), "lent on");
  refused(two_blocks("ab", R"("keys_to": 1, "window": 8)", R"("keys_from": 1)"), "window");
  refused(two_blocks("ab", R"("keys_to": 1, "kv_heads": 1)", R"("keys_from": 1)"), "kv_heads");
  refused(two_blocks("ab", R"("keys_to": 1, "head_dim": 8)", R"("keys_from": 1)"), "head_dim");
  refused(R"("subsample": {"keep": 0.5}, )" +
              two_blocks("a(b)", R"("keys_to": 1)", R"("keys_from": 1)"),
          "same span");
  refused(R"("subsample": {"keep": 0.5}, )" +
              two_blocks("(a)b", R"("keys_to": 1)", R"("keys_from": 1)"),
          "no layer before it");
  refused(R"("mtp": {"heads": 1}, )" + two_blocks("ab", R"("keys_to": 1)", R"("keys_from": 1)"),
          "multi-token");
  refused(R"("pattern": "s", "blocks": {"s": {"mixer": {"type": "attention", "heads": 2}, "side":
          {"mixer": {"type": "attention", "heads": 2, "keys_to": 1}, "ffn": {"type": "swiglu",
          "size": 8}}}})",
          "mixers of blocks only");
}

TEST(SharedKeys, SurviveAConfigurationFile) {
  const ModelConfig config =
      model_config(two_blocks("a2b", R"("keys_to": 3)", R"("keys_from": 3)"));
  const nlohmann::json json = write_pronghorn_config(config);
  EXPECT_EQ(json.at("blocks").at("b").at("mixer").at("keys_from"), 3);
  EXPECT_EQ(write_pronghorn_config(read_pronghorn_config(ConfigReader(json, "again"))), json);
}

}  // namespace
}  // namespace pronghorn
