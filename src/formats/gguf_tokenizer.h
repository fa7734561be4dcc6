// The vocabulary inside a GGUF file as a tokenizer. It is first written as the files that the same
// tokenizer has beside a Hugging Face checkpoint (tokenizer.json, or tokenizer.model), and made
// from those, so that it can be saved as such.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "formats/gguf.h"
#include "formats/tokenizer.h"

namespace pronghorn {

// Keys tokenizer.ggml.* of a GGUF file. Types are those of its token_type array.
struct GgufVocabulary {
  enum Type : int64_t { normal = 1, unknown, control, user_defined, unused, byte };

  std::string model;  // "llama" (SentencePiece BPE), "gpt2" (BPE), "bert" (WordPiece), "t5"
                      // (Unigram), "rwkv" (World)
  std::string pre;    // of gpt2: which pre-tokenizer
  std::vector<std::string> tokens;
  std::vector<float> scores;   // by id; may be empty
  std::vector<int64_t> types;  // by id; may be empty: all are normal
  std::vector<std::string> merges;
  bool no_merges = false;  // an empty list is meant: each token is one character
  std::string charsmap;    // of t5: compiled normalisation rules
  std::optional<int64_t> bos, eos, unknown_id, separator, cls;
  std::optional<bool> add_bos, add_eos, add_space_prefix, remove_extra_spaces, lower_case;
};

// Throws Error for keys that are missing or malformed.
GgufVocabulary read_gguf_vocabulary(const GgufMetadata& metadata);

// where: the file, for messages. Throws Error for what is malformed or not supported.
std::unique_ptr<Tokenizer> make_gguf_tokenizer(const GgufVocabulary& vocabulary,
                                               const std::string& where);

// The name under which GGUF files know how a byte-level tokenizer.json cuts texts, if any: of names
// with the same patterns that which also agrees in normalisation and whole words, if there is one.
std::optional<std::string> gguf_pre_name(const nlohmann::json& tokenizer);

}  // namespace pronghorn
