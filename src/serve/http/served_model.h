// The models that a server has, by name.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <ctime>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "formats/chat_format.h"
#include "formats/tokenizer.h"
#include "grammar/grammar_store.h"
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
  std::unique_ptr<GrammarStore> grammars;
  std::unique_ptr<Engine> engine;

  // Throws Error for what is wrong with the files.
  static std::shared_ptr<ServedModel> load(const ModelSource& source);
};

// Bytes of memory that a model is going to take, about: its weights as they are stored, and one
// text as long as its context, or of 4096 tokens where that has no end.
struct ExpectedMemory {
  int64_t weights = 0, text = 0;
  int64_t total() const { return weights + text; }
};
// Reads the configuration and the sizes of the weights. Throws Error.
ExpectedMemory expected_memory(const ModelSource& source);
// Reads no more than that. Throws Error for files that hold no model, and for a model that does not
// write texts token by token.
void check_source(const ModelSource& source);
// Bytes that a model takes now: weights, texts that are being written, states that are kept.
int64_t used_memory(const ServedModel& model);

// Models by name, some of which may still be loading. From any thread.
class ModelTable {
 public:
  // Announces a model; until one of the next is called it counts as loading. demand: for a model
  // that is loaded when somebody asks for it; called each time that it is to be.
  void announce(const std::string& name, std::function<void()> demand = {});
  void ready(std::shared_ptr<ServedModel> model);
  void failed(const std::string& name, const std::string& problem);

  // The model of that name; empty: the first. One on demand is waited for, for `wait_seconds` at
  // most. Throws ApiError: 404 for a name that nobody has, 503 for one that is loading or could not
  // be loaded.
  std::shared_ptr<ServedModel> find(const std::string& name, double wait_seconds = 120);
  // Of the models on demand that nobody uses the one that was asked for longest ago. It counts as
  // not loaded from now on. Null: there is none.
  std::shared_ptr<ServedModel> take_oldest();
  // Those that are ready, in the order in which they were announced.
  std::vector<std::shared_ptr<ServedModel>> all() const;

  struct Entry {
    std::string name;
    std::shared_ptr<ServedModel> model;  // null: not ready
    std::string problem;                 // why it could not be loaded; or empty
    bool loading = true;
    std::function<void()> demand = {};  // of a model on demand
    double asked = 0;                   // when it was last
  };
  std::vector<Entry> entries() const;
  // Whether all of them are, but for those on demand.
  bool ready() const;

 private:
  Entry& entry(const std::string& name);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Entry> entries_;
};

}  // namespace pronghorn::serve
