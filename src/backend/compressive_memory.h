// Compressive memories (Infini-attention, arXiv 2404.07143, section 2.1): a matrix M [key_dim,
// value_dim] and a vector z [key_dim] for each key-value head, which take in a segment of tokens at
// a time. With sigma(x) = ELU(x) + 1, and M and z from before a token's segment, row vectors:
//   read     o = sigma(q) M / (sigma(q) z),  0 before there is anything
//   update   M' = M + sum sigma(k)^T u,  z' = z + sum sigma(k)  over the segment's tokens
//   u = v, or with the delta rule v - sigma(k) M / (sigma(k) z)
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/operands.h"
#include "backend/replay.h"

namespace pronghorn {

struct CompressiveMemoryShape {
  int64_t heads = 1;
  int64_t kv_heads = 1;  // memories; query head h reads memory h / (heads / kv_heads)
  int64_t key_dim = 64, value_dim = 64;
  int64_t segment = 2048;  // tokens; a multiple of kExactStep
  bool delta_rule = false;

  int64_t memory_size() const { return key_dim * (value_dim + 1); }  // M, then z
  // A state of a sequence: the tokens that the growing memories have of their segment, and then for
  // each head the memory that is read and the one that grows.
  int64_t state_size() const { return 1 + 2 * kv_heads * memory_size(); }
  int64_t row_width() const { return kv_heads * (key_dim + value_dim); }  // keys, then values
};

struct CompressiveMemoryInputs {
  ConstMatrix q;     // [rows, heads key_dim]
  ConstMatrix k, v;  // [rows, kv_heads key_dim], [rows, kv_heads value_dim]
};

struct CompressiveMemoryGradients {
  Matrix q, k, v;
};

// Rows of a sequence that begins with them.
struct CompressiveMemoryRun {
  int64_t first_row = 0, length = 0;
};

class CompressiveMemoryKernels {
 public:
  virtual ~CompressiveMemoryKernels() = default;

  // out [rows, heads value_dim] of the rows of whole sequences.
  virtual void forward(const CompressiveMemoryShape& shape,
                       std::span<const CompressiveMemoryRun> runs,
                       const CompressiveMemoryInputs& inputs, const Matrix& out) = 0;

  // The gradients of forward(), whose result is `out`.
  virtual void backward(const CompressiveMemoryShape& shape,
                        std::span<const CompressiveMemoryRun> runs,
                        const CompressiveMemoryInputs& inputs, const ConstMatrix& out,
                        const ConstMatrix& grad_out,
                        const CompressiveMemoryGradients& gradients) = 0;

  // Steps of sequences with states, those of one in their order: folds, and writes the rows and
  // results of tokens. A token's bits depend on its query and the state before its step alone.
  virtual void steps(const CompressiveMemoryShape& shape,
                     std::span<const std::span<const ReplayStep>> sequences,
                     const CompressiveMemoryInputs& inputs, const Matrix& out) = 0;
};

std::unique_ptr<CompressiveMemoryKernels> make_cpu_compressive_memory_kernels();

}  // namespace pronghorn
