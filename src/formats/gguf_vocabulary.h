// The vocabulary of a checkpoint directory as metadata of a GGUF file.
#pragma once

#include <cstdint>
#include <string>

#include "formats/gguf.h"
#include "formats/tokenizer.h"

namespace pronghorn {

// Adds the keys tokenizer.* for the files of a tokenizer (Tokenizer::files()): byte-level byte-pair
// encodings and byte-pair encodings of SentencePiece. vocab_size: of the model; ids that the
// tokenizer does not have are marked as unused. Throws Error, naming the file, for what such
// metadata cannot say: other kinds, ways of cutting text into words that have no name there, and
// more tokens than vocab_size.
void add_gguf_vocabulary(const Tokenizer::Files& files, int64_t vocab_size, GgufMetadata& metadata);

}  // namespace pronghorn
