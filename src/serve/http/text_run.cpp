#include "serve/http/text_run.h"

#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "serve/http/api_error.h"

namespace pronghorn::serve {
namespace {

constexpr double kLookSeconds = 0.1;  // between two looks at the client
constexpr size_t kMostDeliveries = size_t{1} << 16;

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
    if (deliveries_.size() >= kMostDeliveries) {
      overflown_ = true;
      return;
    }
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
                  tokens, wanted, model.name, context));
  error.details = {
      {"prompt_tokens", tokens}, {"context_length", context}, {"reserved_tokens", wanted}};
  throw error;
}

TextRun::TextRun(Service& service, std::shared_ptr<ServedModel> model, Call& call)
    : service_(service),
      model_(std::move(model)),
      call_(call),
      begin_(now_seconds()),
      quiet_since_(begin_),
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
  request.cache_salt = call_.tenant + request.cache_salt;
  call_.record.prompt_tokens += static_cast<int64_t>(request.prompt.size());
  ids_.push_back(model_->engine->submit(std::move(request)));
  summaries_.emplace_back();
  service_.stepper.wake();
}

void TextRun::keep(size_t choice, const TextSummary& summary) {
  summaries_[choice] = summary;
  RequestRecord& record = call_.record;
  if (!record.ends.empty()) record.ends += ',';
  record.ends += end_name(summary.end);
  record.cached_tokens += summary.cached_tokens;
  record.tokens += summary.tokens;
  record.drafted += summary.drafted;
  record.accepted += summary.accepted;
  record.queue_seconds = std::max(record.queue_seconds, summary.queue_seconds);
  record.prompt_seconds = std::max(record.prompt_seconds, summary.prompt_seconds);
  record.decode_seconds = std::max(record.decode_seconds, summary.decode_seconds);
}

void TextRun::check_wanted() const {
  if (call_.client_is_gone() || mailbox_->overflown()) throw ClientGone();
  if (service_.cutting) {
    throw ApiError(503, "shutting_down", "the server is ending and waits no longer");
  }
}

void TextRun::take(const Delivery& delivery) {
  if (!delivery.text.empty() || delivery.end) quiet_since_ = now_seconds();
  if (!delivery.end) {
    if (call_.record.first_token_seconds == 0) {
      call_.record.first_token_seconds = now_seconds() - begin_;
    }
    return;
  }
  keep(delivery.choice, *delivery.end);
  if (delivery.end->end == TextSummary::End::failed) {
    throw ApiError(500, "engine_error", "the text could not be written: " + delivery.end->error);
  }
  if (delivery.end->end == TextSummary::End::cancelled) {
    throw ApiError(503, "shutting_down", "the text was ended because the server is ending");
  }
}

std::optional<Delivery> TextRun::next(const std::function<void()>& on_silence) {
  if (std::ranges::all_of(summaries_, [](const auto& end) { return end.has_value(); })) return {};
  while (true) {
    check_wanted();
    std::optional<Delivery> delivery = mailbox_->take(kLookSeconds);
    if (delivery) take(*delivery);
    if (on_silence && now_seconds() - quiet_since_ >= service_.options.comment_seconds) {
      on_silence();
      quiet_since_ = now_seconds();
    }
    if (delivery) return delivery;
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
