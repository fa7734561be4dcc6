// Server: models behind HTTP.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "serve/http/served_model.h"
#include "serve/http/service.h"

namespace pronghorn::serve {

class Server {
 public:
  // Listens from here on; requests wait until run(). Throws Error if the address or the keys cannot
  // be had.
  explicit Server(const ServerOptions& options);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  int port() const;
  // Loads a model on a thread of its own and serves it when it is there; until then its requests
  // are answered with 503. The models are loaded one after another.
  void load(ModelSource source);
  // Serves a model that is loaded when somebody asks for it. Where ServerOptions::memory_bytes
  // would not be enough, those that were asked for longest ago and are not in use go.
  void offer(ModelSource source);
  // Waits until all models are loaded; false if one could not be.
  bool wait_until_loaded();

  // Answers requests until drain() has done its work, on the calling thread and others.
  void run();
  // Refuses new requests, waits for running ones to end (for ServerOptions::drain_seconds at most),
  // ends the rest and then run(). From any thread.
  void drain();

  const Service& service() const;

 private:
  class Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace pronghorn::serve
