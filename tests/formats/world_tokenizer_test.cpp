// The World tokenizer of RWKV: ids of its authors' program, and every way to write the file
// wrongly.
#include "formats/world_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/files.h"
#include "formats/gguf_tokenizer.h"
#include "formats/gguf_vocabulary.h"
#include "formats/json.h"
#include "support/errors.h"
#include "support/folder.h"

namespace pronghorn {
namespace {

namespace fs = std::filesystem;

using nlohmann::json;
using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;
using Ids = std::vector<int32_t>;

const fs::path kGolden = fs::path(PRONGHORN_SOURCE_DIR) / "tests/formats/golden/world";

TEST(WorldTokenizerTest, AgreesWithTheAuthors) {
  const auto tokenizer = load_tokenizer(kGolden);
  for (const json& item : parse_json(read_file(kGolden / "cases.json"), "cases.json")) {
    const auto text = item["text"].get<std::string>();
    const auto ids = item["ids"].get<Ids>();
    EXPECT_EQ(tokenizer->encode(text), ids) << text;
    EXPECT_EQ(tokenizer->decode(ids), text);
  }
  EXPECT_EQ(tokenizer->eos(), 0);
  EXPECT_EQ(tokenizer->bos(), std::nullopt);
  EXPECT_TRUE(tokenizer->is_special(0));
  EXPECT_EQ(tokenizer->encode("<|endoftext|>"), Ids{0});
  EXPECT_EQ(tokenizer->token_bytes(0), "");
  EXPECT_EQ(tokenizer->token_bytes(0, true), "<|endoftext|>");
}

TEST(WorldTokenizerTest, AnyBytes) {
  const auto tokenizer = load_tokenizer(kGolden);
  std::string bytes;
  for (int i = 0; i < 1024; ++i) bytes += static_cast<char>(i * 37 % 256);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(bytes)), bytes);
}

// What the directories of Hugging Face and flash-linear-attention say beside it.
TEST(WorldTokenizerTest, NamesOfTokens) {
  Folder folder;
  fs::copy_file(kGolden / kWorldFile, folder.path() / kWorldFile);
  const std::string end = "<|rwkv_tokenizer_end_of_text|>";
  const auto write = [&](const char* name, const json& content) {
    write_file(folder.path() / name, content.dump());
  };
  const json names = {{"tokenizer_class", "RwkvTokenizer"},
                      {"bos_token", end},
                      {"eos_token", end},
                      {"unk_token", end},
                      {"add_bos_token", false}};
  write("tokenizer_config.json", names);
  for (const bool listed : {false, true}) {
    if (listed) write("added_tokens.json", {{end, 0}});
    const auto tokenizer = load_tokenizer(folder);
    EXPECT_EQ(tokenizer->bos(), 0);
    EXPECT_EQ(tokenizer->eos(), 0);
    EXPECT_EQ(tokenizer->find_token(end), 0);
    EXPECT_EQ(tokenizer->encode(end + "a"), (Ids{0, 98}));
    EXPECT_EQ(tokenizer->encode("a", {.add_special = true}), Ids{98});
  }
  json changed = names;
  changed["add_bos_token"] = true;
  changed["added_tokens_decoder"] = {{"0", {{"content", end}, {"special", true}}},
                                     {"65530", {{"content", "<|im_start|>"}, {"special", true}}}};
  write("tokenizer_config.json", changed);
  const auto tokenizer = load_tokenizer(folder);
  EXPECT_EQ(tokenizer->encode("<|im_start|>a"), (Ids{0, 65530, 98}));
  EXPECT_EQ(tokenizer->encode("<|im_start|>a", {.add_special = false, .parse_special = false})[0],
            '<' + 1);
  EXPECT_EQ(tokenizer->decode(Ids{65530, 98}, true), "<|im_start|>a");
  EXPECT_EQ(tokenizer->vocab_size(), 65531);

  changed["added_tokens_decoder"]["0"]["lstrip"] = true;
  write("tokenizer_config.json", changed);
  EXPECT_THAT(error_of([&] { load_tokenizer(folder); }), HasSubstr("lstrip"));
  changed = names;
  changed["additional_special_tokens"] = {"<|new|>"};
  write("tokenizer_config.json", changed);
  EXPECT_THAT(error_of([&] { load_tokenizer(folder); }), HasSubstr("'<|new|>' has no id"));
}

TEST(WorldTokenizerTest, GgufAndBack) {
  const auto original = load_tokenizer(kGolden);
  const int64_t size = original->vocab_size() + 5;
  GgufMetadata metadata("test.gguf");
  add_gguf_vocabulary(original->files(), size, metadata);
  const GgufVocabulary vocabulary = read_gguf_vocabulary(metadata);
  EXPECT_EQ(vocabulary.model, "rwkv");
  ASSERT_EQ(vocabulary.tokens.size(), static_cast<size_t>(size));
  EXPECT_EQ(vocabulary.tokens[0], "<|endoftext|>");
  EXPECT_EQ(vocabulary.tokens[1], R"(\x00)");
  EXPECT_EQ(vocabulary.tokens[11], R"(\n)");
  EXPECT_EQ(vocabulary.tokens['\'' + 1], "'");
  EXPECT_EQ(vocabulary.tokens['\\' + 1], R"(\\)");
  EXPECT_EQ(vocabulary.tokens[256], R"(\xff)");
  EXPECT_EQ(metadata.integer("tokenizer.ggml.eot_token_id", -1),
            original->find_token("\n\n").value());
  const auto read = make_gguf_tokenizer(vocabulary, "test.gguf");
  Folder folder;
  read->save(folder);
  const auto saved = load_tokenizer(folder);
  for (const json& item : parse_json(read_file(kGolden / "cases.json"), "cases.json")) {
    const auto text = item["text"].get<std::string>();
    EXPECT_EQ(read->encode(text), item["ids"].get<Ids>());
    EXPECT_EQ(saved->encode(text), item["ids"].get<Ids>());
  }
  EXPECT_EQ(saved->fingerprint(), read->fingerprint());
  EXPECT_EQ(read->eos(), 0);
  EXPECT_EQ(read->encode("<|endoftext|>"), Ids{0});
  GgufMetadata again("again.gguf");
  add_gguf_vocabulary(saved->files(), size, again);
  EXPECT_EQ(read_gguf_vocabulary(again).tokens, vocabulary.tokens);
  EXPECT_EQ(read_gguf_vocabulary(again).types, vocabulary.types);
}

