// What the processor can do, and how tests make it pretend to do less.
#pragma once

#include <string>
#include <vector>

namespace pronghorn {

struct CpuFeatures {
  bool bf16 = false;  // AVX-512 BF16 dot products
  bool amx = false;   // AMX tiles of bf16 and bytes, usable by this process
  bool vnni = false;  // AVX-512 VNNI dot products of bytes
};

// Those of the active instruction set.
const CpuFeatures& cpu_features();

// Instruction sets that this machine can run and the kernels are built for, the plainest first and
// the fastest last, for example {"portable", "sse4", "avx2", "avx512", "avx512-bf16"}; "amx" where
// there is one.
std::vector<std::string> cpu_instruction_sets();

// The active one: the best, unless PRONGHORN_CPU names another or a test chose one.
std::string cpu_instruction_set();

// Restricts the kernels to `name` and what it implies. Throws Error if the machine lacks it. Not to
// be called while kernels run.
void set_cpu_instruction_set(const std::string& name);

}  // namespace pronghorn
