// The inside of an engine. What the lock guards is told from what only the thread that steps uses.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "decode/text_batch.h"
#include "serve/cache_files.h"
#include "serve/engine.h"
#include "serve/prefix_cache.h"
#include "serve/served_text.h"

namespace pronghorn {

class Engine::Parts {
 public:
  Parts(std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer,
        const EngineOptions& options);
  ~Parts();

  int64_t submit(TextRequest request);
  void cancel(int64_t id);
  bool step();
  bool wait(double seconds);
  EngineCounters counters() const;
  const KeptStateForm& form();
  std::optional<KeptState> kept(const std::string& salt, std::span<const int32_t> tokens,
                                std::vector<int64_t> message_ends,
                                std::span<const TokenRange> answers);
  bool keep(const KeptState& kept);

  const std::shared_ptr<const Model> model;
  const std::shared_ptr<const Tokenizer> tokenizer;
  const EngineOptions options;
  const int64_t context;

 private:
  using TextPointer = std::unique_ptr<ServedText>;

  void open_files();
  void check(const TextRequest& request) const;
  int64_t image_rows(const TextRequest& request) const;
  void require_room(int64_t tokens);

  // Each returns whether it did something.
  bool end_cancelled();
  bool admit();
  bool run();

  void join(TextPointer text);
  void look_up(ServedText& text);
  void after_piece(ServedText& text, const ReadingRun& piece);
  void deliver(size_t slot);
  void end(size_t slot, TextSummary::End end);
  void keep_end(ServedText& text, const Generated& result);
  void finish(ServedText& text, const Generated& result);
  // Of a text that leaves the queue or the batch.
  void report(ServedText& text, TextSummary::End end);
  void count_end(const TextSummary& summary);
  void refresh_counters();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<TextPointer> waiting_;
  std::set<int64_t> cancelled_, known_;  // known: waiting or running
  int64_t next_id_ = 1;
  EngineCounters counters_;
  double last_end_ = 0, seconds_per_end_ = 1;  // between the ends of texts, of late

  std::unique_ptr<Speculation> speculation_;
  TextBatch batch_;
  std::vector<TextPointer> running_;  // by slot
  PrefixCache cache_;
  KeptStateForm form_;  // without a layout: not known yet
  std::unique_ptr<CacheFiles> files_;
};

}  // namespace pronghorn
