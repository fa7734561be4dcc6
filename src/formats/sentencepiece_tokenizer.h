// SentencePiece models (tokenizer.model): reading them through the library, and training new ones.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "formats/tokenizer.h"

namespace pronghorn {

// files: holds "tokenizer.model". config: tokenizer_config.json or an empty object; add_bos_token
// (default: true if the model has one), add_eos_token (default false) and added_tokens_decoder are
// read from it. where: name of the model's file. Throws Error if the model is malformed.
std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(const nlohmann::json& config,
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
