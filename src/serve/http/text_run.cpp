#include "serve/http/text_run.h"

#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "serve/http/api_error.h"

namespace pronghorn::serve {
namespace {

constexpr double kLookSeconds = 0.1;  // between two looks at the client

const char* end_name(TextSummary::End end) {
  switch (end) {
    case TextSummary::End::length:
      return "length";
    case TextSummary::End::stop_string:
      return "stop_string";
    case TextSummary::End::end_token:
      return "end_token";
    case TextSummary::End::cancelled:
      return "cancelled";
    case TextSummary::End::failed:
      break;
  }
  return "failed";
}

}  // namespace

void Mailbox::put(Delivery delivery) {
  {
    const std::lock_guard lock(mutex_);
    deliveries_.push_back(std::move(delivery));
  }
  filled_.notify_one();
}

std::optional<Delivery> Mailbox::take(double seconds) {
  std::unique_lock lock(mutex_);
  filled_.wait_for(lock, std::chrono::duration<double>(seconds),
                   [&] { return !deliveries_.empty(); });
  if (deliveries_.empty()) return {};
  Delivery delivery = std::move(deliveries_.front());
  deliveries_.pop_front();
  return delivery;
}

void check_fits(const ServedModel& model, int64_t tokens, int64_t wanted) {
  const int64_t context = model.engine->context();
  if (context == 0 || tokens + wanted <= context) return;
  ApiError error(
      400, "context_length_exceeded",
      fmt::format("the prompt has {} tokens and {} more are asked for; the context of {} "
                  "is {} tokens",
                  tokens, wanted, model.name, context),
      "messages");
  error.details = {
      {"prompt_tokens", tokens}, {"context_length", context}, {"reserved_tokens", wanted}};
  throw error;
}

TextRun::TextRun(Service& service, std::shared_ptr<ServedModel> model, Call& call)
    : service_(service),
      model_(std::move(model)),
      call_(call),
      begin_(now_seconds()),
      mailbox_(std::make_shared<Mailbox>()) {
  call_.record.model = model_->name;
}

TextRun::~TextRun() {
  for (size_t i = 0; i < ids_.size(); ++i) {
    if (!summaries_[i]) model_->engine->cancel(ids_[i]);
  }
  service_.stepper.wake();
}

void TextRun::submit(TextRequest request) {
  const size_t choice = ids_.size();
  // The mailbox outlives this object when texts are cancelled.
  request.on_event = [mailbox = mailbox_, choice](const TextEvent& event) {
    mailbox->put({choice, std::string(event.text), {event.tokens.begin(), event.tokens.end()}, {}});
  };
  request.on_end = [mailbox = mailbox_, choice](const TextSummary& summary) {
    mailbox->put({choice, {}, {}, summary});
  };
  call_.record.prompt_tokens += static_cast<int64_t>(request.prompt.size());
  ids_.push_back(model_->engine->submit(std::move(request)));
  summaries_.emplace_back();
  service_.stepper.wake();
}

void TextRun::keep(size_t choice, const TextSummary& summary) {
  summaries_[choice] = summary;
  RequestRecord& record = call_.record;
  record.ends += (record.ends.empty() ? "" : ",") + std::string(end_name(summary.end));
  record.cached_tokens += summary.cached_tokens;
  record.tokens += summary.tokens;
  record.drafted += summary.drafted;
  record.accepted += summary.accepted;
  record.queue_seconds = std::max(record.queue_seconds, summary.queue_seconds);
  record.prompt_seconds = std::max(record.prompt_seconds, summary.prompt_seconds);
  record.decode_seconds = std::max(record.decode_seconds, summary.decode_seconds);
}

std::optional<Delivery> TextRun::next(const std::function<void()>& on_silence) {
  if (std::ranges::all_of(summaries_, [](const auto& end) { return end.has_value(); })) return {};
  double quiet_since = now_seconds();
  while (true) {
    std::optional<Delivery> delivery = mailbox_->take(kLookSeconds);
    if (call_.client_is_gone()) throw ClientGone();
    if (delivery) {
      if (call_.record.first_token_seconds == 0 && !delivery->end) {
        call_.record.first_token_seconds = now_seconds() - begin_;
      }
      if (!delivery->end) return delivery;
      keep(delivery->choice, *delivery->end);
      if (delivery->end->end == TextSummary::End::failed) {
        throw ApiError(500, "engine_error",
                       "the text could not be written: " + delivery->end->error);
      }
      if (delivery->end->end == TextSummary::End::cancelled) {
        throw ApiError(503, "shutting_down", "the text was ended because the server is ending");
      }
      return delivery;
    }
    if (service_.cutting) {
      throw ApiError(503, "shutting_down", "the server is ending and waits no longer");
    }
    if (on_silence && now_seconds() - quiet_since >= service_.options.comment_seconds) {
      on_silence();
      quiet_since = now_seconds();
    }
  }
}

TextSummary TextRun::total() const {
  TextSummary total;
  for (size_t i = 0; i < summaries_.size(); ++i) {
    if (!summaries_[i]) continue;
    const TextSummary& one = *summaries_[i];
    if (counted_.empty() || counted_[i]) {
      total.prompt_tokens += one.prompt_tokens;
      total.cached_tokens += one.cached_tokens;
      if (total.cache.empty()) total.cache = one.cache;
    }
    total.tokens += one.tokens;
    total.drafted += one.drafted;
    total.accepted += one.accepted;
    total.queue_seconds = std::max(total.queue_seconds, one.queue_seconds);
    total.prompt_seconds = std::max(total.prompt_seconds, one.prompt_seconds);
    total.decode_seconds = std::max(total.decode_seconds, one.decode_seconds);
  }
  return total;
}

}  // namespace pronghorn::serve
