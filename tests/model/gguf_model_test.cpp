// Models in GGUF files: written and read again they compute the same, and files that say what
// cannot be are refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "formats/gguf_vocabulary.h"
#include "model/checkpoint.h"
#include "model/families.h"
#include "model/gguf_format.h"
#include "support/errors.h"
#include "support/folder.h"
#include "support/model_runs.h"
#include "tensor/block_layouts.h"

namespace pronghorn {
namespace {

using testing::HasSubstr;
using testing_support::bit_difference;
using testing_support::decode;
using testing_support::error_of;
using testing_support::Folder;
using testing_support::random_tokens;

// A tiny model of a published family, with rows of whole blocks of 256 and of 32.
ModelConfig config_of(const std::string& family, nlohmann::json more = {}) {
  nlohmann::json json = {
      {"model_type", family},     {"vocab_size", 96},           {"hidden_size", 256},
      {"num_hidden_layers", 2},   {"num_attention_heads", 4},   {"num_key_value_heads", 2},
      {"intermediate_size", 352}, {"rms_norm_eps", 1e-5},       {"rope_theta", 5000.0},
      {"head_dim", 64},           {"tie_word_embeddings", true}};
  if (more.is_object()) json.update(more);
  return find_family(family, "test").read(ConfigReader(json, "test"));
}

std::vector<float> scores(const Model& model) {
  const std::vector<int32_t> tokens = random_tokens(12, 96, 3);
  const std::vector<int64_t> steps = {9, 1, 2};
  SequenceState state = model.new_state();
  return decode(model, state, tokens, steps);
}

TEST(GgufModel, WrittenAndReadComputesTheSameBits) {
  for (const auto& [family, tied] :
       {std::pair{"llama", true}, {"llama", false}, {"qwen2", true}, {"qwen3", false}}) {
    const Folder folder;
    const Model model(config_of(family, {{"tie_word_embeddings", tied}}), 5);
    save_gguf(model, folder / "model.gguf", GgufMetadata("test"));
    const auto loaded = Model::load(folder / "model.gguf");
    EXPECT_EQ(bit_difference(scores(*loaded), scores(model)), "") << family;
    EXPECT_EQ(write_pronghorn_config(loaded->config()).at("blocks"),
              write_pronghorn_config(model.config()).at("blocks"));
    // The directory is enough where it holds nothing else.
    EXPECT_EQ(bit_difference(scores(*Model::load(folder.path())), scores(model)), "") << family;
  }
}

TEST(GgufModel, BlocksKeepTheirBitsFromFileToFile) {
  const Folder folder;
  const Model model(config_of("llama"), 5);
  for (const Encoding* encoding :
       {&encodings::q8_0, &encodings::q4_0, &encodings::q4_k, &encodings::q6_k}) {
    std::map<std::string, std::string> in;
    SaveOptions options;
    options.encoding = encoding;
    options.on_tensor = [&](std::string_view name, const Encoding& used, int64_t) {
      in[std::string(name)] = used.name;
    };
    save_gguf(model, folder / "first.gguf", GgufMetadata("test"), options);
    EXPECT_EQ(in.at("blk.0.attn_q.weight"), encoding->name);
    EXPECT_EQ(in.at("output_norm.weight"), "f32");
    // Rows of 352 are no blocks of 256; the head is finer than 4 bits.
    EXPECT_EQ(in.at("blk.1.ffn_down.weight"),
              encoding->block == 256 ? "q8_0" : std::string(encoding->name));
    const bool four_bits = encoding == &encodings::q4_0 || encoding == &encodings::q4_k;
    EXPECT_EQ(in.at("token_embd.weight"), four_bits ? "q6_k" : std::string(encoding->name));

    const auto first = Model::load(folder / "first.gguf");
    const std::vector<float> expected = scores(*first);  // now some weights are panels alone
    save_gguf(*first, folder / "second.gguf", GgufMetadata("test"));
    EXPECT_EQ(bit_difference(scores(*Model::load(folder / "second.gguf")), expected), "")
        << encoding->name;
    const GgufFile one(folder / "first.gguf"), two(folder / "second.gguf");
    for (const GgufTensor& tensor : one.tensors()) {
      const GgufTensor* again = two.find(tensor.name);
      ASSERT_NE(again, nullptr) << tensor.name;
      EXPECT_TRUE(std::ranges::equal(tensor.bytes, again->bytes)) << tensor.name;
    }
    // As a directory: the numbers of the blocks, one by one.
    save_checkpoint(*first, folder / "directory", find_family("llama", "test"));
    const auto plain = Model::load(folder / "directory");
    const std::vector<int32_t> rows = {7, 0};
    for (size_t i = 0; i < plain->parameters().size(); ++i) {
      const Parameter &a = plain->parameters()[i], &b = first->parameters()[i];
      if (!a.matrix.defined()) continue;
      EXPECT_EQ(&a.matrix.encoding(), &encodings::f32) << a.name;
      const Stored blocks = b.stored(), numbers = a.stored();
      std::vector<float> decoded(static_cast<size_t>(b.size()));
      blocks.encoding->decode(blocks.bytes.data(), b.size(), decoded.data());
      EXPECT_TRUE(std::ranges::equal(std::as_bytes(std::span(decoded)), numbers.bytes)) << a.name;
    }
  }
}

TEST(GgufModel, WhatCannotBeIsRefused) {
  const Folder folder;
  const Model model(config_of("llama"), 5);
  const auto path = folder / "model.gguf";
  const auto with = [&](std::string_view key, GgufValue value) {
    GgufMetadata extra("test");
    extra.set(key, std::move(value));
    save_gguf(model, path, extra);
    return error_of([&] { Model::load(path); });
  };
  EXPECT_EQ(with("general.name", GgufValue::text("x")), "no error");
  EXPECT_EQ(with("llama.expert_count", GgufValue::u32(0)), "no error");
  EXPECT_THAT(with("llama.expert_count", GgufValue::u32(8)), HasSubstr("llama.expert_used_count"));
  EXPECT_THAT(with("general.architecture", GgufValue::text("nothing")), HasSubstr("known: llama"));
  EXPECT_THAT(with("general.architecture", GgufValue::u32(1)), HasSubstr("general.architecture"));
  EXPECT_THAT(with("llama.block_count", GgufValue::u32(3)), HasSubstr("no tensor of layer 2"));
  EXPECT_THAT(with("llama.block_count", GgufValue::u32(1)), HasSubstr("blk.1."));
  EXPECT_THAT(with("llama.feed_forward_length", GgufValue::u32(64)), HasSubstr("has shape"));
  EXPECT_THAT(with("llama.attention.value_length", GgufValue::u32(32)), HasSubstr("value_length"));
  EXPECT_THAT(with("llama.attention.head_count", GgufValue::f32(4)), HasSubstr("head_count"));
  // A window that such files cannot say.
  const Model windowed(config_of("mistral", {{"sliding_window", 16}}), 5);
  EXPECT_THAT(error_of([&] { save_gguf(windowed, path, GgufMetadata("test")); }),
              HasSubstr("window"));
}

TEST(GgufModel, TypesThatNothingDecodesAreNamed) {
  const Folder folder;
  const Model model(config_of("llama"), 5);
  save_gguf(model, folder / "model.gguf", GgufMetadata("test"));
  const GgufFile file(folder / "model.gguf");
  std::vector<GgufTensorToWrite> tensors;
  std::vector<std::byte> zeros(66 * 256);
  for (const GgufTensor& tensor : file.tensors()) {
    const bool odd = tensor.name == "blk.0.attn_q.weight";
    tensors.push_back({std::string(tensor.name), odd ? find_gguf_type("IQ2_XXS") : tensor.type,
                       tensor.shape(), [&, odd] {
                         return GgufTensorToWrite::Bytes{
                             odd ? std::span<const std::byte>(zeros) : tensor.bytes, nullptr};
                       }});
  }
  write_gguf(folder / "odd.gguf", file.metadata(), tensors);
  EXPECT_THAT(error_of([&] { Model::load(folder / "odd.gguf"); }),
              HasSubstr("'blk.0.attn_q.weight': is stored in IQ2_XXS, which is not supported"));
}

TEST(GgufVocabulary, ByteLevelTokensAndMerges) {
  const auto directory = std::filesystem::path(PRONGHORN_SOURCE_DIR) / "tests/formats/golden/gpt2";
  const auto tokenizer = load_tokenizer(directory);
  GgufMetadata metadata("test");
  const int64_t size = tokenizer->vocab_size() + 3;
  add_gguf_vocabulary(tokenizer->files(), size, metadata);
  EXPECT_EQ(metadata.text("tokenizer.ggml.model"), "gpt2");
  EXPECT_EQ(metadata.text("tokenizer.ggml.pre"), "gpt-2");
  const auto tokens = metadata.texts("tokenizer.ggml.tokens");
  const auto types = metadata.integers("tokenizer.ggml.token_type");
  ASSERT_EQ(tokens.size(), static_cast<size_t>(size));
  ASSERT_EQ(types.size(), tokens.size());
  EXPECT_EQ(tokens[0], "<|end|>");
  EXPECT_EQ(types[0], 3);      // control
  EXPECT_EQ(types[450], 4);    // of the user
  EXPECT_EQ(types.back(), 5);  // unused
  EXPECT_FALSE(metadata.texts("tokenizer.ggml.merges").empty());
  EXPECT_THAT(error_of([&] { add_gguf_vocabulary(tokenizer->files(), 10, metadata); }),
              HasSubstr("model of 10 tokens"));
  EXPECT_THAT(error_of([&] { add_gguf_vocabulary(make_byte_tokenizer()->files(), 256, metadata); }),
              HasSubstr("byte-pair encodings only"));
}

TEST(GgufVocabulary, PiecesOfSentencePiece) {
  const auto directory =
      std::filesystem::path(PRONGHORN_SOURCE_DIR) / "tests/formats/golden/llama2";
  const auto tokenizer = load_tokenizer(directory);
  GgufMetadata metadata("test");
  add_gguf_vocabulary(tokenizer->files(), tokenizer->vocab_size(), metadata);
  EXPECT_EQ(metadata.text("tokenizer.ggml.model"), "llama");
  EXPECT_TRUE(metadata.boolean("tokenizer.ggml.add_space_prefix"));
  EXPECT_TRUE(metadata.boolean("tokenizer.ggml.add_bos_token"));
  const auto types = metadata.integers("tokenizer.ggml.token_type");
  EXPECT_EQ(types[0], 2);  // unknown
  EXPECT_EQ(types[1], 3);
  EXPECT_NE(std::ranges::find(types, 6), types.end());  // bytes
  EXPECT_EQ(metadata.numbers("tokenizer.ggml.scores").size(), types.size());
}

}  // namespace
}  // namespace pronghorn
