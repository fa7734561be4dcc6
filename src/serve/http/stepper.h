// Stepper: the one thread on which models compute, for all engines in turn.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "serve/engine.h"

namespace pronghorn::serve {

class Stepper {
 public:
  Stepper();
  // Stops at once; engines must outlive it.
  ~Stepper();
  Stepper(const Stepper&) = delete;
  Stepper& operator=(const Stepper&) = delete;

  // From now on the engine is given steps.
  void add(Engine& engine);
  // No longer; returns when it is not being given one. Throws ApiError if the thread has ended.
  void remove(Engine& engine);
  // To be called when an engine has got something to do.
  void wake();
  // Runs `piece` between steps, again and again until it returns false, and then returns; texts go
  // on meanwhile, and wait for pieces about as long as they take themselves. Rethrows what a piece
  // throws. Throws ApiError if the thread has ended.
  void run(const std::function<bool()>& piece);
  // Ends the thread after the step that it is in. Whoever waits in run() gets an ApiError.
  void stop();
  // Whether a step has ended, or nothing was to be done, within the last `seconds`.
  bool alive(double seconds) const;

 private:
  struct Job {
    const std::function<bool()>* piece;
    bool done = false;
    std::exception_ptr error;
  };

  void loop();
  // Each returns whether there was something to do.
  bool step_engines();
  bool run_piece();

  mutable std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<Engine*> engines_;
  std::deque<Job*> jobs_;
  bool woken_ = false, stopping_ = false;
  std::atomic<double> last_{0};
  std::thread thread_;  // last: it uses the others
};

}  // namespace pronghorn::serve
