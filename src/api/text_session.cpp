#include <algorithm>
#include <cstring>

#include "api/parts.h"
#include "base/error.h"

namespace pronghorn {
namespace {

// What a session's file keeps of the text, with its format.
constexpr std::string_view kTextMark = "pronghorn text ";

Continuation::End end_of(Generated::End end) {
  switch (end) {
    case Generated::End::stop_string:
      return Continuation::End::stop_text;
    case Generated::End::end_token:
      return Continuation::End::end_token;
    case Generated::End::interrupted:
      return Continuation::End::stopped;
    case Generated::End::length:
      break;
  }
  return Continuation::End::length;
}

std::vector<int32_t> tokens_of(std::string_view text, const Session& session,
                               const Tokenizer& tokenizer) {
  return tokenizer.encode(text, session.next_text(tokenizer));
}

std::string attachment_of(const std::vector<int32_t>& ids) {
  return std::string(kTextMark) +
         std::string(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t));
}

// The text of a session from a file; throws Error where the file does not hold all of it.
std::vector<int32_t> ids_of(const Session& session, const std::filesystem::path& file) {
  const auto length = static_cast<size_t>(session.length());
  if (length == static_cast<size_t>(session.seen()) + session.recent().size()) {
    std::vector<int32_t> ids(static_cast<size_t>(session.seen()));
    ids.insert(ids.end(), session.recent().begin(), session.recent().end());
    return ids;
  }
  const std::string_view text = session.attachment();
  require(text.starts_with(kTextMark) && text.size() == kTextMark.size() + length * sizeof(int32_t),
          file.string(),
          "it does not hold the text of its {} tokens (was it saved by another "
          "program than TextSession::save?)",
          length);
  std::vector<int32_t> ids(length);
  std::memcpy(ids.data(), text.data() + kTextMark.size(), length * sizeof(int32_t));
  require(std::equal(session.recent().begin(), session.recent().end(),
                     ids.end() - std::ssize(session.recent())),
          file.string(), "its text does not end as its session does");
  return ids;
}

}  // namespace

GenerateOptions generate_options(const ContinueOptions& options,
                                 const LanguageModel::Parts& parts) {
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
  result.end_tokens = parts.end_tokens;
  result.grammar = written_grammar(options.grammar, options.json_schema, *parts.grammars);
  result.precision = precision_of(options.rounding, *parts.model);
  result.diffusion.steps = options.steps;
  result.diffusion.part = options.part;
  result.diffusion.threshold = options.threshold;
  return result;
}

Continuation continuation_of(const Generated& generated) {
  Continuation result;
  result.text = generated.text;
  result.ids = generated.ids;
  result.end = end_of(generated.end);
  result.prompt_tokens = generated.prompt_tokens;
  result.tokens = generated.tokens;
  result.prompt_seconds = generated.prompt_seconds;
  result.decode_seconds = generated.decode_seconds;
  return result;
}

std::unique_ptr<Speculation> speculation_of(const ContinueOptions& options,
                                            const LanguageModel::Parts& parts) {
  if (options.draft.empty()) return nullptr;
  return std::make_unique<Speculation>(make_drafter(options.draft, *parts.model, *parts.tokenizer));
}

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

TextSession LanguageModel::resume(const std::filesystem::path& file, CacheType cache) const {
  const DType type = dtype_of(cache);
  Session session = Session::load(file, *parts_->model, type);
  std::vector<int32_t> ids = ids_of(session, file);
  parts_->check_ids(ids);
  session.set_attachment({});
  return TextSession(std::make_unique<TextSession::Parts>(
      TextSession::Parts{parts_, std::move(session), type, std::move(ids)}));
}

void TextSession::append(std::string_view text) {
  append_ids(tokens_of(text, parts_->session, *parts_->language_model->tokenizer));
}

void TextSession::append_ids(std::span<const int32_t> ids) {
  parts_->language_model->check_ids(ids);
  parts_->session.append_prompt(*parts_->language_model->tokenizer, ids);
  parts_->ids.insert(parts_->ids.end(), ids.begin(), ids.end());
}