// A text ends with a token of the vocabulary, and a turn with one that was added.
TEST(WorldTokenizerTest, NamesInGguf) {
  Folder folder;
  fs::copy_file(kGolden / kWorldFile, folder.path() / kWorldFile);
  const json names = {{"bos_token", "<s>"},
                      {"eos_token", "\n\n"},
                      {"add_bos_token", true},
                      {"added_tokens_decoder",
                       {{"0", {{"content", "<s>"}, {"special", true}}},
                        {"600", {{"content", "<|turn|>"}, {"special", false}}}}}};
  write_file(folder.path() / "tokenizer_config.json", names.dump());
  const auto original = load_tokenizer(folder);
  const int32_t lines = original->find_token("\n\n").value();
  EXPECT_EQ(original->eos(), lines);
  GgufMetadata metadata("test.gguf");
  add_gguf_vocabulary(original->files(), 640, metadata);
  const GgufVocabulary vocabulary = read_gguf_vocabulary(metadata);
  EXPECT_EQ(vocabulary.bos, 0);
  EXPECT_EQ(vocabulary.eos, lines);
  EXPECT_EQ(vocabulary.add_bos, true);
  EXPECT_EQ(vocabulary.types[600], GgufVocabulary::user_defined);
  const auto read = make_gguf_tokenizer(vocabulary, "test.gguf");
  EXPECT_EQ(read->eos(), lines);
  EXPECT_EQ(read->encode("a<|turn|>b"), original->encode("a<|turn|>b"));
  EXPECT_EQ(read->encode("a<|turn|>b"), (Ids{0, 98, 600, 99}));
  EXPECT_THAT(error_of([&] { add_gguf_vocabulary(original->files(), 500, metadata); }),
              HasSubstr("600"));
}

TEST(WorldTokenizerTest, Literals) {
  const std::string text =
      "1 '\\x41\\n' 2\n2 \"it's\" 4\r\n3 b'\\xff\\'\"' 3\n7 '\\u4e16\\U0001f999' 7\n8 ' ' 1";
  const WorldTokens expected = {
      "", "A\n", "it's", "\xFF'\"", "", "", "", "\xE4\xB8\x96\xF0\x9F\xA6\x99", " "};
  EXPECT_EQ(read_world_vocabulary(text, "v"), expected);
  EXPECT_EQ(read_world_vocabulary(write_world_vocabulary(expected), "v"), expected);
}

TEST(WorldTokenizerTest, Malformed) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "no tokens"},
      {"1 'a'\n", "an id, a token and its length"},
      {"x 'a' 1\n", "'x' is no number"},
      {"1 'a' 2\n", "a token of 1 bytes that says 2"},
      {"1 '' 0\n", "a token of 0 bytes"},
      {"0 'a' 1\n", "id 0"},
      {"2 'a' 1\n1 'b' 1\n", "id 1 after 2"},
      {"99999999999999999999 'a' 1\n", "is no number"},
      {"9999999 'a' 1\n", "id 9999999"},
      {"1 'a' 1\n2 \"a\" 1\n", "line 2: the token of id 2 occurs twice"},
      {"1 a 1\n", "not in quotes"},
      {"1 'a\" 1\n", "not in quotes"},
      {"1 ' 1\n", "not in quotes"},
      {"1 'a'b' 3\n", "a quote inside quotes"},
      {"1 '\\q' 1\n", "no escape"},
      {"1 '\\' 1\n", "ends in a backslash"},
      {"1 '\\x4' 1\n", "cut off"},
      {"1 '\\x4g' 1\n", "'g' is no hexadecimal digit"},
      {"1 '\\ud800' 3\n", "no character"},
      {"1 b'\\u4e16' 3\n", "no escape"},
      {"1 b'\xE4\xB8\x96' 3\n", "must be escaped"}};
  for (const auto& [text, expected] : cases) {
    EXPECT_THAT(error_of([&, text = text] { read_world_vocabulary(text, "v"); }),
                HasSubstr(expected))
        << text;
  }
  const auto tokenizer = make_world_tokenizer({"", "a"}, {}, "v", {});
  EXPECT_THAT(error_of([&] { tokenizer->encode("ab"); }), HasSubstr("no token for the byte 0x62"));
  EXPECT_THAT(error_of([&] { unescape_world_token("a\\", "v"); }), HasSubstr("backslash"));
  // What could be loaded from a GGUF file, but not once it is saved.
  GgufVocabulary vocabulary;
  vocabulary.model = "rwkv";
  vocabulary.tokens = {"<s>", "a", "\\x61"};
  EXPECT_THAT(error_of([&] { make_gguf_tokenizer(vocabulary, "test.gguf"); }),
              HasSubstr("token of id 2 occurs twice"));
}

}  // namespace
}  // namespace pronghorn
