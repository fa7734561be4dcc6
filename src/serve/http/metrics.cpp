#include "serve/http/metrics.h"

#include <fmt/format.h>

#include <algorithm>

#include "serve/http/served_model.h"

namespace pronghorn::serve {
namespace {

std::string label(const std::string& name, const std::string& value) {
  std::string text = name + "=\"";
  for (const char c : value) {
    if (c == '\n') {
      text += "\\n";
      continue;
    }
    if (c == '"' || c == '\\') text += '\\';
    text += c;
  }
  return text + '"';
}

std::string head(const std::string& name, const char* type, const char* help) {
  return fmt::format("# HELP {0} {1}\n# TYPE {0} {2}\n", name, help, type);
}

struct EngineLine {
  const char *name, *type, *help;
  double (*value)(const EngineCounters&);
};

template <auto member>
double get(const EngineCounters& counters) {
  return static_cast<double>(counters.*member);
}

using C = EngineCounters;
constexpr EngineLine kEngineLines[] = {
    {"requests_running", "gauge", "Texts being read or written.", get<&C::running>},
    {"requests_reading", "gauge", "Texts whose prompt is being read.", get<&C::reading>},
    {"requests_waiting", "gauge", "Requests in the queue.", get<&C::waiting>},
    {"waiting_tokens", "gauge", "Prompt tokens in the queue.", get<&C::waiting_tokens>},
    {"state_bytes", "gauge", "Bytes of the states of running texts.", get<&C::state_bytes>},
    {"prompt_tokens_total", "counter", "Prompt tokens, cached ones included.",
     get<&C::prompt_tokens>},
    {"cached_tokens_total", "counter", "Prompt tokens that were not read again.",
     get<&C::cached_tokens>},
    {"generation_tokens_total", "counter", "Tokens written.", get<&C::tokens>},
    {"steps_total", "counter", "Steps of the model.", get<&C::steps>},
    {"rows_total", "counter", "Rows of these steps.", get<&C::rows>},
    {"drafted_tokens_total", "counter", "Guesses checked.", get<&C::drafted>},
    {"accepted_tokens_total", "counter", "Guesses that came true.", get<&C::accepted>},
    {"prompt_seconds_total", "counter", "Seconds of steps that read prompts.",
     get<&C::prompt_seconds>},
    {"decode_seconds_total", "counter", "Seconds of steps that wrote.", get<&C::decode_seconds>},
    {"cache_hits_total", "counter", "Prompts that began with a kept state.", get<&C::cache_hits>},
    {"cache_misses_total", "counter", "Prompts that did not.", get<&C::cache_misses>},
    {"cache_evictions_total", "counter", "States dropped for want of room.",
     get<&C::cache_evictions>},
    {"cache_states", "gauge", "States that are kept.", get<&C::cache_states>},
    {"cache_bytes", "gauge", "Their bytes.", get<&C::cache_bytes>},
    {"queue_refused_total", "counter", "Requests that the queue had no room for.",
     get<&C::refused>},
};

std::string engine_text(const std::vector<std::shared_ptr<ServedModel>>& models) {
  std::vector<std::pair<std::string, EngineCounters>> counters;
  for (const auto& model : models) {
    counters.emplace_back(label("model", model->name), model->engine->counters());
  }
  std::string text;
  for (const EngineLine& line : kEngineLines) {
    const std::string name = std::string("pronghorn_") + line.name;
    text += head(name, line.type, line.help);
    for (const auto& [labels, of] : counters) {
      text += fmt::format("{}{{{}}} {}\n", name, labels, line.value(of));
    }
  }
  const std::string name = "pronghorn_request_success_total";
  text += head(name, "counter", "Texts that ended, by how.");
  for (const auto& [labels, of] : counters) {
    const std::pair<const char*, int64_t> ends[] = {{"length", of.length},
                                                    {"stop_string", of.stop_string},
                                                    {"end_token", of.end_token},
                                                    {"cancelled", of.cancelled},
                                                    {"failed", of.failed}};
    for (const auto& [reason, count] : ends) {
      text += fmt::format("{}{{{},finished_reason=\"{}\"}} {}\n", name, labels, reason, count);
    }
  }
  return text;
}

}  // namespace

void Histogram::add(double value) {
  ++count_;
  sum_ += value;
  const auto at = std::ranges::lower_bound(bounds_, value) - bounds_.begin();
  if (at < std::ssize(counts_)) ++counts_[static_cast<size_t>(at)];
}

std::string Histogram::text(const std::string& name, const std::string& labels) const {
  std::string text;
  const std::string comma = labels.empty() ? "" : ",";
  int64_t below = 0;
  for (size_t i = 0; i < bounds_.size(); ++i) {
    below += counts_[i];
    text += fmt::format("{}_bucket{{{}{}le=\"{}\"}} {}\n", name, labels, comma, bounds_[i], below);
  }
  text += fmt::format("{}_bucket{{{}{}le=\"+Inf\"}} {}\n", name, labels, comma, count_);
  text +=
      fmt::format("{}_sum{{{}}} {}\n{}_count{{{}}} {}\n", name, labels, sum_, name, labels, count_);
  return text;
}

Metrics::Times::Times()
    : first_token({0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300}),
      per_token({0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3}),
      request({0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000}),
      queue({0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300}) {}

void Metrics::begin() {
  const std::lock_guard lock(mutex_);
  ++running_;
}

int64_t Metrics::running() const {
  const std::lock_guard lock(mutex_);
  return running_;
}

void Metrics::refuse(const std::string& code) {
  const std::lock_guard lock(mutex_);
  ++refused_[code];
}

void Metrics::add(const RequestRecord& record) {
  const std::lock_guard lock(mutex_);
  --running_;
  ++requests_[{record.endpoint, record.status}];
  if (record.cancelled) ++cancelled_;
  if (record.model.empty() || record.tokens == 0) return;
  Times& times = times_[record.model];
  times.request.add(record.seconds);
  times.queue.add(record.queue_seconds);
  if (record.first_token_seconds > 0) times.first_token.add(record.first_token_seconds);
  if (record.decode_seconds > 0) {
    times.per_token.add(record.decode_seconds / static_cast<double>(record.tokens));
  }
}

std::string Metrics::requests_text() const {
  std::string text = head("pronghorn_http_requests_running", "gauge", "Requests being answered.");
  text += fmt::format("pronghorn_http_requests_running {}\n", running_);
  text += head("pronghorn_http_requests_total", "counter", "Requests that were answered.");
  for (const auto& [key, count] : requests_) {
    text += fmt::format("pronghorn_http_requests_total{{{},status=\"{}\"}} {}\n",
                        label("endpoint", key.first), key.second, count);
  }
  text += head("pronghorn_http_cancelled_total", "counter", "Requests whose client went away.");
  text += fmt::format("pronghorn_http_cancelled_total {}\n", cancelled_);
  text += head("pronghorn_http_refused_total", "counter", "Requests that were refused, by code.");
  for (const auto& [code, count] : refused_) {
    text += fmt::format("pronghorn_http_refused_total{{{}}} {}\n", label("code", code), count);
  }
  const std::pair<const char*, Histogram Times::*> histograms[] = {
      {"pronghorn_time_to_first_token_seconds", &Times::first_token},
      {"pronghorn_time_per_output_token_seconds", &Times::per_token},
      {"pronghorn_e2e_request_latency_seconds", &Times::request},
      {"pronghorn_request_queue_time_seconds", &Times::queue}};
  for (const auto& [name, member] : histograms) {
    text += fmt::format("# TYPE {} histogram\n", name);
    for (const auto& [model, times] : times_) {
      text += (times.*member).text(name, label("model", model));
    }
  }
  return text;
}

std::string Metrics::text(const std::vector<std::shared_ptr<ServedModel>>& models,
                          bool ready) const {
  std::string text = head("pronghorn_ready", "gauge", "Whether all models are loaded.");
  text += fmt::format("pronghorn_ready {}\n", ready ? 1 : 0) + engine_text(models);
  const std::lock_guard lock(mutex_);
  return text + requests_text();
}

}  // namespace pronghorn::serve
