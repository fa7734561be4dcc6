#include "serve/http/server.h"

#include <chrono>
#include <fstream>
#include <limits>
#include <mutex>
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

  // On a thread of its own, after those that are to be loaded before.
  void load_soon(const ModelSource& source, bool on_demand);
  std::thread take_loader() {
    const std::lock_guard lock(mutex_);
    return std::move(loader_);
  }

  ServerOptions options_;
  Keys keys_;
  HttpListener listener_;
  Service service_;
  int port_ = 0;
  std::mutex mutex_;
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

// Bytes of memory that the system can give to programs.
int64_t available_memory() {
  std::ifstream file("/proc/meminfo");
  std::string name, unit;
  int64_t kilobytes = 0;
  while (file >> name >> kilobytes) {
    std::getline(file, unit);
    if (name == "MemAvailable:") return kilobytes * 1024;
  }
  return std::numeric_limits<int64_t>::max();
}

void unload(Service& service, std::shared_ptr<ServedModel> model) {
  try {
    service.stepper.remove(*model->engine);
  } catch (const ApiError&) {
    service.models.ready(std::move(model));  // the server ends: it must not go before the stepper
    throw;
  }
  spdlog::info("{}: unloaded", model->name);
}

// Makes room for a model. Throws Error if there is none.
void make_room(Service& service, const ModelSource& source) {
  const int64_t limit = service.options.memory_bytes;
  const ExpectedMemory expected = expected_memory(source);
  const auto bytes = [](int64_t count) { return format_bytes(static_cast<double>(count)); };
  const std::string wanted =
      fmt::format("it needs about {} ({} of weights, {} for a text)", bytes(expected.total()),
                  bytes(expected.weights), bytes(expected.text));
  if (limit > 0 && expected.total() > limit) {
    throw Error(source.name, fmt::format("{}, more than the {} of --memory", wanted, bytes(limit)));
  }
  while (true) {
    int64_t used = 0;
    for (const std::shared_ptr<ServedModel>& model : service.models.all()) {
      used += used_memory(*model);
    }
    const int64_t left = limit > 0 ? limit - used : available_memory();
    if (expected.total() <= left) break;
    std::shared_ptr<ServedModel> oldest = service.models.take_oldest();
    if (oldest == nullptr) {
      throw Error(source.name,
                  fmt::format("{}, and {} are left beside the models in use", wanted,
                              bytes(std::max<int64_t>(0, left))),
                  "ask again when they are idle");
    }
    unload(service, std::move(oldest));
  }
  spdlog::info("{}: {}", source.name, wanted);
}

void load_model(Service& service, const ModelSource& source, bool on_demand) {
  if (service.draining) return service.models.failed(source.name, "the server is ending");
  try {
    if (on_demand || service.options.memory_bytes > 0) make_room(service, source);
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

void Server::Parts::load_soon(const ModelSource& source, bool on_demand) {
  const std::lock_guard lock(mutex_);
  loader_ = std::thread([this, source, on_demand, before = std::move(loader_)]() mutable {
    if (before.joinable()) before.join();
    load_model(service_, source, on_demand);
  });
}

Server::Server(const ServerOptions& options) : parts_(std::make_unique<Parts>(options)) {}

Server::~Server() = default;

int Server::port() const { return parts_->port_; }

const Service& Server::service() const { return parts_->service_; }

void Server::load(ModelSource source) {
  parts_->service_.models.announce(source.name);
  parts_->load_soon(source, false);
}

void Server::offer(ModelSource source) {
  Parts& parts = *parts_;
  const std::string name = source.name;
  parts.service_.models.announce(
      name, [&parts, source = std::move(source)] { parts.load_soon(source, true); });
}

bool Server::wait_until_loaded() {
  std::thread loader = parts_->take_loader();
  if (loader.joinable()) loader.join();
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
