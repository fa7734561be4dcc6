#include "serve/http/served_model.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/quote.h"
#include "decode/conversation.h"
#include "decode/text_model.h"
#include "model/trained_context.h"
#include "model/weight_bytes.h"
#include "serve/http/api_error.h"

namespace pronghorn::serve {
namespace {

constexpr double kLoadingSeconds = 5;  // after which it is worth asking again

}  // namespace

std::shared_ptr<ServedModel> ServedModel::load(const ModelSource& source) {
  auto served = std::make_shared<ServedModel>();
  served->name = source.name;
  served->created = std::time(nullptr);
  TextModel loaded = load_text_model(source.path, source.adapter);
  served->model = std::move(loaded.model);
  served->tokenizer = std::move(loaded.tokenizer);
  served->format = std::move(loaded.format);
  served->end_tokens =
      served->format.end_tokens(*served->tokenizer, served->model->config().vocab_size);
  const std::vector<int32_t> closing = closing_tokens(served->format, *served->tokenizer);
  served->end_tokens.insert(served->end_tokens.end(), closing.begin(), closing.end());
  served->grammars =
      std::make_unique<GrammarStore>(served->tokenizer, served->model->config().vocab_size);
  served->options = source.engine;
  served->options.precision = source.precision.value_or(stored_precision(*served->model));
  served->engine = std::make_unique<Engine>(served->model, served->tokenizer, served->options);
  return served;
}

ExpectedMemory expected_memory(const ModelSource& source) {
  constexpr int64_t kEndless = 4096;
  const std::unique_ptr<Model> model = Model::outline(load_config(source.path));
  int64_t tokens = source.engine.context;
  if (tokens == 0) tokens = trained_context(model->config()).tokens;
  if (tokens == 0) tokens = kEndless;
  return {weight_file_bytes(source.path),
          model->predicted_state_bytes(tokens, source.engine.kv_cache)};
}

void check_source(const ModelSource& source) {
  if (ends_in(source.path, ".json") && !std::filesystem::is_directory(source.path)) {
    throw Error(source.path.string(), "is a configuration, without the weights of a model",
                "train it first: pronghorn train CONFIG --data TEXT");
  }
  const ModelConfig config = load_config(source.path);
  if (config.diffusion) {
    throw Error(source.path.string(), "is a diffusion model, which fills in masked tokens",
                "write with `pronghorn generate`");
  }
  if (config.of_measurements()) {
    throw Error(source.path.string(), "is a model of images or sound, not of texts");
  }
  expected_memory(source);
}

int64_t used_memory(const ServedModel& model) {
  const EngineCounters counters = model.engine->counters();
  return resident_weight_bytes(*model.model, model.options.precision) + counters.state_bytes +
         counters.cache_bytes;
}

ModelTable::Entry& ModelTable::entry(const std::string& name) {
  const auto found = std::ranges::find(entries_, name, &Entry::name);
  return found != entries_.end() ? *found : entries_.emplace_back(Entry{name, nullptr, {}});
}

void ModelTable::announce(const std::string& name, std::function<void()> demand) {
  const std::lock_guard lock(mutex_);
  Entry& own = entry(name);
  own.loading = demand == nullptr;
  own.demand = std::move(demand);
}

void ModelTable::ready(std::shared_ptr<ServedModel> model) {
  {
    const std::lock_guard lock(mutex_);
    Entry& own = entry(model->name);
    own.problem.clear();
    own.loading = false;
    own.asked = now_seconds();
    own.model = std::move(model);
  }
  changed_.notify_all();
}

void ModelTable::failed(const std::string& name, const std::string& problem) {
  {
    const std::lock_guard lock(mutex_);
    Entry& own = entry(name);
    own.problem = problem;
    own.loading = false;
  }
  changed_.notify_all();
}

std::shared_ptr<ServedModel> ModelTable::find(const std::string& name, double wait_seconds) {
  std::unique_lock lock(mutex_);
  const auto found =
      name.empty() ? entries_.begin() : std::ranges::find(entries_, name, &Entry::name);
  if (found == entries_.end()) {
    std::vector<std::string> names;
    for (const Entry& entry : entries_) names.push_back(entry.name);
    throw ApiError(404, "model_not_found",
                   fmt::format("there is no model {} here (choose from {})", quote(name),
                               fmt::join(names, ", ")),
                   "model");
  }
  const auto index = static_cast<size_t>(found - entries_.begin());
  if (found->model == nullptr && found->demand && !found->loading) {
    found->loading = true;
    found->problem.clear();
    const std::function<void()> demand = found->demand;
    lock.unlock();
    demand();
    lock.lock();
  }
  if (entries_[index].demand) {
    changed_.wait_for(lock, std::chrono::duration<double>(wait_seconds),
                      [&] { return !entries_[index].loading; });
  }
  Entry& entry = entries_[index];
  entry.asked = now_seconds();
  if (entry.model != nullptr) return entry.model;
  if (!entry.problem.empty()) {
    throw ApiError(503, "model_not_loaded", "the model could not be loaded: " + entry.problem,
                   "model");
  }
  ApiError error(503, "model_loading", "the model is being loaded", "model");
  error.retry_after_seconds = kLoadingSeconds;
  throw error;
}

std::shared_ptr<ServedModel> ModelTable::take_oldest() {
  const std::lock_guard lock(mutex_);
  Entry* oldest = nullptr;
  for (Entry& entry : entries_) {
    // Whoever uses a model has it from here, and nobody gets it meanwhile.
    const bool unused = entry.model != nullptr && entry.model.use_count() == 1;
    if (!entry.demand || !unused) continue;
    if (oldest == nullptr || entry.asked < oldest->asked) oldest = &entry;
  }
  return oldest == nullptr ? nullptr : std::move(oldest->model);
}

std::vector<std::shared_ptr<ServedModel>> ModelTable::all() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<ServedModel>> models;
  for (const Entry& entry : entries_) {
    if (entry.model != nullptr) models.push_back(entry.model);
  }
  return models;
}

std::vector<ModelTable::Entry> ModelTable::entries() const {
  const std::lock_guard lock(mutex_);
  return entries_;
}

bool ModelTable::ready() const {
  const std::lock_guard lock(mutex_);
  return std::ranges::all_of(
      entries_, [](const Entry& entry) { return entry.model != nullptr || entry.demand; });
}

}  // namespace pronghorn::serve
