// What endpoints are given: the server's parts, and the request at hand.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "lab/run_watch.h"
#include "serve/http/event_stream.h"
#include "serve/http/fields.h"
#include "serve/http/metrics.h"
#include "serve/http/served_model.h"
#include "serve/http/stepper.h"

namespace pronghorn::serve {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 8080;                 // 0: any that is free
  std::filesystem::path key_file;  // a key per line; empty: everybody may ask
  std::string cors;  // the origin whose pages may ask, or "*"; empty: none but our own
  // Limits of one request.
  int64_t body_bytes = int64_t{32} << 20;
  int64_t choices = 128;  // n times the number of prompts
  int64_t stops = 16;
  int64_t likeliest = 20;                   // log-probabilities beside that of the written token
  double comment_seconds = 15;              // a comment keeps a silent stream open
  double read_seconds = 60;                 // for a request to arrive
  double drain_seconds = 30;                // for texts to end when the server does
  int connections = 768;                    // at once; the next are refused
  int64_t memory_bytes = 0;                 // that all models may take; 0: what the machine has
  std::filesystem::path session_directory;  // of saved sessions; empty: none are
  std::vector<std::filesystem::path> runs = {};  // folders of training runs to show; or none
};

// The parts of a server. From any thread.
struct Service {
  explicit Service(const ServerOptions& server_options)
      : options(server_options), runs(server_options.runs) {}

  const ServerOptions& options;
  ModelTable models;
  Metrics metrics;
  lab::RunWatch runs;
  std::atomic<bool> draining{false};  // new requests are refused
  std::atomic<bool> cutting{false};   // and running ones end
  Stepper stepper;                    // last: it uses the models' engines
};

// One request.
struct Call {
  std::string id;
  std::string tenant;                    // whose key it has; empty where none is asked for
  Json body;                             // an object
  std::function<bool()> client_is_gone;  // asked every now and then
  RequestRecord record;                  // for the log and the metrics
};

// A document, or a stream of events that is written while the function runs.
using StreamFunction = std::function<void(EventStream&)>;
using Reply = std::variant<nlohmann::json, Json, StreamFunction>;

}  // namespace pronghorn::serve
