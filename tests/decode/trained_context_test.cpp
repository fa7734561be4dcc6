// Texts that go beyond the context that a model was trained for.
#include "model/trained_context.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "decode/generator.h"
#include "decode/syllable_tokenizer.h"
#include "support/errors.h"
#include "support/model_runs.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing_support::error_of;
using testing_support::model_config;
using testing_support::SyllableTokenizer;

Model model_of(const std::string& body, int64_t tokens, int64_t original = 0) {
  ModelConfig config = model_config(body);
  config.context = {tokens, original};
  return Model(config, 1);
}

const std::string kAttention =
    R"("pattern": "a", "blocks": {"a": {"mixer": {"type": "attention", "heads": 2}}})";
const std::string kWindow =
    R"("pattern": "a", "blocks": {"a": {"mixer": {"type": "attention", "heads": 2, "window": 8}}})";
const std::string kMamba = R"("pattern": "m", "blocks": {"m": {"mixer": {"type": "mamba"}}})";

// What is said of a prompt of `prompt` tokens that is continued by `more`.
struct Said {
  std::string error, warning, text;
};
Said said_of(const Model& model, size_t prompt, int64_t more, ContextLimit limit) {
  const SyllableTokenizer tokenizer;
  Session session(model);
  GenerateOptions options;
  options.max_tokens = more;
  options.context = limit;
  options.stop_at_eos = false;
  const std::vector<int32_t> tokens(prompt, 3);
  Said said;
  testing::internal::CaptureStderr();
  said.error = error_of([&] {
    generate(model, tokenizer, session, tokens, options,
             [&](std::string_view piece) { said.text += piece; });
  });
  said.warning = testing::internal::GetCapturedStderr();
  return said;
}

TEST(TrainedContextLimit, WarnsOnceOrEnds) {
  // A warning is said once per text, so each model has a context of its own.
  const Model model = model_of(kAttention, 20);
  EXPECT_EQ(said_of(model, 10, 10, ContextLimit::warn).warning, "");
  EXPECT_EQ(said_of(model, 30, 10, ContextLimit::ignore).warning, "");
  const std::string warning = said_of(model, 10, 30, ContextLimit::warn).warning;
  EXPECT_THAT(warning, HasSubstr("20 tokens"));
  EXPECT_EQ(std::ranges::count(warning, '\n'), 1);
  EXPECT_EQ(said_of(model, 30, 10, ContextLimit::warn).warning, "");

  const Said strict = said_of(model, 21, 5, ContextLimit::error);
  EXPECT_THAT(strict.error, AllOf(HasSubstr("21 tokens"), HasSubstr("trained for 20")));
  EXPECT_EQ(strict.text, "");
  EXPECT_EQ(said_of(model, 10, 10, ContextLimit::error).error, "no error");
  // What was written before the end of the context has been given.
  const Said late = said_of(model, 10, 30, ContextLimit::error);
  EXPECT_THAT(late.error, HasSubstr("trained for 20"));
  EXPECT_NE(late.text, "");
}

TEST(TrainedContextLimit, IsNotThereWhereNobodyKnowsIt) {
  const Model model = model_of(kAttention, 0);
  EXPECT_EQ(said_of(model, 50, 50, ContextLimit::error).error, "no error");
}

TEST(TrainedContextLimit, SaysHowFarAModelMayGo) {
  EXPECT_EQ(trained_context_text(model_of(kAttention, 20)), "20 tokens");
  EXPECT_EQ(trained_context_text(model_of(kAttention, 0)), "not known");
  EXPECT_THAT(trained_context_text(model_of(kAttention, 80, 20)), HasSubstr("scaled from 20"));
  for (const std::string& body : {kWindow, kMamba}) {
    EXPECT_THAT(trained_context_text(model_of(body, 20)),
                AllOf(HasSubstr("20 tokens"), HasSubstr("does not grow")));
    EXPECT_FALSE(state_grows(model_of(body, 20)));
  }
  EXPECT_TRUE(state_grows(model_of(kAttention, 20)));
}

}  // namespace
}  // namespace pronghorn