void TextSession::see(const std::filesystem::path& image, Rounding rounding) {
  const Model& model = *parts_->language_model->model;
  Context context;
  context.precision = precision_of(rounding, model);
  parts_->session.see(model, context, read_image_file(image));
  parts_->ids.resize(static_cast<size_t>(parts_->session.seen()));
}

const std::vector<int32_t>& TextSession::ids() const { return parts_->ids; }

std::string TextSession::text() const {
  const auto text = std::span(parts_->ids).subspan(static_cast<size_t>(parts_->session.seen()));
  return parts_->language_model->tokenizer->decode(text);
}

void TextSession::truncate(int64_t length) {
  const int64_t least = parts_->session.seen();
  if (length < least || length > this->length()) {
    throw UsageError("truncate", fmt::format("{} tokens of {}", length, this->length()),
                     least == 0 ? "a number from 0 to the length of the text"
                                : "a number from that of the image's rows to the length");
  }
  const LanguageModel::Parts& model = *parts_->language_model;
  const auto kept = std::span(parts_->ids).first(static_cast<size_t>(length));
  if (!parts_->session.go_back(kept)) {
    if (least > 0) {
      throw Error("truncate", "the state of a recurrence cannot go back so far after an image",
                  "keep a copy of the session, or let a new one see the image");
    }
    Session again(*model.model, parts_->cache_type);
    again.append_prompt(*model.tokenizer, kept);
    parts_->session = std::move(again);
  }
  parts_->ids.resize(kept.size());
}

void TextSession::Parts::unread_last(const Model& model, const Tokenizer& tokenizer) {
  if (!session.pending().empty() || std::ssize(ids) == session.seen()) return;
  const auto kept = std::span(ids).first(ids.size() - 1);
  const DecodeState text = session.text();
  if (!session.go_back(kept)) {  // never by one token after an image
    session = Session(model, cache_type);
    session.append_prompt(tokenizer, kept);
  }
  session.append_prompt(tokenizer, {&ids.back(), 1});
  session.set_text(text);
}

std::vector<float> TextSession::next_logits(Rounding rounding) {
  const LanguageModel::Parts& parts = *parts_->language_model;
  if (length() == parts_->session.seen())
    throw UsageError("next_logits", "the text is empty", "append to it first");
  parts_->unread_last(*parts.model, *parts.tokenizer);
  Context context;
  context.precision = precision_of(rounding, *parts.model);
  const Tensor scores = parts_->session.scores(*parts.model, context);
  return {scores.values().begin(), scores.values().end()};
}

Continuation TextSession::generate(std::string_view prompt, const ContinueOptions& options,
                                   const TextCallback& on_text) {
  const LanguageModel::Parts& parts = *parts_->language_model;
  const GenerateOptions generate = generate_options(options, parts);
  const std::unique_ptr<Speculation> speculation = speculation_of(options, parts);
  const std::vector<int32_t> tokens = tokens_of(prompt, parts_->session, *parts.tokenizer);
  if (tokens.empty()) parts_->unread_last(*parts.model, *parts.tokenizer);
  bool stopped = false;
  std::function<void(std::string_view)> emit;
  std::function<bool()> interrupted;
  if (on_text) {
    emit = [&](std::string_view piece) { stopped = stopped || !on_text(piece); };
    interrupted = [&] { return stopped; };
  }
  const Generated generated =
      pronghorn::generate(*parts.model, *parts.tokenizer, parts_->session, tokens, generate, emit,
                          speculation.get(), interrupted);
  parts_->ids.insert(parts_->ids.end(), tokens.begin(), tokens.end());
  parts_->ids.insert(parts_->ids.end(), generated.ids.begin(), generated.ids.end());
  Continuation result = continuation_of(generated);
  if (speculation != nullptr) {
    result.drafted = speculation->stats().drafted;
    result.accepted = speculation->stats().accepted;
  }
  return result;
}

int64_t TextSession::length() const { return parts_->session.length(); }

int64_t TextSession::state_bytes() const { return parts_->session.state().bytes(); }

void TextSession::save(const std::filesystem::path& file) const {
  Session session = parts_->session;
  session.set_attachment(attachment_of(parts_->ids));
  session.save(file);
}

}  // namespace pronghorn
