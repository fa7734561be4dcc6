#include "serve/http/stepper.h"

#include <chrono>

#include "base/log.h"
#include "serve/http/api_error.h"

namespace pronghorn::serve {

Stepper::Stepper() : last_(now_seconds()), thread_([this] { loop(); }) {}

Stepper::~Stepper() {
  stop();
  thread_.join();
}

void Stepper::add(Engine& engine) {
  const std::lock_guard lock(mutex_);
  engines_.push_back(&engine);
}

void Stepper::remove(Engine& engine) {
  run([&] {
    const std::lock_guard lock(mutex_);
    std::erase(engines_, &engine);
    return false;
  });
}

void Stepper::wake() {
  {
    const std::lock_guard lock(mutex_);
    woken_ = true;
  }
  wake_.notify_one();
}

void Stepper::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  done_.notify_all();
}

bool Stepper::alive(double seconds) const { return now_seconds() - last_.load() <= seconds; }

void Stepper::run(const std::function<bool()>& piece) {
  Job job{&piece, false, nullptr};
  std::unique_lock lock(mutex_);
  if (stopping_) throw ApiError(503, "shutting_down", "the server is ending");
  jobs_.push_back(&job);
  woken_ = true;
  wake_.notify_one();
  // The thread takes a job out of the list while it runs a piece, and puts it back.
  done_.wait(lock, [&] { return job.done; });
  if (job.error != nullptr) std::rethrow_exception(job.error);
}

bool Stepper::step_engines() {
  std::vector<Engine*> engines;
  {
    const std::lock_guard lock(mutex_);
    engines = engines_;
  }
  bool busy = false;
  for (Engine* engine : engines) {
    try {
      busy = engine->step() || busy;
    } catch (const std::exception& error) {
      // The engine ends the texts at fault; what comes here is unknown to it.
      spdlog::error("a step failed: {}", error.what());
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  }
  return busy;
}

bool Stepper::run_piece() {
  Job* job = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (jobs_.empty()) return false;
    job = jobs_.front();
    jobs_.pop_front();
  }
  bool more = false;
  try {
    more = (*job->piece)();
  } catch (...) {
    job->error = std::current_exception();
  }
  {
    const std::lock_guard lock(mutex_);
    if (more) {
      jobs_.push_back(job);
    } else {
      job->done = true;
    }
  }
  if (!more) done_.notify_all();
  return true;
}

void Stepper::loop() {
  constexpr auto kLongest = std::chrono::milliseconds(500);  // for the sign of life
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) break;
      woken_ = false;
    }
    const double start = now_seconds();
    const bool stepped = step_engines();
    const double middle = now_seconds();
    // As long as the steps took: pieces are small, and texts wait for them.
    bool ran = run_piece();
    const bool any = ran;
    while (stepped && ran && now_seconds() - middle < middle - start) ran = run_piece();
    last_ = now_seconds();
    if (stepped || any) continue;
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, kLongest, [&] { return woken_ || stopping_; });
  }
  const std::lock_guard lock(mutex_);
  for (Job* job : jobs_) {
    job->error = std::make_exception_ptr(ApiError(503, "shutting_down", "the server is ending"));
    job->done = true;
  }
  jobs_.clear();
  done_.notify_all();
}

}  // namespace pronghorn::serve
