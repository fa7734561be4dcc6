// SentencePiece models: encoding and decoding as the SentencePiece library does both.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include "base/files.h"
#include "base/random.h"
#include "formats/json.h"
#include "formats/sentencepiece_tokenizer.h"
#include "formats/utf8.h"
#include "support/errors.h"
#include "support/folder.h"

namespace pronghorn {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;

const std::vector<std::string> kTexts = {
    "The pronghorn is not the fastest animal over a hundred metres, but over long distances.",
    "hello world hello there, the world is large; we have seen 1234567 of them in 2023",
    "the state of a sequence is an anchor and a journal: the journal has one row a token",
    "Gr\xC3\xB6\xC3\x9F"
    "e na\xC3\xAFve caf\xC3\xA9 \xE4\xBD\xA0\xE5\xA5\xBD\xE4\xB8\x96\xE7\x95\x8C "
    "wide\xE3\x80\x80space"};

using Options = std::unordered_map<std::string, std::string>;

class Lines final : public sentencepiece::SentenceIterator {
 public:
  bool done() const override { return at_ >= kTexts.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return kTexts[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  size_t at_ = 0;
};

std::string train(Options options) {
  options.insert({{"vocab_size", "120"},
                  {"hard_vocab_limit", "false"},
                  {"num_threads", "1"},
                  {"minloglevel", "100"}});
  std::string model;
  Lines lines;
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &lines, &model);
  EXPECT_TRUE(status.ok()) << status.ToString();
  return model;
}

std::string random_text(Random& random, int characters) {
  constexpr std::string_view kLikely = "  \n\t\xE2\x96\x81 hello the worldan,.12";
  std::string text;
  for (int i = 0; i < characters; ++i) {
    if (random.below(4) == 0) {
      uint32_t code = static_cast<uint32_t>(random.below(random.below(2) == 0 ? 0x500 : 0x20000));
      if (code >= 0xD800 && code < 0xE000) code = 0xFF21;
      append_utf8(code, text);
    } else if (random.below(40) == 0) {
      text += static_cast<char>(random.bits());  // often not UTF-8
    } else if (random.below(5) == 0) {
      text += "hello";
    } else {
      const size_t at = random.below(kLikely.size());
      const size_t length = utf8_character(kLikely.substr(at));
      text += kLikely.substr(at, length);
    }
  }
  return text;
}

struct Case {
  const char* name;
  Options options;
};

class SentencePieceTest : public testing::TestWithParam<Case> {
 protected:
  Folder folder_;
};

TEST_P(SentencePieceTest, AgreesWithTheLibrary) {
  const std::string model = train(GetParam().options);
  sentencepiece::SentencePieceProcessor library;
  ASSERT_TRUE(library.LoadFromSerializedProto(model).ok());
  write_file(folder_ / "tokenizer.model", model);
  write_file(folder_ / "tokenizer_config.json", R"({"add_bos_token": false})");
  const auto ours = load_tokenizer(folder_);
  ASSERT_EQ(ours->vocab_size(), library.GetPieceSize());
  EXPECT_EQ(ours->bos(), library.bos_id());
  EXPECT_EQ(ours->eos(), library.eos_id());
  Random random(5);
  for (int i = 0; i < 300; ++i) {
    const std::string text = i < 4 ? kTexts[static_cast<size_t>(i)]
                                   : random_text(random, 1 + static_cast<int>(random.below(60)));
    std::vector<int> ids;
    ASSERT_TRUE(library.Encode(text, &ids).ok());
    ASSERT_EQ(ours->encode(text, {.add_special = false, .parse_special = false}),
              std::vector<int32_t>(ids.begin(), ids.end()))
        << text;
    std::string decoded;
    ASSERT_TRUE(library.Decode(ids, &decoded).ok());
    ASSERT_EQ(ours->decode(ids), decoded) << text;
  }
  // Any ids, as a model may choose them.
  for (int i = 0; i < 200; ++i) {
    std::vector<int> ids;
    for (uint64_t k = random.below(8); k-- > 0;) {
      ids.push_back(static_cast<int>(random.below(static_cast<uint64_t>(library.GetPieceSize()))));
    }
    std::string decoded;
    ASSERT_TRUE(library.Decode(ids, &decoded).ok());
    ASSERT_EQ(ours->decode(ids), decoded) << testing::PrintToString(ids);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, SentencePieceTest,
    testing::Values(
        Case{"unigram", {{"model_type", "unigram"}}},
        Case{"unigram_bytes",
             {{"model_type", "unigram"}, {"byte_fallback", "true"}, {"vocab_size", "400"}}},
        Case{"bpe", {{"model_type", "bpe"}}},
        Case{"bpe_llama",
             {{"model_type", "bpe"},
              {"byte_fallback", "true"},
              {"vocab_size", "420"},
              {"normalization_rule_name", "identity"},
              {"remove_extra_whitespaces", "false"},
              {"split_digits", "true"}}},
        Case{"bpe_gemma",
             {{"model_type", "bpe"},
              {"byte_fallback", "true"},
              {"vocab_size", "420"},
              {"normalization_rule_name", "identity"},
              {"remove_extra_whitespaces", "false"},
              {"add_dummy_prefix", "false"},
              {"user_defined_symbols", "\n,\t,  ,hello"},
              {"allow_whitespace_only_pieces", "true"}}},
        Case{"user_defined",
             {{"model_type", "unigram"},
              {"user_defined_symbols", "hello,lo w,<x>"},
              {"unk_surface", " ?? "}}},
        Case{"folded", {{"model_type", "unigram"}, {"normalization_rule_name", "nfkc_cf"}}},
        Case{"suffix", {{"model_type", "unigram"}, {"treat_whitespace_as_suffix", "true"}}},
        Case{"suffix_bpe", {{"model_type", "bpe"}, {"treat_whitespace_as_suffix", "true"}}},
        Case{"unsplit", {{"model_type", "bpe"}, {"split_by_whitespace", "false"}}},
        Case{"characters", {{"model_type", "char"}}}, Case{"words", {{"model_type", "word"}}}),
    [](const auto& test) { return std::string(test.param.name); });

using SentencePieceFiles = SentencePieceTest;

// LlamaTokenizer of transformers 4: with legacy each part between special tokens gets a space,
// without it only the text, unless a special token comes first.
TEST_F(SentencePieceFiles, LegacyAndPrefixSpace) {
  write_file(folder_ / "tokenizer.model",
             train({{"model_type", "bpe"}, {"normalization_rule_name", "identity"}}));
  const auto with = [&](const char* config) {
    write_file(folder_ / "tokenizer_config.json", config);
    return load_tokenizer(folder_);
  };
  const auto decode_each = [](const Tokenizer& tokenizer, const std::string& text) {
    std::string joined;
    for (const int32_t id : tokenizer.encode(text, {.add_special = false})) {
      joined += tokenizer.token_bytes(id, true) + "|";
    }
    return joined;
  };
  const auto legacy = with(R"({"legacy": true})");
  EXPECT_EQ(legacy->encode("the</s>the"),
            (std::vector<int32_t>{1, *legacy->find_token("\xE2\x96\x81the"), 2,
                                  *legacy->find_token("\xE2\x96\x81the")}));
  const auto plain = with(R"({"legacy": false})");
  EXPECT_EQ(plain->encode("the</s>the").size(), 5u);
  EXPECT_EQ(decode_each(*plain, "the</s>the").substr(0, 10), " the|</s>|");
  EXPECT_THAT(decode_each(*plain, "</s>the"), testing::StartsWith("</s>|t"));
  EXPECT_EQ(decode_each(*plain, "the</s> the"), " the|</s>| the|");
  const auto without = with(R"({"legacy": false, "add_prefix_space": false})");
  EXPECT_THAT(decode_each(*without, "the"), testing::StartsWith("t"));
  EXPECT_EQ(decode_each(*without, " the"), " the|");
  // A text that goes on has no space put before it.
  for (const Tokenizer* tokenizer : {legacy.get(), plain.get(), without.get()}) {
    const auto ids = tokenizer->encode(" the", {.add_special = false, .after = After::text});
    EXPECT_EQ(ids, (std::vector<int32_t>{*tokenizer->find_token("\xE2\x96\x81the")}));
  }
}

TEST_F(SentencePieceFiles, WritesWhatItReads) {
  const std::string bytes = train({{"model_type", "bpe"},
                                   {"byte_fallback", "true"},
                                   {"vocab_size", "400"},
                                   {"unk_surface", "?"}});
  const SentencePieceModel model = read_sentencepiece_model(bytes, "a");
  const SentencePieceModel again = read_sentencepiece_model(write_sentencepiece_model(model), "b");
  EXPECT_EQ(model.pieces, again.pieces);
  EXPECT_EQ(model.scores, again.scores);
  EXPECT_EQ(model.types, again.types);
  EXPECT_EQ(model.rules_bytes, again.rules_bytes);
  EXPECT_EQ(again.unknown_surface, "?");
  EXPECT_TRUE(again.byte_fallback && again.add_dummy_prefix && again.remove_extra_spaces);
  EXPECT_EQ(again.kind, SentencePieceModel::Kind::bpe);
}

TEST_F(SentencePieceFiles, MillionOfOneLetterTakesNoQuadraticTime) {
  for (const char* kind : {"bpe", "unigram"}) {
    write_file(folder_ / "tokenizer.model", train({{"model_type", kind}}));
    const auto tokenizer = load_tokenizer(folder_);
    const std::string text(1'000'000, 'l');
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  }
}

TEST_F(SentencePieceFiles, Malformed) {
  SentencePieceModel model;
  model.pieces = {"<unk>", "a", "a"};
  model.scores = {0, 0, 0};
  model.types = {PieceType::kUnknown, PieceType::kNormal, PieceType::kNormal};
  const auto message = [&] {
    return error_of([&] {
      write_file(folder_ / "tokenizer.model", write_sentencepiece_model(model));
      load_tokenizer(folder_);
    });
  };
  EXPECT_THAT(message(), HasSubstr("the same text"));
  model.pieces[2] = "<0x41>";
  model.types[2] = PieceType::kByte;
  model.byte_fallback = true;
  EXPECT_THAT(message(), HasSubstr("256 byte pieces"));
  model.types = {PieceType::kNormal, PieceType::kNormal, PieceType::kNormal};
  EXPECT_THAT(message(), HasSubstr("unknown type"));
}

}  // namespace
}  // namespace pronghorn
