// Scopes that change how kernels run, and put it back.
#pragma once

#include <string>

#include "backend/cpu/cpu_features.h"
#include "base/threads.h"

namespace pronghorn::testing_support {

// Sets the number of threads for a scope.
class Threads {
 public:
  explicit Threads(int count) : before_(thread_count()) { set_thread_count(count); }
  ~Threads() { set_thread_count(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

// Sets the instruction set for a scope.
class InstructionSet {
 public:
  explicit InstructionSet(const std::string& name) : before_(cpu_instruction_set()) {
    set_cpu_instruction_set(name);
  }
  ~InstructionSet() { set_cpu_instruction_set(before_); }
  InstructionSet(const InstructionSet&) = delete;
  InstructionSet& operator=(const InstructionSet&) = delete;

 private:
  std::string before_;
};

}  // namespace pronghorn::testing_support
