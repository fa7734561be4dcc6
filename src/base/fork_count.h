// How often threads were forked: what a profile counts.
#pragma once

#include <cstdint>

namespace pronghorn {

// Calls of parallel_for so far, of the whole process, that gave work to several threads. What it
// says while another thread is inside one is that thread's business.
int64_t fork_count();

}  // namespace pronghorn
