// The models that a server has, by name.
#pragma once

#include <cstdint>
#include <ctime>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "formats/chat_format.h"
#include "formats/tokenizer.h"
#include "model/model.h"
#include "serve/engine.h"

namespace pronghorn::serve {

// Which model, under which name, and how it is run.
struct ModelSource {
  std::filesystem::path path, adapter;  // as for Model::load and Adapter::load; adapter: or empty
  std::string name;
  EngineOptions engine;
  std::optional<Precision> precision;  // none: stored_precision()
};

// A model with all that answering requests needs.
struct ServedModel {
  std::string name;
  std::time_t created = 0;  // when it was loaded
  std::shared_ptr<const Model> model;
  std::shared_ptr<const Tokenizer> tokenizer;
  ChatFormat format;
  std::vector<int32_t> end_tokens;  // of its files, and the one that closes an answer in a chat
  EngineOptions options;            // of its engine
  std::unique_ptr<Engine> engine;

  // Throws Error for what is wrong with the files.
  static std::shared_ptr<ServedModel> load(const ModelSource& source);
};

// Models by name, some of which may still be loading. From any thread.
class ModelTable {
 public:
  // Announces a model; until one of the next is called it counts as loading.
  void announce(const std::string& name);
  void ready(std::shared_ptr<ServedModel> model);
  void failed(const std::string& name, const std::string& problem);

  // The model of that name; empty: the first. Throws ApiError: 404 for a name that nobody has, 503
  // for one that is loading or could not be loaded.
  std::shared_ptr<ServedModel> find(const std::string& name) const;
  // Those that are ready, in the order in which they were announced.
  std::vector<std::shared_ptr<ServedModel>> all() const;

  struct Entry {
    std::string name;
    std::shared_ptr<ServedModel> model;  // null: not ready
    std::string problem;                 // why it could not be loaded; empty: it is loading
  };
  std::vector<Entry> entries() const;
  // Whether all of them are ready.
  bool ready() const;

 private:
  Entry& entry(const std::string& name);

  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
};

}  // namespace pronghorn::serve
