// Tokenizers: text to ids and back. One interface for bytes, SentencePiece models, Hugging Face's
// tokenizer.json, RWKV's World vocabulary, and the vocabulary inside a GGUF file.
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

// What a text stands after. Some tokenizers put a space before a text that begins a sequence, some
// also before one that follows an added token; none before one that continues another text.
enum class After : uint8_t { nothing, text, added_token };

struct EncodeOptions {
  bool add_special = true;    // add the tokens that the model expects around a text
  bool parse_special = true;  // read the text of special tokens ("<|endoftext|>") as those tokens
  After after = After::nothing;
};

// What decoding carries from token to token. Kept, it lets another stream go on.
struct DecodeState {
  std::string pending;    // bytes of a character that is not complete: at most three
  bool at_start = true;   // nothing of the text has come yet, so a space at its start goes
  int32_t previous = -1;  // the last token that was part of the text; -1 if there is none
};

// Encoding and decoding may run from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of the text. Throws Error where the text is not UTF-8 and the kind cannot represent that.
  virtual std::vector<int32_t> encode(std::string_view text,
                                      const EncodeOptions& options = {}) const = 0;

  // Bytes that one token stands for, inside a text. special: write special tokens as their text;
  // otherwise they stand for nothing. So do ids beyond the vocabulary, which a model whose own is
  // padded may choose. Throws Error for negative ids.
  virtual std::string token_bytes(int32_t id, bool special = false) const = 0;

  // What the token adds to the text that `state` stands at, and takes `state` after it. Where it
  // differs from token_bytes: a space that encoding puts before a text is taken away again; some
  // kinds separate words by what precedes.
  virtual std::string next_bytes(int32_t id, DecodeState& state, bool special = false) const;

  // True if encoding puts a space before the text, which decoding a whole text takes away again.
  virtual bool adds_space() const { return false; }

  // True for an added token (special or not): one that is matched as a whole, and cuts the text.
  virtual bool is_added(int32_t) const { return false; }
  // True for a token that decoding leaves out.
  virtual bool is_special(int32_t) const { return false; }
  // The token of this name, as files that name tokens write it ("</s>", "<0x0A>").
  virtual std::optional<int32_t> find_token(std::string_view) const { return {}; }
  // What a text stands after that follows these tokens.
  After after(std::span<const int32_t> tokens) const {
    if (tokens.empty()) return After::nothing;
    return is_added(tokens.back()) ? After::added_token : After::text;
  }

  // Number of ids; every id is below it.
  virtual int64_t vocab_size() const = 0;
  virtual std::optional<int32_t> bos() const { return {}; }
  virtual std::optional<int32_t> eos() const { return {}; }

  // The text of a whole sequence. Special tokens stand for nothing, unless `special`. The bytes are
  // as the tokens have them, unless the kind's reference replaces those that are not UTF-8.
  virtual std::string decode(std::span<const int32_t> ids, bool special = false) const;

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
  using State = DecodeState;

  // special: as for decode. The tokenizer must outlive the stream.
  TextStream(const Tokenizer& tokenizer, State state, bool special = false)
      : tokenizer_(tokenizer), special_(special), state_(std::move(state)) {}
  // continues: the tokens follow earlier text, so a space that they begin with belongs to it.
  explicit TextStream(const Tokenizer& tokenizer, bool continues = true, bool special = false)
      : TextStream(tokenizer, State{{}, !continues, -1}, special) {}

  // The characters that this token completes; may be empty. Throws Error for an unknown id.
  std::string push(int32_t id);
  // What is left at the end of the sequence. Not to be called where the text goes on later.
  std::string finish();

  const State& state() const { return state_; }

 private:
  const Tokenizer& tokenizer_;
  bool special_;
  State state_;
};

// The 256 bytes as the vocabulary: no training, no special tokens, any input.
std::unique_ptr<Tokenizer> make_byte_tokenizer();

// Reads the tokenizer of a checkpoint directory or GGUF file, or of the directory that a .pth file
// lies in. Of a directory, in this order:
// tokenizer_config.json with the class PronghornByteTokenizer; tokenizer.json; tokenizer.model;
// rwkv_vocab_v20230424.txt.
// Tokens that only tokenizer_config.json, special_tokens_map.json or added_tokens.json name are
// added. Throws Error, naming the file, if none is there or one is malformed or needs what is not
// supported.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& directory);

}  // namespace pronghorn
