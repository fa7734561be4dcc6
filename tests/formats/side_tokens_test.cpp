// Tokens that files beside tokenizer.json name, and matching of added tokens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/files.h"
#include "formats/added_tokens.h"
#include "formats/json.h"
#include "formats/tokenizer.h"
#include "support/folder.h"

namespace pronghorn {
namespace {

using nlohmann::json;
using testing_support::Folder;
using Ids = std::vector<int32_t>;

class SideTokensTest : public testing::Test {
 protected:
  SideTokensTest() {
    json vocab = json::object();
    for (const char* token : {"h", "e", "l", "o", "<", "|", "x", ">", "he", "hello"}) {
      vocab[token] = vocab.size();
    }
    const json model = {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"h e"}}};
    write_file(folder_ / "tokenizer.json", json{{"model", model}}.dump());
  }
  std::unique_ptr<Tokenizer> load(const json& config, const json& map = {},
                                  const json& added = {}) {
    write_file(folder_ / "tokenizer_config.json", config.dump());
    const auto put = [&](const char* name, const json& value) {
      std::filesystem::remove(folder_ / name);
      if (!value.is_null()) write_file(folder_ / name, value.dump());
    };
    put("special_tokens_map.json", map);
    put("added_tokens.json", added);
    return load_tokenizer(folder_);
  }
  Folder folder_;
};

TEST_F(SideTokensTest, Named) {
  // The number of ids is 10; "hello" is one of them, so it keeps its id.
  auto tokenizer = load({{"eos_token", "hello"}, {"bos_token", {{"content", "<|x|>"}}}});
  EXPECT_EQ(tokenizer->eos(), 9);
  EXPECT_EQ(tokenizer->bos(), 10);
  EXPECT_EQ(tokenizer->vocab_size(), 11);
  EXPECT_EQ(tokenizer->encode("<|x|>hello"), (Ids{10, 9}));
  EXPECT_TRUE(tokenizer->is_special(9) && tokenizer->is_added(9));
  EXPECT_EQ(tokenizer->find_token("<|x|>"), 10);
  EXPECT_EQ(tokenizer->find_token("he"), 8);
  EXPECT_EQ(tokenizer->find_token("nothing"), std::nullopt);

  tokenizer =
      load(json::object(), {{"eos_token", "<|x|>"}, {"additional_special_tokens", {"<x>"}}});
  EXPECT_EQ(tokenizer->encode("<|x|><x>"),
            (Ids{*tokenizer->find_token("<|x|>"), *tokenizer->find_token("<x>")}));
  EXPECT_EQ(tokenizer->eos(), tokenizer->find_token("<|x|>"));

  tokenizer = load({{"eos_token", "<|x|>"}}, {}, {{"<|x|>", 12}, {"<x>", 13}});
  EXPECT_EQ(tokenizer->encode("<|x|><x>"), (Ids{12, 13}));
  EXPECT_TRUE(tokenizer->is_special(12) && !tokenizer->is_special(13));
  EXPECT_EQ(tokenizer->token_bytes(11), "");  // a hole

  // The map is not read where the configuration lists its tokens.
  tokenizer = load({{"added_tokens_decoder", {{"10", {{"content", "<x>"}, {"special", true}}}}}},
                   {{"eos_token", "<|x|>"}});
  EXPECT_EQ(tokenizer->eos(), std::nullopt);
  EXPECT_EQ(tokenizer->encode("<x>"), (Ids{10}));
}

TEST_F(SideTokensTest, AddBosAndEosOfTheConfiguration) {
  json config = {{"bos_token", "<x>"},
                 {"eos_token", "<|x|>"},
                 {"add_bos_token", true},
                 {"add_eos_token", true}};
  EXPECT_EQ(load(config)->encode("he"), (Ids{10, 8, 11}));
  config["add_bos_token"] = false;
  EXPECT_EQ(load(config)->encode("he"), (Ids{8, 11}));
  EXPECT_EQ(load(config)->encode("he", {.add_special = false}), (Ids{8}));
}

TEST(AddedTokensTest, LongestFromTheLeft) {
  const AddedTokenMatcher matcher(
      {{.id = 1, .content = "ab"},
       {.id = 2, .content = "abc", .special = true},
       {.id = 3, .content = "cd", .single_word = true},
       {.id = 4, .content = "x", .left_strip = true, .right_strip = true}});
  const auto ids = [&](std::string_view text, bool special = true) {
    Ids found;
    for (const TextPart& part : matcher.split(text, special)) found.push_back(part.id);
    return found;
  };
  EXPECT_EQ(ids("abcd"), (Ids{2, -1}));
  EXPECT_EQ(ids("abcd", false), (Ids{-1}));  // a match that does not count hides what lies in it
  EXPECT_EQ(ids("ab cd"), (Ids{1, -1, 3}));
  EXPECT_EQ(ids("\xC3\xA4"
                "cd cd\xE2\x80\x8D"),
            (Ids{-1}));  // inside words
  EXPECT_EQ(ids("cd."), (Ids{3, -1}));
  // Spaces of Unicode on both sides belong to the token.
  EXPECT_EQ(ids("\xC2\xA0\xE3\x80\x80x\xC2\x85\t"), (Ids{4}));
  EXPECT_EQ(ids("\xE2\x80\x8Bx"), (Ids{-1, 4}));
}

}  // namespace
}  // namespace pronghorn
