// TextRun: the texts that one request has written for it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "serve/http/service.h"

namespace pronghorn::serve {

// What happened to one of the texts.
struct Delivery {
  size_t choice = 0;  // which of them, in the order of submit()
  std::string text;   // whole characters
  std::vector<WrittenToken> tokens;
  std::optional<TextSummary> end;  // once, last
};

// Deliveries on their way from the thread that steps to the one that answers.
class Mailbox {
 public:
  // What nobody takes is not kept beyond some number.
  void put(Delivery delivery);
  bool overflown() const { return overflown_; }
  // Waits for at most so long.
  std::optional<Delivery> take(double seconds);

 private:
  std::mutex mutex_;
  std::condition_variable filled_;
  std::deque<Delivery> deliveries_;
  std::atomic<bool> overflown_{false};
};

class TextRun {
 public:
  // All must outlive it.
  TextRun(Service& service, std::shared_ptr<ServedModel> model, Call& call);
  // Ends the texts that are still being written.
  ~TextRun();
  TextRun(const TextRun&) = delete;
  TextRun& operator=(const TextRun&) = delete;

  // Queues a text; its callbacks are replaced. Throws what Engine::submit does, and ApiError for a
  // prompt that does not fit the context.
  void submit(TextRequest request);

  // The next delivery; nothing when all texts have ended. on_silence: called when nothing has come
  // for ServerOptions::comment_seconds; may be empty. Throws ClientGone, and ApiError if a text
  // failed or the server does not wait for it any longer.
  std::optional<Delivery> next(const std::function<void()>& on_silence = {});

  const ServedModel& model() const { return *model_; }
  size_t choices() const { return ids_.size(); }
  const TextSummary& summary(size_t choice) const { return *summaries_[choice]; }
  // Over all texts; each prompt is counted once, although `n` texts continue it.
  TextSummary total() const;
  // For texts that continue the prompt of an earlier one.
  void count_prompts(std::vector<bool> counted) { counted_ = std::move(counted); }

 private:
  void keep(size_t choice, const TextSummary& summary);
  // Throws if the text is no longer wanted.
  void check_wanted() const;
  // Records the delivery. Throws for a text that did not end by itself.
  void take(const Delivery& delivery);

  Service& service_;
  std::shared_ptr<ServedModel> model_;
  Call& call_;
  double begin_;
  double quiet_since_;  // when something was last to be told
  std::shared_ptr<Mailbox> mailbox_;
  std::vector<int64_t> ids_;
  std::vector<std::optional<TextSummary>> summaries_;
  std::vector<bool> counted_;  // whether the prompt of a choice counts; empty: all do
};

// Throws ApiError if a prompt of `tokens` leaves no room for `wanted` more in the context.
void check_fits(const ServedModel& model, int64_t tokens, int64_t wanted);

}  // namespace pronghorn::serve
