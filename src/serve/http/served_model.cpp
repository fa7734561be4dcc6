#include "serve/http/served_model.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/quote.h"
#include "decode/conversation.h"
#include "decode/text_model.h"
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
  served->options = source.engine;
  served->options.precision = source.precision.value_or(stored_precision(*served->model));
  served->engine = std::make_unique<Engine>(served->model, served->tokenizer, served->options);
  return served;
}

ModelTable::Entry& ModelTable::entry(const std::string& name) {
  const auto found = std::ranges::find(entries_, name, &Entry::name);
  return found != entries_.end() ? *found : entries_.emplace_back(Entry{name, nullptr, {}});
}

void ModelTable::announce(const std::string& name) {
  const std::lock_guard lock(mutex_);
  entry(name);
}

void ModelTable::ready(std::shared_ptr<ServedModel> model) {
  const std::lock_guard lock(mutex_);
  Entry& own = entry(model->name);
  own.problem.clear();
  own.model = std::move(model);
}

void ModelTable::failed(const std::string& name, const std::string& problem) {
  const std::lock_guard lock(mutex_);
  entry(name).problem = problem;
}

std::shared_ptr<ServedModel> ModelTable::find(const std::string& name) const {
  const std::lock_guard lock(mutex_);
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
  if (found->model != nullptr) return found->model;
  if (!found->problem.empty()) {
    throw ApiError(503, "model_not_loaded", "the model could not be loaded: " + found->problem,
                   "model");
  }
  ApiError error(503, "model_loading", "the model is being loaded", "model");
  error.retry_after_seconds = kLoadingSeconds;
  throw error;
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
  return std::ranges::all_of(entries_, [](const Entry& entry) { return entry.model != nullptr; });
}

}  // namespace pronghorn::serve
