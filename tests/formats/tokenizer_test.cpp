// Tokenizers against goldens of the reference library, exact round trips, and hostile files.
#include "formats/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/files.h"
#include "base/random.h"
#include "formats/hf_tokenizer.h"
#include "formats/json.h"
#include "formats/sentencepiece_tokenizer.h"
#include "formats/utf8.h"
#include "support/errors.h"
#include "support/folder.h"

namespace pronghorn {
namespace {

namespace fs = std::filesystem;

using nlohmann::json;
using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::write_fast;

const fs::path kGolden = fs::path(PRONGHORN_SOURCE_DIR) / "tests/formats/golden";

// Nothing is added, and the text of special tokens is text.
const EncodeOptions kPlain = {.add_special = false, .parse_special = false};

class TokenizerTest : public testing::Test {
 protected:
  Folder folder_;
};

// Text that tokenizers get wrong: spaces, line ends, control characters, combining marks,
// characters of every length, the symbols that tokenizers use themselves.
const std::vector<std::string> kTricky = {
    "",
    " ",
    "  \n\n \t\t x  ",
    "\r\n\r\r\n",
    std::string("a\0b", 3),
    "\x01\x7F\xC2\x80",
    "e\xCC\x81 \xC3\xA9",
    "\xE2\x96\x81 \xE2\x96\x81\xE2\x96\x81x\xE2\x96\x81",
    "<s></s><unk><0x0A><0xE2> <|end|>",
    "\xEF\xBB\xBF bom \xEF\xBF\xBD \xEF\xBF\xBF",
    "\xF0\x9F\xA6\x99\xF0\x9F\x8F\xBD\xE2\x80\x8D\xE2\x99\x82 \xF4\x8F\xBF\xBF",
    "\xE3\x80\x80\xC2\xA0\xE2\x80\x83 wide spaces",
    " \xE2\x81\x87 ",
    "\xE4\xBD\xA0\xE5\xA5\xBD\xEF\xBC\x8C\xE4\xB8\x96\xE7\x95\x8C",
};

// Random Unicode text, dense in spaces and rare characters.
std::string random_text(Random& random, int characters) {
  std::string text;
  for (int i = 0; i < characters; ++i) {
    uint32_t code = 0;
    switch (random.below(6)) {
      case 0:
        code = ' ';
        break;
      case 1:
        code = '\n';
        break;
      case 2:
      case 3:
        code = static_cast<uint32_t>('a' + random.below(26));
        break;
      case 4:
        code = static_cast<uint32_t>(random.below(0x3000));
        break;
      default:
        code = static_cast<uint32_t>(random.below(0x110000));
    }
    if (code >= 0xD800 && code < 0xE000) code = '?';
    append_utf8(code, text);
  }
  return text;
}

std::vector<std::string> training_texts() {
  const json cases = parse_json(read_file(kGolden / "gpt2/cases.json"), "cases");
  std::vector<std::string> texts;
  for (const json& item : cases) texts.push_back(item["text"]);
  return texts;
}

TEST_F(TokenizerTest, BytesRoundTripAndReload) {
  make_byte_tokenizer()->save(folder_);
  const auto tokenizer = load_tokenizer(folder_);
  EXPECT_EQ(tokenizer->vocab_size(), 256);
  EXPECT_FALSE(tokenizer->bos() || tokenizer->eos());
  for (const std::string& text : kTricky) {
    const auto ids = tokenizer->encode(text);
    EXPECT_EQ(ids.size(), text.size());
    EXPECT_EQ(tokenizer->decode(ids), text);
  }
  EXPECT_EQ(tokenizer->token_bytes(256), "");  // of a model whose vocabulary is padded
  EXPECT_THROW(tokenizer->token_bytes(-1), Error);
  EXPECT_EQ(tokenizer->fingerprint(), make_byte_tokenizer()->fingerprint());
}

TEST_F(TokenizerTest, StreamGivesWholeCharacters) {
  const auto tokenizer = make_byte_tokenizer();
  for (const std::string& text : kTricky) {
    TextStream stream(*tokenizer);
    std::string out;
    for (const int32_t id : tokenizer->encode(text)) {
      const std::string part = stream.push(id);
      EXPECT_EQ(find_invalid_utf8(part), part.npos);
      out += part;
    }
    EXPECT_EQ(out + stream.finish(), text);
  }
  // A cut character, and a byte that cannot start one, come out as replacement characters.
  TextStream stream(*tokenizer);
  EXPECT_EQ(stream.push(0xFF), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.push(0xE4), "");
  EXPECT_EQ(stream.push('a'),
            "\xEF\xBF\xBD"
            "a");
  EXPECT_EQ(stream.push(0xE4), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
}

// Goldens: scripts/make_tokenizer_goldens.py.
class GoldenTest : public testing::TestWithParam<const char*> {};

TEST_P(GoldenTest, AgreesWithReference) {
  const fs::path folder = kGolden / GetParam();
  const auto tokenizer = load_tokenizer(folder);
  const json cases = parse_json(read_file(folder / "cases.json"), "cases");
  ASSERT_GT(cases.size(), 30u);
  for (const json& item : cases) {
    const std::string text = item["text"];
    SCOPED_TRACE(text.substr(0, 80));
    const std::vector<int32_t> ids = item["ids"], plain = item["plain"];
    EXPECT_EQ(tokenizer->encode(text), ids);
    EXPECT_EQ(tokenizer->encode(text, kPlain), plain);
    EXPECT_EQ(tokenizer->decode(ids), item["decoded"].get<std::string>());
    TextStream stream(*tokenizer, false);
    std::string streamed;
    for (const int32_t id : ids) streamed += stream.push(id);
    EXPECT_EQ(streamed + stream.finish(), item["decoded"].get<std::string>());
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, GoldenTest,
                         testing::Values("albert", "behaviours", "bert", "bert_cased", "clip",
                                         "ctc", "deepseek3", "deepseek_coder", "falcon", "gemma",
                                         "gpt2", "kimi", "llama2", "llama3", "metaspace", "mistral",
                                         "neox", "o200k", "phi2", "pieces_with_prefix", "qwen2",
                                         "roberta", "starcoder", "t5", "tekken", "unigram_bytes",
                                         "word_level"),
                         [](const auto& test) { return std::string(test.param); });

TEST_F(TokenizerTest, ByteLevelRoundTripsAnyText) {
  Random random(1);
  for (const char* name : {"gpt2", "llama3"}) {
    const auto tokenizer = load_tokenizer(kGolden / name);
    for (const std::string& text : kTricky) {
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, kPlain)), text);
    }
    for (int i = 0; i < 100; ++i) {
      const std::string text = random_text(random, 60);
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, kPlain)), text);
    }
    EXPECT_THROW(tokenizer->encode("a\xFF"), Error);
  }
}

