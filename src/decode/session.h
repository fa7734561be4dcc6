// Session: a text that a model reads and writes; it can be saved, resumed and forked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "formats/tokenizer.h"
#include "model/model.h"

namespace pronghorn {

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

  // Goes back to the text that consists of `tokens`, with which its own text begins. False, and
  // nothing done, if its state cannot: a recurrence goes back kExactStep tokens at most.
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
  std::string attachment_;
};

}  // namespace pronghorn
