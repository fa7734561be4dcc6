#include "serve/http/server.h"

#include <chrono>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "serve/http/access.h"
#include "serve/http/api_error.h"
#include "serve/http/connection.h"
#include "serve/http/routes.h"
#include "serve/http/scoring.h"

namespace pronghorn::serve {
namespace {

ConnectionLimits connection_limits(const ServerOptions& options) {
  ConnectionLimits limits;
  limits.most = options.connections;
  limits.read_seconds = options.read_seconds;
  constexpr int64_t kFraming = int64_t{1} << 16;
  limits.body_bytes = 2 * options.body_bytes + kFraming;  // chunks may be small
  return limits;
}

}  // namespace

class Server::Parts {
 public:
  explicit Parts(const ServerOptions& options)
      : options_(options),
        keys_(options.key_file),
        listener_(connection_limits(options_)),
        service_(options_) {
    add_routes(listener_, service_, keys_);
    port_ = listener_.bind(options_.host, options_.port);
  }

  ~Parts() {
    service_.draining = true;  // models that are still to be loaded are not
    service_.stepper.stop();
    if (loader_.joinable()) loader_.join();
  }

  ServerOptions options_;
  Keys keys_;
  HttpListener listener_;
  Service service_;
  int port_ = 0;
  std::thread loader_;
};

namespace {

// Weights are packed when they are first used: the first request need not wait for that.
void warm_up(Service& service, const ServedModel& model) {
  Call call;
  call.client_is_gone = [] { return false; };
  const int32_t token = 0;
  embedding(service, model, {&token, 1}, call);
}

void load_model(Service& service, const ModelSource& source) {
  if (service.draining) return;
  try {
    const double begin = now_seconds();
    std::shared_ptr<ServedModel> model = ServedModel::load(source);
    warm_up(service, *model);
    service.stepper.add(*model->engine);
    spdlog::info("{}: loaded in {}", source.name, format_duration(now_seconds() - begin));
    service.models.ready(std::move(model));
  } catch (const std::exception& error) {
    spdlog::error("{}: {}", source.name, error.what());
    service.models.failed(source.name, error.what());
  }
}

}  // namespace

Server::Server(const ServerOptions& options) : parts_(std::make_unique<Parts>(options)) {}

Server::~Server() = default;

int Server::port() const { return parts_->port_; }

const Service& Server::service() const { return parts_->service_; }

void Server::load(ModelSource source) {
  Service& service = parts_->service_;
  service.models.announce(source.name);
  parts_->loader_ = std::thread(
      [&service, source = std::move(source), before = std::move(parts_->loader_)]() mutable {
        if (before.joinable()) before.join();
        load_model(service, source);
      });
}

bool Server::wait_until_loaded() {
  if (parts_->loader_.joinable()) parts_->loader_.join();
  return parts_->service_.models.ready();
}

void Server::run() { parts_->listener_.listen_after_bind(); }

void Server::drain() {
  constexpr auto kLook = std::chrono::milliseconds(50);
  Service& service = parts_->service_;
  service.draining = true;
  const double end = now_seconds() + parts_->options_.drain_seconds;
  while (service.metrics.running() > 0 && now_seconds() < end) std::this_thread::sleep_for(kLook);
  service.cutting = true;
  constexpr double kLastWords = 2;  // for the cut answers to say so
  const double last = now_seconds() + kLastWords;
  while (service.metrics.running() > 0 && now_seconds() < last) std::this_thread::sleep_for(kLook);
  parts_->listener_.end();
}

}  // namespace pronghorn::serve
