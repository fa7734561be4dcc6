// The World tokenizer of RWKV-5 to RWKV-7: a text is cut from the left, at each place into the
// longest token that fits, byte for byte. Its vocabulary is a text file, rwkv_vocab_v20230424.txt,
// with a line for each token: its id, its bytes as a literal of Python (text or b'bytes'), and
// their number.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "formats/hf_tokenizer.h"
#include "formats/tokenizer.h"

namespace pronghorn {

inline constexpr const char* kWorldFile = "rwkv_vocab_v20230424.txt";

// Bytes of tokens by id; empty where there is none. Token 0, which ends texts, has no line.
using WorldTokens = std::vector<std::string>;

// Throws Error, with the line, for what is malformed.
WorldTokens read_world_vocabulary(std::string_view text, const std::string& where);
std::string write_world_vocabulary(const WorldTokens& tokens);

// How GGUF files hold bytes: as between the quotes of Python's b'..'. The reverse throws Error.
std::string escape_world_token(std::string_view bytes);
std::string unescape_world_token(std::string_view text, const std::string& where);

// side: names token 0 (bos_token or eos_token; "<|endoftext|>" if no file does) and tokens added to
// the vocabulary. where: the file, for messages. Throws Error for names that have no id. Any bytes
// can be encoded whose vocabulary has each byte; encode() throws Error for others.
std::unique_ptr<Tokenizer> make_world_tokenizer(WorldTokens tokens, const SideFiles& side,
                                                const std::string& where, Tokenizer::Files files);

}  // namespace pronghorn
