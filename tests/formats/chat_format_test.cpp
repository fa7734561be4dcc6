// What checkpoints say about chats and the ends of texts, wherever they say it.
#include "formats/chat_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/files.h"
#include "formats/gguf.h"
#include "support/chat_model.h"
#include "support/errors.h"
#include "support/folder.h"

namespace pronghorn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using namespace testing_support;

constexpr std::string_view kMessages = R"({"messages": ["a"]})";

class ChatFormatTest : public testing::Test {
 protected:
  ChatFormatTest() { write_chat_tokenizer(folder_.path()); }

  void put(const char* name, std::string_view text) { write_file(folder_.path() / name, text); }
  ChatFormat load() const { return ChatFormat::load(folder_.path()); }
  std::vector<int32_t> ends(int64_t vocabulary = kChatVocabulary) const {
    return load().end_tokens(*load_tokenizer(folder_.path()), vocabulary);
  }
  std::string render(std::string_view variables = kMessages) const {
    return load().render(nlohmann::ordered_json::parse(variables));
  }

  const Folder folder_;
};

TEST_F(ChatFormatTest, EndTokensAreTakenFromEveryFile) {
  put("tokenizer_config.json", "{}");
  EXPECT_THAT(ends(), ElementsAre());
  put("config.json", R"({"eos_token_id": 5})");
  EXPECT_THAT(ends(), ElementsAre(5));
  put("config.json", R"({"eos_token_id": [5, 6], "text_config": {"eos_token_id": 9}})");
  EXPECT_THAT(ends(), ElementsAre(5, 6, 9));
  put("config.json", R"({"eos_token_id": null})");
  put("generation_config.json", R"({"eos_token_id": [256, 257]})");
  EXPECT_THAT(ends(), ElementsAre(256, 257));
  put("generation_config.json", R"({"eos_token_id": 257})");
  put("config.json", R"({"eos_token_id": 7})");
  EXPECT_THAT(ends(), ElementsAre(7, 257));
  put("tokenizer_config.json", R"({"eos_token": {"content": "<|text_end|>", "lstrip": false}})");
  EXPECT_THAT(ends(), ElementsAre(7, 257, 258));
  put("tokenizer_config.json", R"({"eos_token": "<|text_end|>", "eot_token": "<|end|>"})");
  put("generation_config.json", "{}");
  put("config.json", "{}");
  EXPECT_THAT(ends(), ElementsAre(257, 258));
  put("tokenizer_config.json", "{}");
  put("special_tokens_map.json", R"({"eos_token": "<|text_end|>", "unk_token": "<|end|>"})");
  EXPECT_THAT(ends(), ElementsAre(258));
}

TEST_F(ChatFormatTest, OddEndTokensAreLeftOut) {
  put("tokenizer_config.json", R"({"eos_token": "no such token"})");
  put("generation_config.json", R"({"eos_token_id": [-1, 300, 2.5, "x", null, 3]})");
  // A name that no vocabulary has becomes a token after the others, as in the reference.
  EXPECT_THAT(ends(), ElementsAre(3, 259));
  EXPECT_THAT(ends(400), ElementsAre(3, 259, 300));  // in the padded part of a vocabulary
}

TEST_F(ChatFormatTest, MalformedFilesAreNamed) {
  put("generation_config.json", "{");
  EXPECT_THAT(error_of([&] { load(); }), HasSubstr("generation_config.json"));
  put("generation_config.json", "[]");
  EXPECT_THAT(error_of([&] { load(); }), HasSubstr("must be an object"));
  put("generation_config.json", "{}");
  put("tokenizer_config.json", R"({"chat_template": 7})");
  EXPECT_THAT(error_of([&] { load(); }), HasSubstr("chat_template"));
}

TEST_F(ChatFormatTest, TheTemplateMayStandInSeveralPlaces) {
  put("tokenizer_config.json", "{}");
  EXPECT_FALSE(load().has_template());
  EXPECT_THAT(error_of([&] { render(); }), HasSubstr("has no chat template"));
  put("chat_template.json", R"({"chat_template": "json {{ messages }}"})");
  EXPECT_EQ(render(), "json ['a']");
  put("tokenizer_config.json", R"({"chat_template": "config {{ messages }}"})");
  EXPECT_EQ(render(), "config ['a']");
  put("chat_template.jinja", "jinja {{ messages }}");
  EXPECT_EQ(render(), "jinja ['a']");
}

TEST_F(ChatFormatTest, OfSeveralTemplatesTheFittingOneIsTaken) {
  put("tokenizer_config.json",
      R"({"chat_template": [{"name": "default", "template": "plain"},
                            {"name": "tool_use", "template": "tools"}]})");
  EXPECT_EQ(render(R"({"messages": []})"), "plain");
  EXPECT_EQ(render(R"({"tools": [1]})"), "tools");
  EXPECT_EQ(render(R"({"tools": null})"), "plain");
  EXPECT_EQ(render(R"({"tools": []})"), "plain");
}

