#include "backend/backend.h"
#include "backend/cpu/cpu_features.h"

namespace pronghorn {
namespace {

class CpuBackend final : public Backend {
 public:
  std::string description() const override { return "cpu: " + cpu_instruction_set(); }
  MatmulKernels& matmul() override { return *matmul_; }
  PointwiseKernels& pointwise() override { return *pointwise_; }
  AttentionKernels& attention() override { return *attention_; }
  ConvolutionKernels& convolution() override { return *convolution_; }
  OuterProductStateKernels& outer_product_state() override { return *outer_product_state_; }
  DiagonalPlusRankOneKernels& diagonal_plus_rank_one() override { return *diagonal_plus_rank_one_; }
  RwkvKernels& rwkv() override { return *rwkv_; }
  StateRowKernels& state_rows() override { return *state_rows_; }
  CompressiveMemoryKernels& compressive_memory() override { return *compressive_memory_; }
  ScanKernels& scan() override { return *scan_; }
  DiagonalScanKernels& diagonal_scan() override { return *diagonal_scan_; }
  FastWeightMemoryKernels& fast_weight_memory() override { return *fast_weight_memory_; }

 private:
  std::string first_use_ = cpu_instruction_set();  // reads PRONGHORN_CPU before any kernel runs
  std::unique_ptr<MatmulKernels> matmul_ = make_cpu_matmul_kernels();
  std::unique_ptr<PointwiseKernels> pointwise_ = make_cpu_pointwise_kernels();
  std::unique_ptr<AttentionKernels> attention_ = make_cpu_attention_kernels();
  std::unique_ptr<ConvolutionKernels> convolution_ = make_cpu_convolution_kernels();
  std::unique_ptr<OuterProductStateKernels> outer_product_state_ =
      make_cpu_outer_product_state_kernels();
  std::unique_ptr<DiagonalPlusRankOneKernels> diagonal_plus_rank_one_ =
      make_cpu_diagonal_plus_rank_one_kernels();
  std::unique_ptr<RwkvKernels> rwkv_ = make_cpu_rwkv_kernels();
  std::unique_ptr<StateRowKernels> state_rows_ = make_cpu_state_row_kernels();
  std::unique_ptr<CompressiveMemoryKernels> compressive_memory_ =
      make_cpu_compressive_memory_kernels();
  std::unique_ptr<ScanKernels> scan_ = make_cpu_scan_kernels();
  std::unique_ptr<DiagonalScanKernels> diagonal_scan_ = make_cpu_diagonal_scan_kernels();
  std::unique_ptr<FastWeightMemoryKernels> fast_weight_memory_ =
      make_cpu_fast_weight_memory_kernels();
};

Backend* current = nullptr;

}  // namespace

Backend& backend() {
  static CpuBackend instance;
  return current != nullptr ? *current : instance;
}

Backend& exchange_backend(Backend& other) {
  Backend& before = backend();
  current = &other;
  return before;
}

}  // namespace pronghorn