TEST_F(TokenizerTest, SpecialTokensAreTextOnDemand) {
  const auto tokenizer = load_tokenizer(kGolden / "llama3");
  const auto ids = tokenizer->encode("<s>hello</s>");
  EXPECT_EQ(ids.front(), tokenizer->bos());
  EXPECT_EQ(ids.back(), tokenizer->eos());
  EXPECT_EQ(tokenizer->decode(ids), "hello");
  EXPECT_EQ(tokenizer->decode(ids, true), "<s><s>hello</s>");
  const auto plain = tokenizer->encode("<s>hello</s>", kPlain);
  EXPECT_EQ(tokenizer->decode(plain), "<s>hello</s>");
}

// Turns of a chat, encoded one after the other, are the ids of the whole text.
TEST_F(TokenizerTest, TurnsEncodeLikeOneText) {
  for (const char* name : {"gpt2", "llama3", "llama2", "metaspace"}) {
    const auto tokenizer = load_tokenizer(kGolden / name);
    const std::vector<std::string> turns = {"the<s>hello",   "</s>",       "hello the",
                                            " pronghorn<s>", "the anchor", " x"};
    std::string whole;
    std::vector<int32_t> ids;
    for (const std::string& turn : turns) {
      whole += turn;
      const std::vector<int32_t> more = tokenizer->encode(
          turn,
          {.add_special = ids.empty(), .parse_special = true, .after = tokenizer->after(ids)});
      ids.insert(ids.end(), more.begin(), more.end());
    }
    EXPECT_EQ(tokenizer->decode(ids), tokenizer->decode(tokenizer->encode(whole))) << name;
    // What follows an added token begins as in the whole text; what follows text has no space more.
    const std::vector<int32_t> first = tokenizer->encode("the<s>");
    std::vector<int32_t> joined = first;
    const std::vector<int32_t> rest =
        tokenizer->encode("the anchor", {.add_special = false, .after = tokenizer->after(first)});
    joined.insert(joined.end(), rest.begin(), rest.end());
    if (std::string_view(name) != "llama3") {
      EXPECT_EQ(joined, tokenizer->encode("the<s>the anchor")) << name;
    }
    const std::vector<int32_t> text = tokenizer->encode("the", {.add_special = false});
    EXPECT_EQ(tokenizer->after(text), After::text);
  }
}

