// What the files of the watched backend share.
#pragma once

#include <memory>

#include "backend/watched_backend.h"

namespace pronghorn {

// Tells the watcher of one call as long as it lives.
class Watched {
 public:
  Watched(KernelWatcher& watcher, const KernelCall& call) : watcher_(watcher) {
    watcher.begin(call);
  }
  ~Watched() { watcher_.end(); }
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

 private:
  KernelWatcher& watcher_;
};

constexpr double kNumber = sizeof(float);  // bytes

inline double as_double(int64_t value) { return static_cast<double>(value); }

std::unique_ptr<PointwiseKernels> make_watched_pointwise(PointwiseKernels& kernels,
                                                         KernelWatcher& watcher);
std::unique_ptr<AttentionKernels> make_watched_attention(AttentionKernels& kernels,
                                                         KernelWatcher& watcher);
std::unique_ptr<ConvolutionKernels> make_watched_convolution(ConvolutionKernels& kernels,
                                                             KernelWatcher& watcher);
std::unique_ptr<OuterProductStateKernels> make_watched_outer_product_state(
    OuterProductStateKernels& kernels, KernelWatcher& watcher);
std::unique_ptr<ScanKernels> make_watched_scan(ScanKernels& kernels, KernelWatcher& watcher);
std::unique_ptr<DiagonalPlusRankOneKernels> make_watched_diagonal_plus_rank_one(
    DiagonalPlusRankOneKernels& kernels, KernelWatcher& watcher);
std::unique_ptr<RwkvKernels> make_watched_rwkv(RwkvKernels& kernels, KernelWatcher& watcher);
std::unique_ptr<StateRowKernels> make_watched_state_rows(StateRowKernels& kernels,
                                                         KernelWatcher& watcher);
std::unique_ptr<CompressiveMemoryKernels> make_watched_compressive_memory(
    CompressiveMemoryKernels& kernels, KernelWatcher& watcher);
std::unique_ptr<DiagonalScanKernels> make_watched_diagonal_scan(DiagonalScanKernels& kernels,
                                                                KernelWatcher& watcher);
std::unique_ptr<FastWeightMemoryKernels> make_watched_fast_weight_memory(
    FastWeightMemoryKernels& kernels, KernelWatcher& watcher);

}  // namespace pronghorn
