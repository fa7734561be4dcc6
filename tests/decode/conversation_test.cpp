// Conversations: what the model has read is what its template makes of the messages.
#include "decode/conversation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "support/chat_model.h"
#include "support/folder.h"
#include "support/tiny_models.h"

namespace pronghorn {
namespace {

using nlohmann::ordered_json;
using testing::HasSubstr;
using namespace testing_support;

ModelConfig chat_config(const std::string& name) {
  const auto found =
      std::ranges::find(model_configs(), name, &std::pair<std::string, std::string>::first);
  ModelConfig config = model_config(found->second);
  config.vocab_size = kChatVocabulary;
  return config;
}

// A random model writes anything: bytes that are no UTF-8, special tokens in the middle. Such
// answers do not come back from their text, so the conversation must go back in its state.
class ConversationTest : public testing::TestWithParam<const char*> {
 protected:
  ConversationTest() {
    write_chat_tokenizer(folder_.path());
    tokenizer_ = load_tokenizer(folder_.path());
    format_ = ChatFormat::load(folder_.path());
  }

  static GenerateOptions options(int64_t tokens = 12, uint64_t seed = 3) {
    GenerateOptions result;
    result.max_tokens = tokens;
    result.sampling.temperature = 1;
    result.sampling.seed = seed;
    return result;
  }

  std::vector<int32_t> tokens_of(const ordered_json& messages, bool prompt) const {
    return tokenizer_->encode(
        format_.render({{"messages", messages}, {"add_generation_prompt", prompt}}),
        {.add_special = false});
  }

