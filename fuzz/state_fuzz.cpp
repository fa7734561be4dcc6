// Forged sessions: each input is a program that changes a valid state of a tiny model and mends its
// checksum (tests/model/forged_state.h); the state is then loaded and used. Whatever happens must
// be an Error, or results.
//
//   cmake --preset fuzz && cmake --build --preset fuzz
//   build-fuzz/fuzz/state_fuzz -max_len=64 -max_total_time=600
#include "base/threads.h"
#include "model/forged_state.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const pronghorn::testing_support::ForgingModels models = [] {
    pronghorn::set_thread_count(1);
    return pronghorn::testing_support::ForgingModels();
  }();
  models.run({data, size});
  return 0;
}
