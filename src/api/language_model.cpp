#include <algorithm>
#include <atomic>

#include "api/parts.h"
#include "base/error.h"
#include "base/log.h"
#include "base/threads.h"
#include "decode/text_model.h"
#include "lab/measure.h"
#include "train/evaluate.h"
#include "train/text_source.h"

namespace pronghorn {
namespace {

constexpr int64_t kBytes = 256;

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

LanguageModel LanguageModel::load(const std::filesystem::path& checkpoint,
                                  const std::filesystem::path& adapter) {
  set_up_messages();
  auto parts = std::make_shared<Parts>();
  TextModel loaded = load_text_model(checkpoint, adapter);
  parts->model = std::move(loaded.model);
  parts->tokenizer = std::move(loaded.tokenizer);
  parts->format = std::move(loaded.format);
  parts->end_tokens =
      parts->format.end_tokens(*parts->tokenizer, parts->model->config().vocab_size);
  parts->grammars =
      std::make_shared<GrammarStore>(parts->tokenizer, parts->model->config().vocab_size);
  return LanguageModel(std::move(parts));
}

MemoryEstimate LanguageModel::estimate(const std::filesystem::path& checkpoint, int64_t tokens,
                                       CacheType cache) {
  set_up_messages();
  const std::unique_ptr<Model> model = Model::outline(load_config(checkpoint));
  return {weight_file_bytes(checkpoint), model->predicted_state_bytes(tokens, dtype_of(cache))};
}

LanguageModel LanguageModel::build(const std::filesystem::path& config, uint64_t seed) {
  set_up_messages();
  ModelConfig read = load_config(config);
  if (read.vocab_size == 0) set_vocabulary(read, kBytes);
  require(read.vocab_size >= kBytes, config.string(),
          "vocab_size {} is too small for a vocabulary of bytes", read.vocab_size);
  auto parts = std::make_shared<Parts>();
  parts->model = std::make_unique<Model>(std::move(read), seed);
  parts->tokenizer = make_byte_tokenizer();
  parts->grammars =
      std::make_shared<GrammarStore>(parts->tokenizer, parts->model->config().vocab_size);
  return LanguageModel(std::move(parts));
}

void LanguageModel::save(const std::filesystem::path& directory) const {
  parts_->model->save(directory);
  parts_->tokenizer->save(directory);
}

int64_t LanguageModel::parameter_count() const { return parts_->model->parameter_count(); }

int64_t LanguageModel::active_parameter_count() const {
  return parts_->model->active_parameter_count();
}

int64_t LanguageModel::vocab_size() const { return parts_->model->config().vocab_size; }

int64_t LanguageModel::hidden_size() const { return parts_->model->config().hidden_size; }

int64_t LanguageModel::layers() const {
  return static_cast<int64_t>(parts_->model->blocks().size());
}

int64_t LanguageModel::trained_context() const {
  return pronghorn::trained_context(parts_->model->config()).tokens;
}

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

std::vector<int32_t> LanguageModel::end_tokens() const {
  std::vector<int32_t> tokens = parts_->end_tokens;
  const std::optional<int32_t> eos = parts_->tokenizer->eos();
  if (eos && std::find(tokens.begin(), tokens.end(), *eos) == tokens.end()) tokens.push_back(*eos);
  return tokens;
}

bool LanguageModel::has_chat_template() const { return parts_->format.has_template(); }

std::string LanguageModel::apply_template(const std::vector<Message>& messages,
                                          bool answer_follows) const {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Message& message : messages) {
    list.push_back({{"role", message.role}, {"content", message.content}});
  }
  return parts_->format.render({{"messages", list}, {"add_generation_prompt", answer_follows}});
}

TextSession LanguageModel::start(CacheType cache) const {
  const DType type = dtype_of(cache);
  return TextSession(std::make_unique<TextSession::Parts>(
      TextSession::Parts{parts_, Session(*parts_->model, type), type}));
}

Continuation LanguageModel::generate(std::string_view prompt, const ContinueOptions& options,
                                     const TextCallback& on_text) const {
  return start().generate(prompt, options, on_text);
}

std::vector<Continuation> LanguageModel::generate(const std::vector<std::string>& prompts,
                                                  const ContinueOptions& options) const {
  const GenerateOptions generate = generate_options(options, *parts_);
  std::vector<Session> sessions(prompts.size(), Session(*parts_->model));
  std::vector<std::vector<int32_t>> tokens;
  for (const std::string& prompt : prompts) tokens.push_back(tokenize(prompt));
  std::vector<Generation> generations;
  for (size_t i = 0; i < prompts.size(); ++i) {
    generations.push_back({&sessions[i], tokens[i], generate, {}, {}});
  }
  const std::unique_ptr<Speculation> speculation = speculation_of(options, *parts_);
  std::vector<Continuation> results;
  for (const Generated& generated :
       pronghorn::generate(*parts_->model, *parts_->tokenizer, generations, speculation.get())) {
    results.push_back(continuation_of(generated));
  }
  return results;
}

Evaluation LanguageModel::evaluate(const std::vector<std::filesystem::path>& data, int64_t window,
                                   Rounding rounding) const {
  if (window == 0) window = default_window(parts_->model->config());
  if (window < 1 || window > kMaxWindow) {
    throw UsageError("window", fmt::format("{} tokens", window),
                     fmt::format("from 1 to {}", kMaxWindow));
  }
  TextScore score;
  for_each_document(data, [&](std::string_view text, const std::string&) {
    const std::vector<int32_t> tokens = parts_->tokenizer->encode(text);
    TextScore part =
        evaluate_tokens(*parts_->model, precision_of(rounding, *parts_->model), tokens, window);
    part.bytes = predicted_bytes(*parts_->tokenizer, text, tokens);
    score += part;
  });
  require(score.tokens > 0, "evaluate", "no text has a second token to predict");
  return {score.tokens,       score.bytes,           score.nll,
          score.perplexity(), score.bits_per_byte(), parts_->model->config().diffusion.has_value()};
}

Speed LanguageModel::measure(const SpeedOptions& options) const {
  if (options.prompt < 1 || options.generate < 1 || options.batch < 1 || options.repeat < 1) {
    throw UsageError("measure", "nothing to measure", "lengths, batch and repeat are at least 1");
  }
  lab::BenchOptions bench;
  bench.prompt = options.prompt;
  bench.generate = options.generate;
  bench.batch = options.batch;
  bench.repeat = options.repeat;
  bench.precision = precision_of(options.rounding, *parts_->model);
  const lab::BenchResult result = lab::bench_model(*parts_->model, bench);
  return {result.prefill.median, result.decode.median, result.state_bytes};
}

}  // namespace pronghorn
