#include "api/parts.h"

namespace pronghorn {
namespace {

GenerateOptions internal(const ContinueOptions& options, const Model& model,
                         const std::vector<int32_t>& end_tokens) {
  GenerateOptions result;
  result.max_tokens = options.max_tokens;
  result.sampling.temperature = options.temperature;
  result.sampling.top_k = options.top_k;
  result.sampling.top_p = options.top_p;
  result.sampling.min_p = options.min_p;
  result.sampling.repetition_penalty = options.repetition_penalty;
  result.sampling.seed = options.seed;
  result.stop = options.stop;
  result.stop_at_eos = options.stop_at_end_token;
  result.end_tokens = end_tokens;
  result.precision = precision_of(options.rounding, model);
  return result;
}

Continuation::End end_of(Generated::End end) {
  switch (end) {
    case Generated::End::stop_string:
      return Continuation::End::stop_text;
    case Generated::End::end_token:
      return Continuation::End::end_token;
    case Generated::End::length:
    case Generated::End::interrupted:  // which nobody asks for here
      break;
  }
  return Continuation::End::length;
}

// The first text of a session gets the tokens that the model expects around a text. In each, the
// text of special tokens is read as those: turns of a chat are made of them.
std::vector<int32_t> tokens_of(std::string_view text, const Session& session,
                               const Tokenizer& tokenizer) {
  return tokenizer.encode(text, {.add_special = session.length() == 0,
                                 .parse_special = true,
                                 .after = tokenizer.after(session.recent())});
}

}  // namespace

TextSession::TextSession(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
TextSession::TextSession(const TextSession& other)
    : parts_(std::make_unique<Parts>(*other.parts_)) {}
TextSession& TextSession::operator=(const TextSession& other) {
  if (this != &other) parts_ = std::make_unique<Parts>(*other.parts_);
  return *this;
}
TextSession::TextSession(TextSession&&) noexcept = default;
TextSession& TextSession::operator=(TextSession&&) noexcept = default;
TextSession::~TextSession() = default;

void TextSession::append(std::string_view text) {
  const Tokenizer& tokenizer = *parts_->language_model->tokenizer;
  parts_->session.append_prompt(tokenizer, tokens_of(text, parts_->session, tokenizer));
}

Continuation TextSession::generate(std::string_view prompt, const ContinueOptions& options,
                                   const TextCallback& on_text) {
  const LanguageModel::Parts& parts = *parts_->language_model;
  const std::vector<int32_t> tokens = tokens_of(prompt, parts_->session, *parts.tokenizer);
  const Generated result =
      pronghorn::generate(*parts.model, *parts.tokenizer, parts_->session, tokens,
                          internal(options, *parts.model, parts.end_tokens), on_text);
  return {result.text,   end_of(result.end),    result.prompt_tokens,
          result.tokens, result.prompt_seconds, result.decode_seconds};
}

int64_t TextSession::length() const { return parts_->session.length(); }

int64_t TextSession::state_bytes() const { return parts_->session.state().bytes(); }

void TextSession::save(const std::filesystem::path& file) const { parts_->session.save(file); }

}  // namespace pronghorn
