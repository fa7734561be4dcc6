#include "serve/engine.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "base/log.h"
#include "base/warning.h"
#include "decode/stop_filter.h"
#include "serve/engine_parts.h"

namespace pronghorn {
namespace {

// Most tokens beside the written one whose log-probabilities a request can ask for.
constexpr int kMostLikeliest = 1000;

void check_option(const char* name, int64_t value, int64_t least) {
  if (value < least) {
    throw UsageError(name, fmt::format("{} is out of range", value),
                     fmt::format("{} or more", least));
  }
}

const EngineOptions& checked(const EngineOptions& options, const Model& model) {
  if (model.config().diffusion) {
    throw UsageError("serve", "a diffusion model fills in masked tokens, text by text",
                     "write with `generate`; the engine is for models of the next token");
  }
  check_option("sequences", options.sequences, 1);
  check_option("queue_requests", options.queue_requests, 1);
  check_option("queue_tokens", options.queue_tokens, 1);
  check_option("prompt_rows", options.prompt_rows, 1);
  if (!(options.beside >= 0)) {
    throw UsageError("beside", fmt::format("{} is out of range", options.beside), "0 or more");
  }
  check_option("context", options.context, 0);
  check_option("cache_bytes", options.cache_bytes, 0);
  check_option("cache_every", options.cache_every, 1);
  if (options.kv_cache.evicts() && !options.draft.empty()) {
    throw UsageError("draft", "guesses are taken back, which rows that SnapKV or H2O drops are not",
                     "leave out one of the two");
  }
  return options;
}

// The longest text: what is asked for, or what the model was trained for unless it may go on; never
// more than it has positions for.
int64_t longest_text(const Model& model, const EngineOptions& options) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  int64_t wanted = options.context;
  if (wanted == 0) {
    const int64_t trained = trained_context(model.config()).tokens;
    const bool grows = state_grows(model) && options.kv_cache.window == 0;
    wanted = trained > 0 && grows ? trained : kNone;
  }
  const int64_t longest = std::min(wanted, position_limit(model));
  return longest == kNone ? 0 : longest;
}

// Whether states keep all rows and nothing else.
bool goes_back(const Model& model, const CacheOptions& kv_cache) {
  const std::shared_ptr<const StateLayout> layout = model.layout(kv_cache);
  for (const std::vector<JournalShape>& layer : layout->layers) {
    for (const JournalShape& shape : layer) {
      const bool rows_alone = shape.anchor_size == 0 && shape.fold_interval == 0 &&
                              shape.blocks.length == 0 && !shape.eviction.is_on();
      if (!rows_alone) return false;
    }
  }
  return true;
}

std::unique_ptr<Speculation> make_speculation(const EngineOptions& options, const Model& model,
                                              const Tokenizer& tokenizer) {
  if (options.draft.empty()) return nullptr;
  SpeculationOptions settings;
  settings.control.draft_tokens = options.draft_tokens;
  return std::make_unique<Speculation>(make_drafter(options.draft, model, tokenizer), settings);
}

}  // namespace

QueueFull::QueueFull(int64_t requests_waiting, int64_t tokens_waiting, double seconds)
    : Error("queue",
            fmt::format("{} requests with {} tokens wait", requests_waiting, tokens_waiting),
            fmt::format("try again in {:.0f} s", std::max(1.0, seconds))),
      requests(requests_waiting),
      tokens(tokens_waiting),
      retry_after_seconds(seconds) {}

Engine::Parts::Parts(std::shared_ptr<const Model> model_given,
                     std::shared_ptr<const Tokenizer> tokenizer_given,
                     const EngineOptions& options_given)
    : model(std::move(model_given)),
      tokenizer(std::move(tokenizer_given)),
      options(checked(options_given, *model)),
      context(longest_text(*model, options)),
      speculation_(make_speculation(options, *model, *tokenizer)),
      batch_(*model, *tokenizer, options.precision, static_cast<size_t>(options.sequences),
             speculation_.get(), true),
      running_(static_cast<size_t>(options.sequences)),
      cache_(
          options.cache_bytes,
          [this](int64_t from, int64_t to) {
            const TokenCost cost = model->cost(static_cast<double>(from + to) / 2);
            return static_cast<double>(to - from) * (cost.matmul + cost.sequence);
          },
          goes_back(*model, options.kv_cache)) {
  if (!options.cache_directory.empty() && options.cache_bytes > 0) open_files();
  refresh_counters();
}

const KeptStateForm& Engine::Parts::form() {
  if (form_.layout == nullptr) {
    form_ = {computed_fingerprint(*model, options.kv_cache, options.precision),
             model->layout(options.kv_cache), model->config().vocab_size};
  }
  return form_;
}

std::optional<KeptState> Engine::Parts::kept(const std::string& salt,
                                             std::span<const int32_t> tokens,
                                             std::vector<int64_t> message_ends,
                                             std::span<const TokenRange> answers) {
  // The cache finds what is shorter than a text: a token more, which is never read, lets it find
  // this one whole. A cut before it changes no piece.
  std::vector<int32_t> longer(tokens.begin(), tokens.end());
  longer.push_back(0);
  if (message_ends.empty() || message_ends.back() < std::ssize(tokens)) {
    message_ends.push_back(std::ssize(tokens));
  }
  const std::vector<ReadingRun> plan = reading_plan(std::ssize(longer), message_ends, answers);
  PrefixCache::Found found = cache_.find(salt, longer, plan);
  if (PrefixCache::length(found.place) == 0) return {};
  return KeptState{salt, PrefixCache::pieces(found.place), std::move(found.state)};
}

