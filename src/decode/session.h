// Session: a text that a model reads and writes; it can be saved, resumed and forked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "formats/image.h"
#include "formats/tokenizer.h"
#include "model/model.h"

namespace pronghorn {

// Throws Error for a model that sees no images, and for an image of another size than the model's.
void check_seen(const Model& model, const Image& image);

// A conversation with a model: its state and the tokens at its end. A value: a copy is a fork.
class Session {
 public:
  // cache: of the state (Model::new_state).
  explicit Session(const Model& model, const CacheOptions& cache = {});

  // Goes on from `state`, which has read `tokens`.
  Session(SequenceState state, const Tokenizer& tokenizer, std::span<const int32_t> tokens);

  // Tokens of the whole text, those not yet seen by the model included.
  int64_t length() const { return state_.length() + static_cast<int64_t>(pending_.size()); }
  const SequenceState& state() const { return state_; }

  // Adds tokens to the text; the model sees them with the next scores().
  void append(std::span<const int32_t> tokens);
  // The same for a prompt: what writes on after it knows what the text ends with.
  void append_prompt(const Tokenizer& tokenizer, std::span<const int32_t> tokens);
  // How a prompt that comes next is encoded. The first text of a session gets the tokens that the
  // model expects around a text. In each, the text of special tokens is read as those: turns of a
  // chat are made of them.
  EncodeOptions next_text(const Tokenizer& tokenizer) const;
  // What decoding carries from the text so far to what follows: the bytes of a character that is
  // not complete.
  const DecodeState& text() const { return text_; }
  void set_text(DecodeState text) {
    text_ = std::move(text);
    ends_in_prompt_ = false;
  }
  // Whatever else is to be kept with the text and saved with it.
  const std::string& attachment() const { return attachment_; }
  void set_attachment(std::string attachment) { attachment_ = std::move(attachment); }

  // Lets the model read an image before the text. Its patches count as tokens of the text, which
  // are 0 for go_back() and not among recent(). Throws Error for a model that sees no images, an
  // image of another size, and after text.
  void see(const Model& model, const Context& context, const Image& image);
  // Rows of images at the beginning of the text.
  int64_t seen() const { return seen_; }

  // Goes back to the text that consists of `tokens`, with which its own text begins. False, and
  // nothing done, if its state cannot: a recurrence goes back kExactStep tokens at most, and none
  // goes back into an image.
  bool go_back(std::span<const int32_t> tokens);

  // Tokens that the model has not yet seen, at the end of the text.
  std::span<const int32_t> pending() const { return pending_; }

  // Lets the model read all tokens appended (in pieces of bounded memory) and returns its scores of
  // the next one: [vocab_size]. on_read: called after each piece with the tokens read so far and
  // the last hidden states of the piece; what it throws leaves the tokens after the piece unread.
  Tensor scores(const Model& model, const Context& context,
                const std::function<void(size_t done, const Tensor& hidden)>& on_read = {});

  // For who runs the model on the state: after it, the first `count` pending tokens are read.
  SequenceState& state() { return state_; }
  void mark_read(size_t count);
  // The opposite: the last `count` tokens read are pending again. Throws Error if they are not
  // among recent().
  void unread(int64_t count);

  // The last tokens of the text, at most kRecent of them.
  std::span<const int32_t> recent() const { return recent_; }

  // One file, replaced atomically; a few megabytes for a recurrent model however long the text.
  // load throws Error if it is damaged or of another model or cache.
  void save(const std::filesystem::path& path) const;
  static Session load(const std::filesystem::path& path, const Model& model,
                      const CacheOptions& cache = {});

  static constexpr size_t kRecent = 1024;

 private:
  SequenceState state_;
  std::vector<int32_t> pending_;  // not yet seen by the model
  std::vector<int32_t> recent_;
  DecodeState text_;
  bool ends_in_prompt_ = false;  // rather than in what a model wrote
  int64_t seen_ = 0;
  int64_t block_ = 0;  // of a model that fills in blocks, which it reads whole; 0: of others
  std::string attachment_;
};

}  // namespace pronghorn
