// Tokenizers: text to ids and back. One interface, three kinds: bytes, SentencePiece, and the
// byte-pair encodings of a Hugging Face tokenizer.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn {

// Encoding and decoding may run from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of the text. special: add the tokens that the model expects around a text (a beginning of
  // sequence), and read the text of special tokens ("<|endoftext|>") as those tokens. Without it,
  // nothing is added and such text is plain text. Throws Error where the text is not UTF-8 and the
  // kind cannot represent that.
  virtual std::vector<int32_t> encode(std::string_view text, bool special = true) const = 0;

  // Bytes that one token stands for, as part of a text. special: write special tokens as their
  // text; otherwise they stand for nothing. Throws Error if the id is not in the vocabulary.
  virtual std::string token_bytes(int32_t id, bool special = false) const = 0;

  // True if encoding puts a space before the text, which decoding a whole text takes away again.
  virtual bool adds_space() const { return false; }

  // Number of ids; every id is below it.
  virtual int64_t vocab_size() const = 0;
  virtual std::optional<int32_t> bos() const { return {}; }
  virtual std::optional<int32_t> eos() const { return {}; }

  // The text of a whole sequence. Special tokens stand for nothing, unless `special`. The bytes are
  // as the tokens have them: a sequence cut inside a character is not valid UTF-8.
  std::string decode(std::span<const int32_t> ids, bool special = false) const;

  // The files that define it, by name; load_tokenizer reads the same from a directory.
  using Files = std::map<std::string, std::string>;
  const Files& files() const { return files_; }
  // Writes those files. Throws Error.
  void save(const std::filesystem::path& directory) const;
  // A hash of those files: equal for tokenizers that encode alike.
  uint64_t fingerprint() const;

 protected:
  explicit Tokenizer(Files files) : files_(std::move(files)) {}

 private:
  Files files_;
};

// Decodes a sequence that arrives token by token, giving out whole UTF-8 characters only. Bytes
// that cannot become a character come out as U+FFFD.
class TextStream {
 public:
  // continues: the tokens follow earlier text, so a space that they begin with belongs to it.
  // special: as for decode. The tokenizer must outlive the stream.
  explicit TextStream(const Tokenizer& tokenizer, bool continues = true, bool special = false)
      : tokenizer_(tokenizer), special_(special), at_start_(!continues) {}

  // The characters that this token completes; may be empty. Throws Error for an unknown id.
  std::string push(int32_t id);
  // What is left at the end of the sequence.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  bool special_, at_start_;
  std::string pending_;
};

// The 256 bytes as the vocabulary: no training, no special tokens, any input.
std::unique_ptr<Tokenizer> make_byte_tokenizer();

// Reads the tokenizer of a checkpoint directory. In this order: tokenizer_config.json with the
// class PronghornByteTokenizer; tokenizer.json with a BPE model; tokenizer.model. Throws Error,
// naming the file, if none is there or one is malformed or needs what is not supported.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& directory);

}  // namespace pronghorn
