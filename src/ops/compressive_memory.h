// Compressive memory (Infini-attention, arXiv 2404.07143, section 2.1): what a head has seen before
// the segment of a token, in one matrix. Equations: backend/compressive_memory.h.
#pragma once

#include <cstdint>

#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

struct CompressiveMemoryOptions {
  int64_t heads = 1;
  int64_t kv_heads = 1;  // memories; divides heads
  int64_t key_dim = 64, value_dim = 64;
  int64_t segment = 2048;  // tokens; a multiple of kExactStep
  bool delta_rule = false;
};

// A row is a token's key and value; the anchor the memories, that which is read until the segment's
// end and that which grows, so that no more rows are kept than of any recurrence.
JournalShape compressive_memory_journal(const CompressiveMemoryOptions& options);

// q [rows, heads key_dim], k [rows, kv_heads key_dim], v [rows, kv_heads value_dim]; returns [rows,
// heads value_dim]: what the memory of the sequence before a row's segment has for its query, 0 in
// the first. Segments are counted by rows from the first of the sequence on. A row's bits do not
// depend on how the sequence was cut. Throws Error on widths that do not fit the options, on
// segments that are not causal, and on a state while gradients are recorded.
Tensor compressive_memory(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                          const CompressiveMemoryOptions& options, const CheckedBatch& batch,
                          JournalSlot slot);

}  // namespace pronghorn
