#include "base/stop_signals.h"

#include <atomic>

namespace pronghorn {
namespace {

std::atomic<bool> stop_requested{false};
struct sigaction before_interrupt {
}, before_terminate{};

}  // namespace

StopSignals::StopSignals() {
  stop_requested = false;
  struct sigaction action {};
  // A second one ends the process as it would have without this.
  action.sa_handler = [](int signal) {
    stop_requested = true;
    sigaction(signal, signal == SIGINT ? &before_interrupt : &before_terminate, nullptr);
  };
  sigaction(SIGINT, nullptr, &before_interrupt);
  sigaction(SIGTERM, nullptr, &before_terminate);
  sigaction(SIGINT, &action, &old_interrupt_);
  sigaction(SIGTERM, &action, &old_terminate_);
}

StopSignals::~StopSignals() {
  sigaction(SIGINT, &old_interrupt_, nullptr);
  sigaction(SIGTERM, &old_terminate_, nullptr);
}

bool StopSignals::requested() { return stop_requested; }

void StopSignals::request() { stop_requested = true; }

}  // namespace pronghorn