TEST_F(TokenizerTest, StreamGoesOnFromItsState) {
  const auto tokenizer = make_byte_tokenizer();
  const std::string text =
      "Gr\xC3\xB6\xC3\x9F"
      "e \xF0\x9F\xA6\x99";
  TextStream::State state;
  std::string out;
  for (const int32_t id : tokenizer->encode(text)) {
    TextStream stream(*tokenizer, state);
    out += stream.push(id);
    state = stream.state();
  }
  EXPECT_EQ(out, text);
  EXPECT_TRUE(state.pending.empty());
  EXPECT_FALSE(state.at_start);
}

TEST_F(TokenizerTest, SavesAndReloadsAlike) {
  const auto first = load_tokenizer(kGolden / "llama2");
  first->save(folder_);
  const auto second = load_tokenizer(folder_);
  EXPECT_EQ(first->fingerprint(), second->fingerprint());
  EXPECT_EQ(first->encode("the pronghorn"), second->encode("the pronghorn"));
}

TEST_F(TokenizerTest, LongPieceTakesNoQuadraticTime) {
  // One piece of a million symbols: quadratic merging would take hours.
  const auto tokenizer = load_tokenizer(kGolden / "gpt2");
  const std::string text(1'000'000, 'a');
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
}

TEST_F(TokenizerTest, SentencePieceRoundTripsAnyText) {
  train_sentencepiece(training_texts(), 400, folder_);
  const auto tokenizer = load_tokenizer(folder_);
  EXPECT_EQ(tokenizer->vocab_size(), 400);
  EXPECT_TRUE(tokenizer->bos() && tokenizer->eos());
  for (const std::string& text : kTricky) {
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, kPlain)), text);
  }
  Random random(2);
  for (int i = 0; i < 200; ++i) {
    const std::string text = random_text(random, 60);
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, kPlain)), text);
  }
  const std::string broken = "a\xFF\xE2\x96";
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(broken, kPlain)), broken);
  // It is a tokenizer, not a fallback to bytes.
  const std::string text = "the journal and the anchor";
  EXPECT_LT(tokenizer->encode(text).size(), text.size() * 2 / 3);
  EXPECT_EQ(tokenizer->encode("a\nb").size(), 3u);
}

TEST_F(TokenizerTest, SentencePieceTrainingIsDeterministic) {
  train_sentencepiece(training_texts(), 320, folder_ / "a");
  train_sentencepiece(training_texts(), 320, folder_ / "b");
  EXPECT_EQ(load_tokenizer(folder_ / "a")->fingerprint(),
            load_tokenizer(folder_ / "b")->fingerprint());
}

TEST_F(TokenizerTest, SentencePieceTextTooSmallNamesTheLargestVocabulary) {
  const std::vector<std::string> texts = {"a small text with few words, a small text"};
  const std::string message = error_of([&] { train_sentencepiece(texts, 4000, folder_); });
  EXPECT_THAT(message, HasSubstr("4000"));
  const size_t at = message.rfind(' ');
  ASSERT_NE(at, message.npos);
  const std::string tail = message.substr(message.find("at most") + 8);
  const int largest = std::stoi(tail);
  EXPECT_NO_THROW(train_sentencepiece(texts, largest, folder_)) << message;
  EXPECT_THROW(train_sentencepiece(texts, largest + 1, folder_), Error);
  EXPECT_THROW(train_sentencepiece(texts, 100, folder_), Error);
  EXPECT_THROW(train_sentencepiece({}, 400, folder_), Error);
  EXPECT_THROW(train_sentencepiece({"\n\n"}, 400, folder_), Error);
}

TEST_F(TokenizerTest, SentencePieceSpecialTokens) {
  train_sentencepiece(training_texts(), 320, folder_);
  json config = parse_json(read_file(folder_ / "tokenizer_config.json"), "config");
  config["add_bos_token"] = true;
  config["added_tokens_decoder"]["330"] = {{"content", "<|user|>"}, {"special", true}};
  write_file(folder_ / "tokenizer_config.json", config.dump());
  const auto tokenizer = load_tokenizer(folder_);
  EXPECT_EQ(tokenizer->vocab_size(), 331);
  const auto ids = tokenizer->encode("<|user|>a</s>");
  ASSERT_EQ(ids.size(), 4u);
  EXPECT_EQ(ids[0], tokenizer->bos());
  EXPECT_EQ(ids[1], 330);
  EXPECT_EQ(ids[3], tokenizer->eos());
  EXPECT_EQ(tokenizer->decode(ids), "a");
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("<|user|>a</s>", kPlain)), "<|user|>a</s>");
}

