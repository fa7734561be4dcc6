// Backend: the kernels that operators run on, chosen once from the features of the processor.
//
// Operators reach the numbers of tensors and journals only through these interfaces and memory()
// (tensor/memory.h), so that another kind of device can take their place; a test closes that
// memory to everything else (tests/model/guarded_memory_test.cpp). A kernel takes pointers, strides
// (in elements) and sizes, never a Tensor; lists of indices and of addresses are the host's. It
// runs in parallel inside (parallel_for) and gives the same bits for any number of threads.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "backend/attention.h"
#include "backend/compressive_memory.h"
#include "backend/convolution.h"
#include "backend/diagonal_plus_rank_one.h"
#include "backend/diagonal_scan.h"
#include "backend/fast_weight_memory.h"
#include "backend/matmul.h"
#include "backend/outer_product_state.h"
#include "backend/pointwise.h"
#include "backend/rwkv.h"
#include "backend/scan.h"
#include "backend/state_rows.h"

namespace pronghorn {

class Backend {
 public:
  virtual ~Backend() = default;

  // For people: "cpu: avx512, bf16".
  virtual std::string description() const = 0;

  virtual MatmulKernels& matmul() = 0;
  virtual PointwiseKernels& pointwise() = 0;
  virtual AttentionKernels& attention() = 0;
  virtual ConvolutionKernels& convolution() = 0;
  virtual OuterProductStateKernels& outer_product_state() = 0;
  virtual DiagonalPlusRankOneKernels& diagonal_plus_rank_one() = 0;
  virtual RwkvKernels& rwkv() = 0;
  virtual ScanKernels& scan() = 0;
  virtual DiagonalScanKernels& diagonal_scan() = 0;
  virtual FastWeightMemoryKernels& fast_weight_memory() = 0;
  virtual StateRowKernels& state_rows() = 0;
  virtual CompressiveMemoryKernels& compressive_memory() = 0;
};

// The backend of this process.
Backend& backend();

// For tests: puts another in its place, which must outlive its use, and returns the one before.
Backend& exchange_backend(Backend& other);

}  // namespace pronghorn
