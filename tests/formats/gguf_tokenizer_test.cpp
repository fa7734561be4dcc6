// Vocabularies of GGUF files: the same ids as the tokenizers that they were made from.
#include "formats/gguf_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "base/files.h"
#include "formats/gguf_pre.h"
#include "formats/gguf_vocabulary.h"
#include "formats/json.h"
#include "formats/regex.h"
#include "support/errors.h"
#include "support/folder.h"

namespace pronghorn {
namespace {

namespace fs = std::filesystem;

using nlohmann::json;
using testing::HasSubstr;
using testing_support::error_of;
using testing_support::Folder;

const fs::path kGolden = fs::path(PRONGHORN_SOURCE_DIR) / "tests/formats/golden";

json golden(const std::string& name, const char* file) {
  return parse_json(read_file(kGolden / name / file), name);
}

// What a converter writes of a byte-level golden.
GgufVocabulary vocabulary_of(const std::string& name, const char* pre) {
  const json parsed = golden(name, "tokenizer.json");
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = pre;
  for (const auto& item : parsed["model"]["vocab"].items()) {
    const auto id = item.value().get<size_t>();
    if (id >= vocabulary.tokens.size()) vocabulary.tokens.resize(id + 1);
    vocabulary.tokens[id] = item.key();
  }
  vocabulary.types.assign(vocabulary.tokens.size(), GgufVocabulary::normal);
  for (const json& token : parsed["added_tokens"]) {
    const auto id = token["id"].get<size_t>();
    if (id >= vocabulary.tokens.size()) {
      vocabulary.tokens.resize(id + 1);
      vocabulary.types.resize(id + 1);
    }
    vocabulary.tokens[id] = token["content"];
    vocabulary.types[id] =
        token["special"] ? GgufVocabulary::control : GgufVocabulary::user_defined;
  }
  for (const json& merge : parsed["model"]["merges"]) {
    vocabulary.merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  return vocabulary;
}

// Keys without which Hugging Face's tokenizers (0.22) refuses a component of a tokenizer.json.
void expect_complete(const json& component) {
  static const std::map<std::string, std::vector<std::string>> required = {
      {"BPE", {"vocab", "merges"}},
      {"BertNormalizer", {"clean_text", "handle_chinese_chars", "strip_accents", "lowercase"}},
      {"BertPreTokenizer", {}},
      {"BertProcessing", {"sep", "cls"}},
      {"ByteFallback", {}},
      {"ByteLevel", {"add_prefix_space", "trim_offsets"}},
      {"Fuse", {}},
      {"NFC", {}},
      {"Replace", {"pattern", "content"}},
      {"Sequence", {}},
      {"Split", {"pattern", "behavior", "invert"}},
      {"TemplateProcessing", {"single", "pair", "special_tokens"}},
      {"WordPiece", {}}};
  if (component.is_array()) {
    for (const json& part : component) expect_complete(part);
  }
  if (!component.is_object() || !component.contains("type")) return;
  const std::string type = component["type"];
  ASSERT_TRUE(required.contains(type)) << type;
  std::vector<std::string> keys = required.at(type);
  if (type == "WordPiece" && component.contains("vocab")) {
    keys = {"unk_token", "continuing_subword_prefix", "max_input_chars_per_word"};
  } else if (type == "WordPiece") {
    keys = {"prefix", "cleanup"};
  }
  for (const std::string& key : keys) {
    EXPECT_TRUE(component.contains(key)) << type << " without " << key;
  }
  for (const char* parts : {"normalizers", "pretokenizers", "decoders"}) {
    if (component.contains(parts)) expect_complete(component[parts]);
  }
}

void expect_complete_file(const Tokenizer& tokenizer) {
  const json parsed = parse_json(tokenizer.files().at("tokenizer.json"), "tokenizer.json");
  for (const char* part : {"normalizer", "pre_tokenizer", "model", "post_processor", "decoder"}) {
    ASSERT_TRUE(parsed.contains(part)) << part;
    expect_complete(parsed[part]);
  }
}

struct PreCase {
  const char *golden, *pre;
};

class GgufPreTest : public testing::TestWithParam<PreCase> {};

TEST_P(GgufPreTest, AgreesWithTheOriginal) {
  GgufVocabulary vocabulary = vocabulary_of(GetParam().golden, GetParam().pre);
  vocabulary.add_bos = false;
  const auto tokenizer = make_gguf_tokenizer(vocabulary, "test.gguf");
  for (const json& item : golden(GetParam().golden, "cases.json")) {
    EXPECT_EQ(tokenizer->encode(item["text"].get<std::string>(),
                                {.add_special = false, .parse_special = false}),
              item["plain"].get<std::vector<int32_t>>())
        << item["text"];
  }
  // The files that it makes describe the same tokenizer.
  expect_complete_file(*tokenizer);
  Folder folder;
  tokenizer->save(folder);
  const auto again = load_tokenizer(folder);
  EXPECT_EQ(again->fingerprint(), tokenizer->fingerprint());
  EXPECT_EQ(again->encode("The anchor, 12345!"), tokenizer->encode("The anchor, 12345!"));
  const json parsed = golden(GetParam().golden, "tokenizer.json");
  const auto name = gguf_pre_name(parsed);
  ASSERT_TRUE(name.has_value());
  const auto means = [](std::string_view pre) {
    const auto pres = gguf_pres();
    return std::find_if(pres.begin(), pres.end(), [&](const GgufPre& row) {
      return std::find(row.names.begin(), row.names.end(), pre) != row.names.end();
    });
  };
  EXPECT_EQ(means(*name), means(GetParam().pre)) << *name;
}

INSTANTIATE_TEST_SUITE_P(Pres, GgufPreTest,
                         testing::Values(PreCase{"qwen2", "qwen2"}, PreCase{"o200k", "gpt-4o"},
                                         PreCase{"tekken", "tekken"}, PreCase{"kimi", "kimi-k2"},
                                         PreCase{"deepseek3", "deepseek-v3"},
                                         PreCase{"deepseek_coder", "deepseek-coder"},
                                         PreCase{"starcoder", "starcoder"},
                                         PreCase{"phi2", "phi-2"}),
                         [](const auto& test) { return std::string(test.param.golden); });

TEST(GgufTokenizerTest, EveryPreWritesCompleteFiles) {
  GgufVocabulary vocabulary = vocabulary_of("qwen2", "");
  for (const GgufPre& pre : gguf_pres()) {
    vocabulary.pre = pre.names[0];
    expect_complete_file(*make_gguf_tokenizer(vocabulary, "test.gguf"));
  }
}

TEST(GgufTokenizerTest, EveryPreCompiles) {
  for (const GgufPre& pre : gguf_pres()) {
    for (const std::string_view pattern : pre.patterns) {
      EXPECT_NO_THROW(Regex(std::string(pattern), false, std::string(pre.names[0])));
    }
  }
}

GgufVocabulary sentence_pieces() {
  GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  vocabulary.tokens = {"<unk>", "<s>", "</s>"};
  vocabulary.types = {GgufVocabulary::unknown, GgufVocabulary::control, GgufVocabulary::control};
  vocabulary.scores = {0, 0, 0};
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary.tokens.push_back(fmt::format("<0x{:02X}>", byte));
    vocabulary.types.push_back(GgufVocabulary::byte);
    vocabulary.scores.push_back(0);
  }
  for (const char* piece : {"\xE2\x96\x81", "h", "i", "hi", "\xE2\x96\x81hi"}) {
    vocabulary.tokens.emplace_back(piece);
    vocabulary.types.push_back(GgufVocabulary::normal);
    vocabulary.scores.push_back(-static_cast<float>(vocabulary.scores.size()));
  }
  return vocabulary;
}

TEST(GgufTokenizerTest, SentencePieces) {
  GgufVocabulary vocabulary = sentence_pieces();
  const auto tokenizer = make_gguf_tokenizer(vocabulary, "test.gguf");
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(tokenizer->encode("hi hi\n"), (Ids{1, 263, 263, 3 + 10}));
  EXPECT_EQ(tokenizer->encode("hi</s>hi"), (Ids{1, 263, 2, 263}));
  EXPECT_EQ(tokenizer->decode(Ids{1, 263, 263, 13}), "hi hi\n");
  EXPECT_EQ(tokenizer->bos(), 1);
  EXPECT_EQ(tokenizer->eos(), 2);
  vocabulary.add_space_prefix = false;
  vocabulary.add_bos = false;
  vocabulary.add_eos = true;
  EXPECT_EQ(make_gguf_tokenizer(vocabulary, "test.gguf")->encode("hi hi"), (Ids{262, 263, 2}));
  Folder folder;
  tokenizer->save(folder);
  EXPECT_EQ(load_tokenizer(folder)->encode("hi hi\n"), (Ids{1, 263, 263, 13}));
}

TEST(GgufTokenizerTest, WordPieces) {
  GgufVocabulary vocabulary;
  vocabulary.model = "bert";
  vocabulary.tokens = {"[UNK]",
                       "[CLS]",
                       "[SEP]",
                       "\xE2\x96\x81the",
                       "\xE2\x96\x81"
                       "an",
                       "chor",
                       "\xE2\x96\x81,"};
  vocabulary.types = {GgufVocabulary::unknown, GgufVocabulary::control, GgufVocabulary::control};
  vocabulary.types.resize(vocabulary.tokens.size(), GgufVocabulary::normal);
  vocabulary.unknown_id = 0;
  vocabulary.cls = 1;
  vocabulary.separator = 2;
  const auto tokenizer = make_gguf_tokenizer(vocabulary, "test.gguf");
  EXPECT_EQ(tokenizer->encode("The anchor, xyz"), (std::vector<int32_t>{1, 3, 4, 5, 6, 0, 2}));
  expect_complete_file(*tokenizer);
}

// Byte by byte: a file that says so is read, one that has forgotten its merges is not.
TEST(GgufTokenizerTest, AListOfNoMerges) {
  const std::unique_ptr<Tokenizer> whole =
      make_gguf_tokenizer(vocabulary_of("qwen2", "qwen2"), "test.gguf");
  Tokenizer::Files files = whole->files();
  json parsed = json::parse(files.at("tokenizer.json"));
  parsed["model"]["merges"] = json::array();
  files["tokenizer.json"] = parsed.dump();
  GgufMetadata metadata("test.gguf");
  add_gguf_vocabulary(files, whole->vocab_size(), metadata);
  const auto again = make_gguf_tokenizer(read_gguf_vocabulary(metadata), "test.gguf");
  EXPECT_EQ(again->encode("the the").size(), 7u);
  EXPECT_EQ(again->decode(again->encode("the the")), "the the");
  GgufVocabulary forgotten = vocabulary_of("qwen2", "qwen2");
  forgotten.merges.clear();
  EXPECT_THAT(error_of([&] { make_gguf_tokenizer(forgotten, "test.gguf"); }),
              HasSubstr("no tokenizer.ggml.merges"));
}

TEST(GgufTokenizerTest, Malformed) {
  const auto message = [](const GgufVocabulary& vocabulary) {
    return error_of([&] { make_gguf_tokenizer(vocabulary, "test.gguf"); });
  };
  GgufVocabulary vocabulary = vocabulary_of("qwen2", "no\nsuch");
  EXPECT_THAT(message(vocabulary), HasSubstr("tokenizer.ggml.pre 'no\\nsuch'"));
  vocabulary.pre = "qwen2";
  vocabulary.eos = 1 << 30;
  EXPECT_THAT(message(vocabulary), HasSubstr("eos_token_id"));
  vocabulary.eos = {};
  vocabulary.tokens[5] = vocabulary.tokens[6];
  EXPECT_THAT(message(vocabulary), HasSubstr("occurs twice"));
  vocabulary.tokens[5] = "\xFF";
  EXPECT_THAT(message(vocabulary), HasSubstr("token 5"));
  vocabulary = sentence_pieces();
  vocabulary.scores.pop_back();
  EXPECT_THAT(message(vocabulary), HasSubstr("scores"));
  vocabulary.model = "unheard-of";
  vocabulary.scores.clear();
  EXPECT_THAT(message(vocabulary), HasSubstr("'unheard-of'"));
  vocabulary.tokens.clear();
  EXPECT_THAT(message(vocabulary), HasSubstr("empty"));
}

}  // namespace
}  // namespace pronghorn
