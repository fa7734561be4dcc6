// Generator: continues a text with a model, token by token; its session can be saved and resumed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "decode/sampling.h"
#include "formats/tokenizer.h"
#include "model/model.h"

namespace pronghorn {

// A conversation with a model: its state and the tokens at its end. A value: a copy is a fork.
class Session {
 public:
  explicit Session(const Model& model);

  // Tokens of the whole text, those not yet seen by the model included.
  int64_t length() const { return state_.length() + static_cast<int64_t>(pending_.size()); }
  const SequenceState& state() const { return state_; }

  // Adds tokens to the text; the model sees them with the next scores().
  void append(std::span<const int32_t> tokens);

  // Lets the model read all tokens appended (in pieces of bounded memory) and returns its scores of
  // the next one: [vocab_size]. progress: called with the tokens read so far.
  Tensor scores(const Model& model, const Context& context,
                const std::function<void(double)>& progress = {});

  // The last tokens of the text, at most kRecent of them.
  std::span<const int32_t> recent() const { return recent_; }

  // One file, replaced atomically; a few megabytes for a recurrent model however long the text.
  // load throws Error if it is damaged or of another model.
  void save(const std::filesystem::path& path) const;
  static Session load(const std::filesystem::path& path, const Model& model);

  static constexpr size_t kRecent = 1024;

 private:
  SequenceState state_;
  std::vector<int32_t> pending_;  // not yet seen by the model
  std::vector<int32_t> recent_;
};

struct GenerateOptions {
  int64_t max_tokens = 128;
  SamplingOptions sampling;
  std::vector<std::string> stop;  // the text ends before the first of these that is complete
  bool stop_at_eos = true;
  Precision precision = Precision::f32;
};

struct Generated {
  std::string text;
  int64_t prompt_tokens = 0, tokens = 0;
  double prompt_seconds = 0, decode_seconds = 0;
  enum class End : uint8_t { length, stop_string, end_token } end = End::length;
};

// Appends `prompt` to the session and continues it. emit is called with pieces of whole characters
// as soon as it is certain that no stop string begins in them; may be empty. Throws Error if there
// is nothing to continue from.
Generated generate(const Model& model, const Tokenizer& tokenizer, Session& session,
                   std::span<const int32_t> prompt, const GenerateOptions& options,
                   const std::function<void(std::string_view)>& emit = {});

}  // namespace pronghorn
