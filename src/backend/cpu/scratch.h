// Memory that a task of a kernel needs while it runs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pronghorn {

// Hands out pieces of a buffer of the calling thread, which stays for the thread's next tasks:
// after the first few, nothing is allocated. The buffer grows with what is taken, so there is no
// size to state, and none to get wrong. Pieces are returned together, by the destructor; a task
// that runs inside another task of the same thread takes what follows.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // `count` floats of undefined contents, on a cache line. Throws Error when the memory cannot be
  // had.
  float* take(int64_t count);

 private:
  size_t block_, used_;  // where the thread's buffer was before
};

}  // namespace pronghorn
