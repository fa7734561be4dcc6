// What a step of the engine does: cancelled texts end, others join, the model runs, and each text
// is told what was written.
#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/warning.h"
#include "serve/engine_parts.h"

namespace pronghorn {
namespace {

TextSummary::End end_of(Generated::End end) {
  switch (end) {
    case Generated::End::length:
      return TextSummary::End::length;
    case Generated::End::stop_string:
      return TextSummary::End::stop_string;
    case Generated::End::end_token:
      return TextSummary::End::end_token;
    case Generated::End::interrupted:
      return TextSummary::End::cancelled;
  }
  return TextSummary::End::failed;
}

std::string message_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& known) {
    return known.what();
  } catch (...) {
    return "what was thrown is no error";
  }
}

// Why nothing of a prompt came from the cache.
std::string reason_of(const PrefixCache::Found& found, int64_t tokens) {
  if (!found.kept) return "no text is kept";
  if (found.known == 0) return "no kept text begins like this prompt";
  if (found.known >= tokens)
    return "the whole prompt is known, and no state before its end is kept";
  return fmt::format("the prompt begins like a kept text for {} tokens, and no state is kept there",
                     found.known);
}

}  // namespace

bool Engine::Parts::step() {
  const bool ended = end_cancelled();
  const bool joined = admit();
  const bool ran = run();
  refresh_counters();
  const bool busy = ended || joined || ran;
  if (files_ != nullptr && busy) files_->release_written();
  if (files_ != nullptr && !busy) files_->write_one();
  return busy;
}

bool Engine::Parts::end_cancelled() {
  std::set<int64_t> ids;
  std::vector<TextPointer> ended;
  {
    const std::scoped_lock lock(mutex_);
    ids = std::exchange(cancelled_, {});
    if (ids.empty()) return false;
    for (TextPointer& text : waiting_) {
      if (!ids.contains(text->id)) continue;
      --counters_.waiting;
      counters_.waiting_tokens -= text->prompt_tokens();
      ended.push_back(std::move(text));
    }
    std::erase(waiting_, nullptr);
  }
  for (const TextPointer& text : ended) report(*text, TextSummary::End::cancelled);
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    if (running_[slot] != nullptr && ids.contains(running_[slot]->id)) {
      end(slot, TextSummary::End::cancelled);
    }
  }
  return true;
}

bool Engine::Parts::admit() {
  auto free = std::count(running_.begin(), running_.end(), nullptr);
  bool any = false;
  for (; free > 0; --free) {
    TextPointer text;
    {
      const std::scoped_lock lock(mutex_);
      if (waiting_.empty()) break;
      text = std::move(waiting_.front());
      waiting_.pop_front();
      --counters_.waiting;
      counters_.waiting_tokens -= text->prompt_tokens();
    }
    join(std::move(text));
    any = true;
  }
  return any;
}

// Gives the text a session, with what is kept of its prompt.
void Engine::Parts::look_up(ServedText& text) {
  const std::span<const int32_t> prompt = text.request.prompt;
  text.session.emplace(*model, options.kv_cache);
  if (text.request.image != nullptr) {
    Context own;
    own.precision = options.precision;
    text.session->see(*model, own, *text.request.image);
    text.summary.cache = "states behind an image are not kept";
    return;
  }
  if (options.cache_bytes == 0 || !text.request.use_cache) {
    text.summary.cache = options.cache_bytes == 0 ? "the cache is off" : "the request wants none";
    return;
  }
  PrefixCache::Found found = cache_.find(text.request.cache_salt, prompt, text.plan);
  text.place = found.place;
  const int64_t cached = PrefixCache::length(found.place);
  text.summary.cached_tokens = text.last_kept = cached;
  text.summary.cache = cached > 0 ? "hit" : reason_of(found, std::ssize(prompt));
  if (cached == 0) return;
  text.session.emplace(std::move(found.state), *tokenizer,
                       prompt.first(static_cast<size_t>(cached)));
}

void Engine::Parts::join(TextPointer owned) {
  ServedText& text = *owned;
  text.joined = now_seconds();
  try {
    look_up(text);
    const auto cached = static_cast<size_t>(text.summary.cached_tokens);
    const std::span<const int32_t> prompt = text.request.prompt;
    TextBatch::Joining joining;
    joining.generation.session = &*text.session;
    joining.generation.prompt = prompt.subspan(cached);
    joining.generation.options = text.request.options;
    joining.runs = rest_of(text.plan, text.summary.cached_tokens);
    joining.known = prompt.first(cached);
    joining.on_read = [this, &text](const ReadingRun& piece) { after_piece(text, piece); };
    running_[batch_.join(joining)] = std::move(owned);
  } catch (...) {
    text.summary.error = message_of(std::current_exception());
    report(text, TextSummary::End::failed);
    return;
  }
  const std::scoped_lock lock(mutex_);
  counters_.prompt_tokens += text.prompt_tokens();
  counters_.cached_tokens += text.summary.cached_tokens;
  if (text.place != nullptr) {
    ++(text.summary.cached_tokens > 0 ? counters_.cache_hits : counters_.cache_misses);
  }
}

