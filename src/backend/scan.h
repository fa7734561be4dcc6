// Diagonal scans (kernel family C).
#pragma once

#include <memory>

namespace pronghorn {

class ScanKernels {
 public:
  virtual ~ScanKernels() = default;
};

std::unique_ptr<ScanKernels> make_cpu_scan_kernels();

}  // namespace pronghorn
