// A corpus tokenised once: files of token ids that are mapped into memory, one to train on and one
// held out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "base/files.h"
#include "formats/tokenizer.h"

namespace pronghorn {

// What prepare_tokens made or found.
struct PreparedTokens {
  std::filesystem::path train;          // train.tokens
  std::filesystem::path held_out;       // held_out.tokens
  std::filesystem::path held_out_text;  // held_out.txt: the text of held_out.tokens
  int64_t train_tokens = 0, held_out_tokens = 0;
  int64_t train_bytes = 0, held_out_bytes = 0;  // of text
  bool reused = false;                          // an earlier run had made the same files
  uint64_t hash = 0;                            // of the texts, the tokenizer and the division
};

// From so many documents on whole ones are held out.
constexpr int64_t kManyDocuments = 100;

// Tokenises the documents of `paths` (see for_each_document) into `directory`. Of kManyDocuments or
// more, a share of held_out_fraction is held out, evenly spread. Of fewer, the last part of each
// is, cut after a line where one ends nearby, so that texts of several kinds are all there; what
// would be a very short part is left to the next document. A document is bos (if encoding adds
// one), its tokens without special ones, and eos (if there is one); very long documents are encoded
// in parts of a few MB that end with a line. Files are reused if they were made with the same
// tokenizer, fraction and texts (by what they hold). Throws Error for bad text, for a text too
// short to divide, and when the disk refuses; existing files are then left as they were.
PreparedTokens prepare_tokens(const std::vector<std::filesystem::path>& paths,
                              const Tokenizer& tokenizer, const std::filesystem::path& directory,
                              double held_out_fraction = 0.05);

// One file of tokens, mapped and checked.
class TokenShard {
 public:
  // Throws Error if it is not a whole file of tokens.
  explicit TokenShard(const std::filesystem::path& path);

  int64_t size() const { return tokens_; }
  // Bytes of the text that the tokens stand for.
  int64_t text_bytes() const { return text_bytes_; }
  // Every id that read gives is below it.
  int64_t vocab_size() const { return vocab_size_; }
  // The hash of tokenizer, sources and fraction that the file was made for.
  uint64_t hash() const { return hash_; }

  // Copies the ids from `begin` on. Throws Error if that leaves the file or an id the vocabulary.
  void read(int64_t begin, std::span<int32_t> out) const;

 private:
  std::filesystem::path path_;
  MappedFile file_;
  int64_t tokens_ = 0, text_bytes_ = 0, vocab_size_ = 0, token_bytes_ = 0;
  uint64_t hash_ = 0;
};

// Bits that gzip (deflate at `level`) takes for each byte of a file: what a compressor that knows
// no language reaches. Throws Error for an empty file.
double gzip_bits_per_byte(const std::filesystem::path& path, int level = 9);

}  // namespace pronghorn
