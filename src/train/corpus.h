// Corpus: texts made ready for training: a tokenizer and its token shards.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "formats/tokenizer.h"
#include "train/token_shards.h"

namespace pronghorn {

struct Corpus {
  std::unique_ptr<Tokenizer> tokenizer;
  std::string tokenizer_name;  // "bytes", "sentencepiece bpe 4096"
  PreparedTokens files;
  // Changes whenever the tokens do: guards resumption.
  std::string identity() const;
};

// Trains a tokenizer on the first part of the texts (vocab_size 0: none, bytes are the vocabulary)
// and tokenises them into `directory`, or finds that an earlier call with the same arguments has.
// Throws Error for bad text.
Corpus prepare_corpus(const std::vector<std::filesystem::path>& paths, int64_t vocab_size,
                      const std::filesystem::path& directory, double held_out_fraction = 0.05);

// The same with a tokenizer that exists already, such as that of another model.
Corpus prepare_corpus_with(std::unique_ptr<Tokenizer> tokenizer,
                           const std::vector<std::filesystem::path>& paths,
                           const std::filesystem::path& directory, double held_out_fraction = 0.05);

}  // namespace pronghorn