  const Folder folder_;
  const Model model_{chat_config(GetParam()), 31};
  std::unique_ptr<Tokenizer> tokenizer_;
  ChatFormat format_;
};

TEST_P(ConversationTest, TheModelReadsWhatTheTemplateWrites) {
  Conversation chat(model_, *tokenizer_, format_);
  chat.set_system("Be good.");
  for (const char* message : {"Hello", "Grüße 🙂", "again\nand again", "4", "five"}) {
    ordered_json before = chat.messages();
    before.push_back({{"role", "user"}, {"content", message}});
    const Generated answer = chat.answer(message, options());
    std::vector<int32_t> wanted = tokens_of(before, true);
    wanted.insert(wanted.end(), answer.ids.begin(), answer.ids.end());
    EXPECT_EQ(chat.tokens(), wanted) << message;
    EXPECT_EQ(chat.session().length(), static_cast<int64_t>(wanted.size()));
    EXPECT_EQ(chat.messages().back()["content"], answer.text);
    EXPECT_EQ(chat.messages().size(), before.size() + 1);

    // The same as one prompt.
    Session session(model_);
    std::vector<int32_t> prompt(wanted.begin(),
                                wanted.end() - static_cast<int64_t>(answer.ids.size()));
    GenerateOptions same = options();
    same.end_tokens = {kChatEnd, kChatTextEnd};
    EXPECT_EQ(generate(model_, *tokenizer_, session, prompt, same).ids, answer.ids) << message;
  }
}

TEST_P(ConversationTest, ASavedOneGoesOnAsIfNeverStopped) {
  Conversation whole(model_, *tokenizer_, format_), first(model_, *tokenizer_, format_);
  whole.answer("Hello", options());
  first.answer("Hello", options());
  first.save(folder_.path() / "chat");
  Conversation second(model_, *tokenizer_, format_);
  second.load(folder_.path() / "chat");
  EXPECT_EQ(second.messages(), whole.messages());
  EXPECT_EQ(second.tokens(), whole.tokens());
  EXPECT_EQ(second.answer("more", options()).ids, whole.answer("more", options()).ids);
  EXPECT_EQ(second.tokens(), whole.tokens());
}

TEST_P(ConversationTest, AnswersCanBeGivenAgain) {
  Conversation chat(model_, *tokenizer_, format_);
  EXPECT_THROW(chat.regenerate(options()), Error);
  chat.answer("one", options());
  const Generated first = chat.answer("two", options());
  const ordered_json messages = chat.messages();
  const Generated other = chat.regenerate(options(12, 4));
  EXPECT_NE(other.ids, first.ids);
  EXPECT_EQ(chat.messages().size(), messages.size());
  EXPECT_EQ(chat.regenerate(options()).ids, first.ids);
  EXPECT_EQ(chat.messages(), messages);
}

TEST_P(ConversationTest, BeginsAgain) {
  Conversation chat(model_, *tokenizer_, format_);
  chat.set_system("one");
  const Generated first = chat.answer("Hello", options());
  chat.answer("more", options());
  chat.reset();
  EXPECT_EQ(chat.messages().size(), 1u);
  EXPECT_EQ(chat.answer("Hello", options()).ids, first.ids);
  chat.set_system("two");
  EXPECT_EQ(chat.messages()[0]["content"], "two");
  EXPECT_EQ(chat.messages().size(), 3u);
  chat.set_system("");
  EXPECT_EQ(chat.messages().size(), 2u);
}

TEST_P(ConversationTest, AnInterruptedAnswerStays) {
  Conversation chat(model_, *tokenizer_, format_);
  int asked = 0;
  GenerateOptions endless = options(50);
  endless.stop_at_eos = false;
  const Generated answer = chat.answer("Hello", endless, {}, [&] { return ++asked > 6; });
  EXPECT_EQ(answer.end, Generated::End::interrupted);
  EXPECT_LT(answer.tokens, 50);
  EXPECT_EQ(chat.messages().size(), 2u);
  // Before the first token: as if nothing had been said.
  const Generated none = chat.answer("more", options(50), {}, [] { return true; });
  EXPECT_EQ(none.end, Generated::End::interrupted);
  EXPECT_EQ(none.tokens, 0);
  EXPECT_EQ(chat.messages().size(), 2u);
  EXPECT_GT(chat.answer("more", options()).tokens, 0);
  EXPECT_EQ(chat.messages().size(), 4u);
}

TEST_P(ConversationTest, RefusesWhatIsNoConversation) {
  Conversation chat(model_, *tokenizer_, format_);
  Session session(model_);
  session.append(tokenizer_->encode("text"));
  session.save(folder_.path() / "plain");
  EXPECT_THROW(chat.load(folder_.path() / "plain"), Error);
  for (const char* attachment :
       {"{", "[]", "{}", R"({"messages": [], "tokens": [1]})",
        R"({"messages": [{"role": 1, "content": ""}], "tokens": [116, 101, 120, 116]})",
        R"({"messages": [{"role": "user"}], "tokens": [116, 101, 120, 116]})",
        R"({"messages": [], "tokens": [116, 101, 120, 999]})",
        R"({"messages": [], "tokens": [116, 101, 120, 117]})"}) {
    session.set_attachment(attachment);
    session.save(folder_.path() / "forged");
    EXPECT_THROW(chat.load(folder_.path() / "forged"), Error) << attachment;
  }
  session.set_attachment(R"({"messages": [], "tokens": [116, 101, 120, 116]})");
  session.save(folder_.path() / "right");
  EXPECT_NO_THROW(chat.load(folder_.path() / "right"));
}

INSTANTIATE_TEST_SUITE_P(Models, ConversationTest,
                         testing::Values("transformer", "window", "mamba2", "hybrid"),
                         [](const auto& test) { return std::string(test.param); });

// One model for what does not depend on it.
class ChatTemplates : public ConversationTest {};

TEST_P(ChatTemplates, EndAnswersWithTheTokenBehindThem) {
  Conversation chat(model_, *tokenizer_, format_);
  // <|end|> is named nowhere but in the template.
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const Generated answer = chat.answer("x", options(400, seed));
    for (size_t i = 0; i + 1 < answer.ids.size(); ++i) {
      EXPECT_NE(answer.ids[i], kChatEnd);
      EXPECT_NE(answer.ids[i], kChatTextEnd);
    }
    if (answer.end == Generated::End::end_token && answer.ids.back() == kChatEnd) return;
    chat.reset();
  }
  FAIL() << "no answer ended";
}

TEST_P(ChatTemplates, ThatRefuseLeaveTheConversationAsItWas) {
  write_file(folder_.path() / "chat_template.jinja",
             "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('not that') }}"
             "{% endif %}{{ m.content }}<|end|>{% endfor %}");
  const ChatFormat format = ChatFormat::load(folder_.path());
  Conversation chat(model_, *tokenizer_, format);
  chat.answer("good", options());
  const ordered_json messages = chat.messages();
  EXPECT_THROW(chat.answer("bad", options()), JinjaError);
  EXPECT_EQ(chat.messages(), messages);
  EXPECT_GT(chat.answer("better", options()).tokens, 0);
}

// As templates of models that think do with what was thought.
TEST_P(ChatTemplates, ThatRewriteTheHistoryAreFollowed) {
  write_file(folder_.path() / "chat_template.jinja",
             "{% for m in messages %}<|start|>{{ m.role }}:{% if m.role == 'assistant' and not "
             "loop.last %}{{ m.content[4:] }}{% else %}{{ m.content }}{% endif %}<|end|>"
             "{% endfor %}<|start|>assistant:");
  const ChatFormat format = ChatFormat::load(folder_.path());
  Conversation chat(model_, *tokenizer_, format);
  for (const char* message : {"one", "two", "three"}) {
    ordered_json before = chat.messages();
    before.push_back({{"role", "user"}, {"content", message}});
    const Generated answer = chat.answer(message, options(20));
    std::vector<int32_t> wanted =
        tokenizer_->encode(format.render({{"messages", before}, {"add_generation_prompt", true}}),
                           {.add_special = false});
    wanted.insert(wanted.end(), answer.ids.begin(), answer.ids.end());
    EXPECT_EQ(chat.tokens(), wanted);
  }
}

TEST_P(ChatTemplates, AreNeeded) {
  write_file(folder_.path() / "tokenizer_config.json", R"({"eos_token": "<|text_end|>"})");
  const ChatFormat none = ChatFormat::load(folder_.path());
  EXPECT_FALSE(none.has_template());
  EXPECT_THROW(Conversation(model_, *tokenizer_, none), Error);
  write_file(folder_.path() / "chat_template.jinja", "{% if %}");
  const ChatFormat broken = ChatFormat::load(folder_.path());
  EXPECT_TRUE(broken.has_template());
  EXPECT_THROW(Conversation(model_, *tokenizer_, broken), JinjaError);
}

INSTANTIATE_TEST_SUITE_P(One, ChatTemplates, testing::Values("mamba2"));

}  // namespace
}  // namespace pronghorn
