// Work that ends in order when the user or mpirun asks it to.
#pragma once

#include <csignal>

namespace pronghorn {

// While it lives, the first SIGINT or SIGTERM asks for an end; a second one kills as usual. One at
// a time in a process.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  // Whether an end was asked for since the last one of these began; stays so after its end.
  static bool requested();
  static void request();  // as a signal does

 private:
  struct sigaction old_interrupt_ {
  }, old_terminate_{};
};

}  // namespace pronghorn
