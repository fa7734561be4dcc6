#include "backend/scan.h"

namespace pronghorn {
namespace {

class CpuScanKernels final : public ScanKernels {};

}  // namespace

std::unique_ptr<ScanKernels> make_cpu_scan_kernels() { return std::make_unique<CpuScanKernels>(); }

}  // namespace pronghorn
