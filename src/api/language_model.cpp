#include <algorithm>
#include <atomic>

#include "api/parts.h"
#include "base/error.h"
#include "base/log.h"
#include "base/threads.h"
#include "formats/chat_format.h"
#include "train/evaluate.h"
#include "train/text_source.h"

namespace pronghorn {
namespace {

constexpr int64_t kBytes = 256;
constexpr int64_t kDefaultWindow = 1024;  // for models that do not say how they were trained

std::atomic<bool> messages_set_up{false};

}  // namespace

void show_messages(bool shown) {
  messages_set_up = true;
  set_up_log(!shown);
  Progress::set_enabled(shown);
}

void set_up_messages() {
  if (!messages_set_up.exchange(true)) show_messages(false);
}

void use_threads(int count) {
  if (count < 1) throw UsageError("use_threads", fmt::format("{} threads", count), "at least 1");
  set_thread_count(count);
}

LanguageModel::LanguageModel(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}

LanguageModel LanguageModel::load(const std::filesystem::path& directory) {
  set_up_messages();
  auto parts = std::make_shared<Parts>();
  parts->model = Model::load(directory);
  parts->tokenizer = load_tokenizer(directory);
  parts->end_tokens =
      ChatFormat::load(directory).end_tokens(*parts->tokenizer, parts->model->config().vocab_size);
  require(parts->tokenizer->vocab_size() <= parts->model->config().vocab_size, directory.string(),
          "its tokenizer has {} tokens and its model {}", parts->tokenizer->vocab_size(),
          parts->model->config().vocab_size);
  return LanguageModel(std::move(parts));
}

LanguageModel LanguageModel::build(const std::filesystem::path& config, uint64_t seed) {
  set_up_messages();
  ModelConfig read = load_config(config);
  if (read.vocab_size == 0) read.vocab_size = kBytes;
  require(read.vocab_size >= kBytes, config.string(),
          "vocab_size {} is too small for a vocabulary of bytes", read.vocab_size);
  auto parts = std::make_shared<Parts>();
  parts->model = std::make_unique<Model>(std::move(read), seed);
  parts->tokenizer = make_byte_tokenizer();
  return LanguageModel(std::move(parts));
}

void LanguageModel::save(const std::filesystem::path& directory) const {
  parts_->model->save(directory);
  parts_->tokenizer->save(directory);
}

int64_t LanguageModel::parameter_count() const { return parts_->model->parameter_count(); }

int64_t LanguageModel::vocab_size() const { return parts_->model->config().vocab_size; }

std::string LanguageModel::config_json() const {
  return write_pronghorn_config(parts_->model->config()).dump(2);
}

int64_t LanguageModel::state_bytes(int64_t tokens, CacheType cache) const {
  return parts_->model->predicted_state_bytes(tokens, dtype_of(cache));
}

std::vector<int32_t> LanguageModel::tokenize(std::string_view text, bool special) const {
  return parts_->tokenizer->encode(text, {.add_special = special, .parse_special = special});
}

std::string LanguageModel::detokenize(std::span<const int32_t> ids) const {
  return parts_->tokenizer->decode(ids);
}

TextSession LanguageModel::start(CacheType cache) const {
  return TextSession(std::make_unique<TextSession::Parts>(
      TextSession::Parts{parts_, Session(*parts_->model, dtype_of(cache))}));
}

TextSession LanguageModel::resume(const std::filesystem::path& file, CacheType cache) const {
  return TextSession(std::make_unique<TextSession::Parts>(
      TextSession::Parts{parts_, Session::load(file, *parts_->model, dtype_of(cache))}));
}

Continuation LanguageModel::generate(std::string_view prompt, const ContinueOptions& options,
                                     const TextCallback& on_text) const {
  return start().generate(prompt, options, on_text);
}

Evaluation LanguageModel::evaluate(const std::vector<std::filesystem::path>& data, int64_t window,
                                   Rounding rounding) const {
  const nlohmann::json& train = parts_->model->config().train;
  if (window == 0)
    window = train.is_null() ? kDefaultWindow : train.value("window", kDefaultWindow);
  if (window < 1 || window > kMaxWindow) {
    throw UsageError("window", fmt::format("{} tokens", window),
                     fmt::format("from 1 to {}", kMaxWindow));
  }
  TextScore score;
  for_each_document(data, [&](std::string_view text, const std::string&) {
    const std::vector<int32_t> tokens = parts_->tokenizer->encode(text);
    const TextScore part =
        evaluate_tokens(*parts_->model, precision_of(rounding, *parts_->model), tokens, window);
    score.tokens += part.tokens;
    score.nll += part.nll;
    score.bytes += predicted_bytes(*parts_->tokenizer, text, tokens);
  });
  require(score.tokens > 0, "evaluate", "no text has a second token to predict");
  return {score.tokens, score.bytes, score.nll, score.perplexity(), score.bits_per_byte()};
}

}  // namespace pronghorn
