// Counters and times of requests, and the page of them that Prometheus reads.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace pronghorn::serve {

struct ServedModel;

// What one request did, for the log and the metrics.
struct RequestRecord {
  std::string endpoint;  // its path
  std::string model;     // empty: none was used
  std::string ends;      // how its texts ended, with commas between
  int status = 0;
  bool cancelled = false;  // the client went away
  int64_t prompt_tokens = 0, cached_tokens = 0, tokens = 0, drafted = 0, accepted = 0;
  double queue_seconds = 0, prompt_seconds = 0, decode_seconds = 0;  // of its slowest text
  double first_token_seconds = 0;  // from the request to the first token; 0: there was none
  double seconds = 0;
};

// Counts of values by size, as Prometheus has them.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds)
      : bounds_(std::move(bounds)), counts_(bounds_.size()) {}
  void add(double value);
  // Lines of `name`; labels: "model=\"m\"" or empty.
  std::string text(const std::string& name, const std::string& labels) const;

 private:
  std::vector<double> bounds_;
  std::vector<int64_t> counts_;
  int64_t count_ = 0;
  double sum_ = 0;
};

// From any thread.
class Metrics {
 public:
  void begin();
  void add(const RequestRecord& record);  // ends what begin() began
  void refuse(const std::string& code);
  int64_t running() const;

  // The text format of Prometheus, version 0.0.4.
  std::string text(const std::vector<std::shared_ptr<ServedModel>>& models, bool ready) const;

 private:
  struct Times {
    Histogram first_token, per_token, request, queue;
    Times();
  };
  std::string requests_text() const;

  mutable std::mutex mutex_;
  int64_t running_ = 0, cancelled_ = 0;
  std::map<std::pair<std::string, int>, int64_t> requests_;  // by endpoint and status
  std::map<std::string, int64_t> refused_;                   // by code of the error
  std::map<std::string, Times> times_;                       // by model
};

}  // namespace pronghorn::serve