// Keeps the state behind a piece where a message ends, where an earlier text went on otherwise, and
// every so often.
void Engine::Parts::after_piece(ServedText& text, const ReadingRun& piece) {
  if (text.place == nullptr) return;
  const std::span<const int32_t> prompt = text.request.prompt;
  const auto tokens = [&](const TokenRange& range) {
    return prompt.subspan(static_cast<size_t>(range.begin), static_cast<size_t>(range.size()));
  };
  text.place = cache_.follow(text.place, piece.exact, tokens(piece.tokens));
  const int64_t at = piece.tokens.end;
  bool keep = std::ranges::binary_search(text.request.message_ends, at) ||
              at - text.last_kept >= options.cache_every;
  if (!keep && at < text.prompt_tokens()) {
    const ReadingRun next = rest_of(text.plan, at).front();
    keep = cache_.branches(text.place, next.exact, tokens(next.tokens));
  }
  if (!keep) return;
  cache_.keep(text.place, text.session->state());
  text.last_kept = at;
}

bool Engine::Parts::run() {
  const bool ran = batch_.step({options.prompt_rows, options.beside});
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    if (running_[slot] != nullptr) deliver(slot);
  }
  return ran;
}

void Engine::Parts::deliver(size_t slot) {
  ServedText& text = *running_[slot];
  try {
    tell_written(text, batch_.result(slot));
  } catch (...) {
    text.summary.error = message_of(std::current_exception());
    return end(slot, TextSummary::End::failed);
  }
  if (!batch_.ended(slot)) return;
  if (batch_.error(slot) != nullptr) {
    text.summary.error = message_of(batch_.error(slot));
    return end(slot, TextSummary::End::failed);
  }
  end(slot, end_of(batch_.result(slot).end));
}

void Engine::Parts::end(size_t slot, TextSummary::End end) {
  const TextPointer text = std::move(running_[slot]);
  const Generated result = batch_.leave(slot);
  text->summary.stop = result.stop;
  text->summary.tokens = result.tokens;
  text->summary.drafted = result.drafted;
  text->summary.accepted = result.accepted;
  if (end != TextSummary::End::failed) finish(*text, result);
  text->place = nullptr;
  report(*text, end);
}

// Tells what was held back, of a text that others ended, and keeps its state. What goes wrong here
// is no reason for the text to fail, nor for its end to stay untold.
void Engine::Parts::finish(ServedText& text, const Generated& result) {
  try {
    tell_written(text, result);
    keep_end(text, result);
  } catch (...) {
    warn_once(fmt::format("serve: at the end of a text: {}", message_of(std::current_exception())));
  }
}

// Keeps the state of a text that ends, for a text that goes on from there.
void Engine::Parts::keep_end(ServedText& text, const Generated& result) {
  if (text.place == nullptr) return;
  const SequenceState& state = text.session->state();
  int64_t at = PrefixCache::length(text.place);
  if (at >= text.prompt_tokens()) {
    const std::span<const int32_t> written = result.ids;
    while (at < state.length()) {
      const int64_t count = std::min(kExactStep, state.length() - at);
      text.place = cache_.follow(text.place, true,
                                 written.subspan(static_cast<size_t>(at - text.prompt_tokens()),
                                                 static_cast<size_t>(count)));
      at += count;
    }
  }
  if (at == state.length()) cache_.keep(text.place, state);
}

void Engine::Parts::report(ServedText& text, TextSummary::End end) {
  {
    const std::scoped_lock lock(mutex_);
    known_.erase(text.id);
    cancelled_.erase(text.id);
  }
  text.summary.end = end;
  count_end(text.summary);
  try {
    tell_end(text, end);
  } catch (...) {
    warn_once(
        fmt::format("serve: a request's on_end threw: {}", message_of(std::current_exception())));
  }
}

void Engine::Parts::count_end(const TextSummary& summary) {
  constexpr double kNewest = 0.1;
  const double now = now_seconds();
  const std::scoped_lock lock(mutex_);
  if (last_end_ > 0) seconds_per_end_ += kNewest * (now - last_end_ - seconds_per_end_);
  last_end_ = now;
  int64_t EngineCounters::*const counters[] = {
      &EngineCounters::length, &EngineCounters::stop_string, &EngineCounters::end_token,
      &EngineCounters::cancelled, &EngineCounters::failed};
  ++(counters_.*counters[static_cast<size_t>(summary.end)]);
  counters_.tokens += summary.tokens;
  counters_.drafted += summary.drafted;
  counters_.accepted += summary.accepted;
}

void Engine::Parts::refresh_counters() {
  int64_t running = 0, reading = 0, bytes = 0;
  for (size_t slot = 0; slot < running_.size(); ++slot) {
    if (running_[slot] == nullptr) continue;
    ++running;
    if (batch_.reading(slot)) ++reading;
    bytes += running_[slot]->session->state().bytes();
  }
  const std::scoped_lock lock(mutex_);
  counters_.running = running;
  counters_.reading = reading;
  counters_.state_bytes = bytes;
  const BatchWork& work = batch_.work();
  counters_.steps = work.steps;
  counters_.rows = work.rows;
  counters_.prompt_seconds = work.prompt_seconds;
  counters_.decode_seconds = work.decode_seconds;
  counters_.cache_evictions = cache_.evictions();
  counters_.cache_states = cache_.states();
  counters_.cache_bytes = cache_.bytes();
}

}  // namespace pronghorn