TEST_F(TokenizerTest, MissingAndUnsupportedAreClear) {
  EXPECT_THAT(error_of([&] { load_tokenizer(folder_); }), HasSubstr("no tokenizer.json"));
  EXPECT_THAT(error_of([&] { load_tokenizer(folder_ / "none"); }), HasSubstr("not a directory"));
  write_file(folder_ / "tokenizer.json", R"({"model": {"type": "Unigram", "vocab": []}})");
  EXPECT_THAT(error_of([&] { load_tokenizer(folder_); }), HasSubstr("Unigram"));
  for (const char* part : {"normalizer", "pre_tokenizer", "decoder", "post_processor", "model"}) {
    json parsed = {{"model", {{"type", "BPE"}, {"vocab", {{"a", 0}}}, {"merges", json::array()}}}};
    parsed[part] = {{"type", "Unheard\nOf"}};
    write_file(folder_ / "tokenizer.json", parsed.dump());
    const std::string message = error_of([&] { load_tokenizer(folder_); });
    EXPECT_THAT(message, HasSubstr(std::string(part) + ": type 'Unheard\\nOf'"));
  }
  write_file(folder_ / "tokenizer.json",
             R"({"model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}})");
  EXPECT_THAT(error_of([&] { load_tokenizer(folder_); }), HasSubstr("'a'"));
  write_file(folder_ / "tokenizer.json",
             R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}})");
  EXPECT_THAT(error_of([&] { load_tokenizer(folder_); }), HasSubstr("merges[0]"));
}

// Every cut of a file must throw; every mutation must throw or give a tokenizer that works.
void attack(const std::string& good, const fs::path& folder, const char* name, int mutations) {
  for (int i = 0; i < 64; ++i) {
    const size_t length = good.size() * static_cast<size_t>(i) / 64;
    write_fast(folder / name, std::string_view(good).substr(0, length));
    // A protocol buffer cut between two pieces is well formed: it may load, with fewer tokens.
    try {
      load_tokenizer(folder)->encode("The anchor <s> 123");
      EXPECT_STREQ(name, "tokenizer.model");
    } catch (const Error&) {
    }
  }
  Random random(3);
  for (int i = 0; i < mutations; ++i) {
    std::string bad = good;
    const uint64_t count = 1 + random.below(4);
    for (uint64_t k = 0; k < count; ++k) {
      // Half of the changes fall into the first kilobyte, where structure is dense.
      const size_t at =
          random.below(random.below(2) == 0 ? std::min<size_t>(1024, bad.size()) : bad.size());
      constexpr std::string_view kLikely = "{}[]\",:09-\\ \x7F";
      bad[at] = random.below(2) == 0 ? kLikely[random.below(kLikely.size())]
                                     : static_cast<char>(random.bits());
    }
    write_fast(folder / name, bad);
    try {
      const auto tokenizer = load_tokenizer(folder);
      const auto ids = tokenizer->encode("The anchor <s> 123 \xE4\xBD\xA0\n");
      for (const int32_t id : ids) {
        ASSERT_GE(id, 0);
        ASSERT_LT(id, tokenizer->vocab_size());
      }
      tokenizer->decode(ids);
    } catch (const Error&) {
    }
  }
}

TEST_F(TokenizerTest, HostileTokenizerJson) {
  for (const char* name : {"gpt2", "llama2", "falcon", "t5", "bert", "albert"}) {
    attack(read_file(kGolden / name / "tokenizer.json"), folder_, "tokenizer.json", 300);
  }
}

TEST_F(TokenizerTest, HostileTokenizerModel) {
  train_sentencepiece(training_texts(), 320, folder_);
  attack(read_file(folder_ / "tokenizer.model"), folder_, "tokenizer.model", 600);
}

TEST_F(TokenizerTest, HostileTokenizerConfig) {
  train_sentencepiece(training_texts(), 320, folder_);
  attack(read_file(folder_ / "tokenizer_config.json"), folder_, "tokenizer_config.json", 300);
}

}  // namespace
}  // namespace pronghorn
