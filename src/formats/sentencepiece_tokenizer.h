// SentencePiece models (tokenizer.model) as tokenizers, and training new ones.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "formats/added_tokens.h"
#include "formats/hf_tokenizer.h"
#include "formats/sentencepiece_model.h"
#include "formats/tokenizer.h"

namespace pronghorn {

// What a model file does not say.
struct SentencePieceOptions {
  std::vector<AddedToken> added;  // matched as wholes; control pieces among them
  std::optional<int32_t> bos, eos;
  bool add_bos = false, add_eos = false;
  // Each part of a text between added tokens is a text to the model, which may put a space before
  // it. Otherwise (LlamaTokenizer with "legacy": false) only the whole text gets one, and only with
  // prefix_space.
  bool legacy = true, prefix_space = true;
  // The text's own U+2581 is encoded as bytes, since a piece of that name would decode to a space.
  // Of our trainer; published models do without, as their reference does.
  bool exact = false;
};

// Its key in tokenizer_config.json.
constexpr const char* kExactKey = "pronghorn_exact";

// where: name of the model's file. Throws Error if the model is malformed.
std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(SentencePieceModel model,
                                                        SentencePieceOptions options,
                                                        const std::string& where,
                                                        Tokenizer::Files files);
// With the options of tokenizer_config.json: bos_token and others, add_bos_token (default: true),
// add_eos_token (default: only for T5), legacy (default true), add_prefix_space (default true),
// added_tokens_decoder.
std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(SentencePieceModel model,
                                                        const SideFiles& side,
                                                        const std::string& where,
                                                        Tokenizer::Files files);

// Smallest vocabulary that train_sentencepiece can make: three special tokens, 256 bytes, newline,
// tab, and a few characters.
constexpr int kMinSentencePieceVocab = 272;

// Trains a BPE vocabulary on `texts` and writes tokenizer.model and tokenizer_config.json into
// `directory`. Nothing is normalised, every byte is representable, so decode(encode(text)) == text
// for any text. Newlines and tabs are tokens of their own. The result depends on the arguments
// only. Throws Error if the texts are too small for the vocabulary (with the largest that works).
void train_sentencepiece(const std::vector<std::string>& texts, int vocab_size,
                         const std::filesystem::path& directory);

}  // namespace pronghorn