TEST_F(ChatFormatTest, NamesOfSpecialTokensAreVariables) {
  put("tokenizer_config.json",
      R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null,
          "additional_special_tokens": ["<a>", {"content": "<b>"}],
          "chat_template": "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ additional_special_tokens }}"})");
  EXPECT_EQ(render(), "<s></s>False['<a>', '<b>']");
  EXPECT_EQ(render(R"({"bos_token": "mine"})"), "mine</s>False['<a>', '<b>']");
}

TEST_F(ChatFormatTest, ATemplateThatDoesNotParseHurtsOnlyWhoWantsIt) {
  put("chat_template.jinja", "\n{% endfor %}");
  const ChatFormat format = load();
  EXPECT_TRUE(format.has_template());
  EXPECT_THROW(format.check_template(), JinjaError);
  EXPECT_THAT(error_of([&] { format.render(nlohmann::ordered_json::parse(kMessages)); }),
              HasSubstr("chat_template.jinja: line 2"));
}

TEST_F(ChatFormatTest, AFileOfItsOwnIsATemplate) {
  put("x.jinja", "{{ messages[0] }}");
  EXPECT_EQ(
      ChatFormat::load(folder_.path() / "x.jinja").render(nlohmann::ordered_json::parse(kMessages)),
      "a");
}

TEST_F(ChatFormatTest, GgufNamesThemInItsMetadata) {
  GgufMetadata metadata("test");
  const std::vector<std::string> tokens = {"<unk>", "<s>", "</s>", "<end>", "<eom>"};
  metadata.set("general.architecture", GgufValue::text("llama"));
  metadata.set("tokenizer.ggml.tokens", GgufValue::texts(tokens));
  metadata.set("tokenizer.ggml.bos_token_id", GgufValue::u32(1));
  metadata.set("tokenizer.ggml.eos_token_id", GgufValue::u32(2));
  metadata.set("tokenizer.ggml.eot_token_id", GgufValue::u32(3));
  metadata.set("tokenizer.ggml.eom_token_id", GgufValue::u32(4));
  metadata.set("tokenizer.ggml.unknown_token_id", GgufValue::u32(0));
  metadata.set("tokenizer.chat_template",
               GgufValue::text("{{ bos_token }}{{ eos_token }}{{ unk_token }}"));
  metadata.set("tokenizer.chat_template.tool_use", GgufValue::text("tools"));
  const auto path = folder_.path() / "model.gguf";
  write_gguf(path, metadata, {});
  const ChatFormat format = ChatFormat::load(path);
  EXPECT_EQ(format.render(nlohmann::ordered_json::parse(kMessages)), "<s></s><unk>");
  EXPECT_EQ(format.render(nlohmann::ordered_json::parse(R"({"tools": [1]})")), "tools");
  EXPECT_THAT(format.end_tokens(*make_byte_tokenizer(), 5), ElementsAre(2, 3, 4));
}

TEST_F(ChatFormatTest, TemplatesAreWrittenAsTheyWereRead) {
  put("tokenizer_config.json", "{}");
  put("chat_template.json",
      R"({"chat_template": [{"name": "default", "template": "plain"},
                            {"name": "tool_use", "template": "tools"},
                            {"name": "broken", "template": "{% endfor %}"}]})");
  const ChatFormat format = load();
  const Folder other;
  format.save(other.path());
  GgufMetadata metadata("test");
  metadata.set("general.architecture", GgufValue::text("llama"));
  metadata.set("tokenizer.ggml.tokens", GgufValue::texts(std::vector<std::string>{"a"}));
  format.write(metadata);
  EXPECT_EQ(metadata.text("tokenizer.chat_template.broken"), "{% endfor %}");
  std::filesystem::create_directory(other.path() / "g");
  write_gguf(other.path() / "g" / "model.gguf", metadata, {});
  for (const auto& path : {other.path(), other.path() / "g" / "model.gguf"}) {
    const ChatFormat again = ChatFormat::load(path);
    EXPECT_EQ(again.render(nlohmann::ordered_json::parse(R"({"tools": [1]})")), "tools") << path;
    EXPECT_EQ(again.render(nlohmann::ordered_json::parse(kMessages)), "plain") << path;
  }
  put("chat_template.json", R"({"chat_template": {"../escape": "x"}})");
  EXPECT_THAT(error_of([&] { load().save(other.path()); }), HasSubstr("no name"));
}

}  // namespace
}  // namespace pronghorn