bool Engine::Parts::keep(const KeptState& kept) {
  const PrefixCache::Place place = place_of(cache_, kept);
  cache_.keep(place, kept.state);
  refresh_counters();
  return PrefixCache::is_kept(place);
}

void Engine::Parts::open_files() {
  CacheFiles::Options files;
  files.directory = options.cache_directory;
  files.bytes = options.cache_bytes;
  files.form = form();
  files_ = std::make_unique<CacheFiles>(std::move(files), cache_);
}

Engine::Parts::~Parts() {
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    if (running_[slot] != nullptr) end(slot, TextSummary::End::cancelled);
  }
  for (const TextPointer& text : std::exchange(waiting_, {})) {
    report(*text, TextSummary::End::cancelled);
  }
}

int64_t Engine::Parts::image_rows(const TextRequest& request) const {
  return request.image == nullptr ? 0 : model->config().vision->rows();
}

void Engine::Parts::check(const TextRequest& request) const {
  const GenerateOptions& asked = request.options;
  if (request.image != nullptr) check_seen(*model, *request.image);
  const int64_t tokens = std::ssize(request.prompt) + image_rows(request);
  if (request.prompt.empty()) {
    throw UsageError("prompt", "it is empty", "begin the text with a token");
  }
  for (const int32_t token : request.prompt) {
    if (token < 0 || token >= model->config().vocab_size) {
      throw UsageError("prompt", fmt::format("token {} is none of a vocabulary of {}", token,
                                             model->config().vocab_size));
    }
  }
  if (context > 0 && tokens >= context) {
    throw UsageError("prompt",
                     fmt::format("its {} tokens leave no room in a context of {}", tokens, context),
                     "shorten it");
  }
  check_sampling(asked.sampling);
  check_option("max_tokens", asked.max_tokens, 0);
  check_option("min_tokens", asked.min_tokens, 0);
  if (request.likeliest < -1 || request.likeliest > kMostLikeliest) {
    throw UsageError("likeliest", fmt::format("{} is out of range", request.likeliest),
                     fmt::format("-1 to {}", kMostLikeliest));
  }
  StopFilter{asked.stop};  // throws
}

void Engine::Parts::require_room(int64_t tokens) {
  const auto requests = static_cast<int64_t>(waiting_.size());
  const bool fits = requests < options.queue_requests &&
                    (requests == 0 || counters_.waiting_tokens + tokens <= options.queue_tokens);
  if (fits) return;
  ++counters_.refused;
  // Room for a request comes with the next that ends; for tokens, with as many of those that wait.
  const double each = static_cast<double>(counters_.waiting_tokens) / static_cast<double>(requests);
  const double over = static_cast<double>(counters_.waiting_tokens + tokens - options.queue_tokens);
  throw QueueFull(requests, counters_.waiting_tokens,
                  seconds_per_end_ *
                      std::clamp(over / std::max(1.0, each), 1.0, static_cast<double>(requests)));
}

int64_t Engine::Parts::submit(TextRequest request) {
  check(request);
  auto text = std::make_unique<ServedText>();
  text->plan = reading_plan(std::ssize(request.prompt), request.message_ends, request.answers);
  text->submitted = now_seconds();
  text->request = std::move(request);
  GenerateOptions& asked = text->request.options;
  asked.likeliest = text->request.likeliest;
  asked.context = ContextLimit::ignore;  // there is one limit, the engine's
  if (context > 0) {
    const int64_t room = context - text->prompt_tokens() - image_rows(text->request);
    asked.max_tokens = std::min(asked.max_tokens, room);
  }
  const std::scoped_lock lock(mutex_);
  require_room(text->prompt_tokens());
  text->id = next_id_++;
  known_.insert(text->id);
  ++counters_.waiting;
  counters_.waiting_tokens += text->prompt_tokens();
  waiting_.push_back(std::move(text));
  changed_.notify_all();
  return waiting_.back()->id;
}

void Engine::Parts::cancel(int64_t id) {
  const std::scoped_lock lock(mutex_);
  if (!known_.contains(id)) return;
  cancelled_.insert(id);
  changed_.notify_all();
}

bool Engine::Parts::wait(double seconds) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::duration<double>(seconds), [&] {
    return !waiting_.empty() || !cancelled_.empty() || counters_.running > 0;
  });
}

EngineCounters Engine::Parts::counters() const {
  const std::scoped_lock lock(mutex_);
  return counters_;
}

Engine::Engine(std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer,
               const EngineOptions& options)
    : parts_(std::make_unique<Parts>(std::move(model), std::move(tokenizer), options)) {}

Engine::~Engine() = default;

int64_t Engine::submit(TextRequest request) { return parts_->submit(std::move(request)); }
void Engine::cancel(int64_t id) { parts_->cancel(id); }
bool Engine::step() { return parts_->step(); }
bool Engine::wait(double seconds) { return parts_->wait(seconds); }
EngineCounters Engine::counters() const { return parts_->counters(); }
const Model& Engine::model() const { return *parts_->model; }
const Tokenizer& Engine::tokenizer() const { return *parts_->tokenizer; }
int64_t Engine::context() const { return parts_->context; }
const KeptStateForm& Engine::kept_state_form() { return parts_->form(); }
std::optional<KeptState> Engine::kept(const std::string& salt, std::span<const int32_t> tokens,
                                      std::vector<int64_t> message_ends,
                                      std::span<const TokenRange> answers) {
  return parts_->kept(salt, tokens, std::move(message_ends), answers);
}
bool Engine::keep(const KeptState& kept) { return parts_->keep(kept); }

}  // namespace pronghorn
