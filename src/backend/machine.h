// What the machine can do at best, measured: the ceilings that benchmarks are compared with.
#pragma once

#include <string>

namespace pronghorn {

struct MachineCeilings {
  std::string cpu;              // name of the processor
  std::string instruction_set;  // that the kernels use (backend/cpu/cpu_features.h)
  int cores = 0;                // available to this process
  int threads = 0;              // that took part
  // All threads together; a multiply-add counts as two operations.
  double f32_gflops = 0;                 // multiply-adds between registers
  double bf16_gflops = 0;                // the same with AMX tiles or bf16 dot products;
                                         // f32_gflops where there are neither
  double int8_gops = 0;                  // of bytes, with AMX tiles, VNNI or what there is
  double read_gigabytes_per_second = 0;  // from memory, eight streams a thread, huge pages
  // parallel_for() with one piece a thread, workers awake; 0 with one thread, or where
  // other programs never let all threads run. Until the last thread
  // has begun, and from when the last one is done until the caller goes on.
  double fork_nanoseconds = 0, join_nanoseconds = 0;
};

// Measures for about `seconds` and keeps the best of many short repetitions, since other programs
// can only make them slower.
MachineCeilings measure_machine(double seconds = 1.0);

}  // namespace pronghorn
