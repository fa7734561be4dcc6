// Tokenizers in the format of Hugging Face's tokenizers library (tokenizer.json), and others that
// are put together from the same parts.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "formats/added_tokens.h"
#include "formats/decoder.h"
#include "formats/normalizer.h"
#include "formats/pre_tokenizer.h"
#include "formats/tokenizer.h"
#include "formats/vocabulary.h"

namespace pronghorn {

// The parts of a tokenizer and the order in which a text goes through them.
struct TokenizerParts {
  std::string where;  // the file, for messages
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<SubwordModel> model;
  TokenDecoder decoder;
  std::vector<AddedToken> added;
  std::vector<int32_t> prefix, suffix;  // around a text
  std::optional<int32_t> bos, eos;
};

std::unique_ptr<Tokenizer> make_tokenizer(TokenizerParts parts, Tokenizer::Files files);

// What stands beside a tokenizer.json; null where there is no such file.
struct SideFiles {
  nlohmann::json config;       // tokenizer_config.json
  nlohmann::json special_map;  // special_tokens_map.json
  nlohmann::json added;        // added_tokens.json
};

// parsed: tokenizer.json. where: name of the file. Throws Error for what is malformed or not
// supported.
std::unique_ptr<Tokenizer> make_hf_tokenizer(const nlohmann::json& parsed, const SideFiles& side,
                                             const std::string& where, Tokenizer::Files files);

}  // namespace pronghorn
