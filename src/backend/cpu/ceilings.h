// Loops that reach what a core can do at best, for measure_machine().
#pragma once

#include <cstddef>
#include <cstdint>

namespace pronghorn {

// Runs about `steps` steps of independent multiply-adds between registers, as many side by side as
// the latency asks for. Returns the operations done, a multiply-add being two.
double run_multiply_adds_f32(int64_t steps);

// The same with bf16 dot products; only where cpu_features().bf16.
double run_multiply_adds_bf16(int64_t steps);

// The same with AMX tiles; only where cpu_features().amx.
double run_multiply_adds_amx(int64_t steps);

// Multiply-adds of bytes in 32 bits: without VNNI (in f32 where there are no instructions for
// bytes), by it, and by AMX.
double run_multiply_adds_int8(int64_t steps);
double run_multiply_adds_vnni(int64_t steps);      // only where cpu_features().vnni
double run_multiply_adds_amx_int8(int64_t steps);  // only where cpu_features().amx

// Reads `count` numbers in eight streams that advance together; returns something that depends on
// all of them.
float read_streams(const float* data, int64_t count);

}  // namespace pronghorn
