// Byte-pair tokenizers in the format of Hugging Face's tokenizers library (tokenizer.json).
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "formats/added_tokens.h"
#include "formats/tokenizer.h"

namespace pronghorn {

// True if the parsed tokenizer.json describes a BPE model, the one kind that make_hf_tokenizer
// takes.
bool is_hf_bpe(const nlohmann::json& parsed);

// parsed: tokenizer.json. config: tokenizer_config.json or an empty object; its bos_token and
// eos_token are read. where: name of the file. Throws Error for what is malformed or not supported.
std::unique_ptr<Tokenizer> make_hf_tokenizer(const nlohmann::json& parsed,
                                             const nlohmann::json& config, const std::string& where,
                                             Tokenizer::Files files);

// Reads added tokens: an array of objects with an id, or (tokenizer_config.json) an object of them
// by id. vocabulary: number of ids before them; ids far beyond it are refused. Throws Error.
std::vector<AddedToken> read_added_tokens(const nlohmann::json& list, const std::string& where,
                                          size_t vocabulary);

}  // namespace pronghorn
