// Compressed keys and values (native sparse attention, arXiv 2502.11089, section 3.3.1): entries
// that stand for overlapping blocks of a sequence's rows, attention to them, and the choice of
// blocks by that attention (section 3.3.2).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/attention.h"
#include "ops/attention.h"
#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

struct CompressedKeysOptions {
  AttentionOptions attention;       // heads and widths, scale
  int64_t block = 32, stride = 16;  // rows of a block, and from one to the next, which divides it
  // Of the blocks that are chosen, and how many a group of query heads looks at: stride divides
  // select_block, and that or kAttentionTile the other.
  int64_t select_block = 64, select_top = 16;
  // The first blocks and the last ones up to a row's own are always among them, and fit.
  int64_t select_first = 1, select_last = 2;

  int64_t width() const;  // of a row and of an entry: keys and values of all key-value heads
};

// A row is what entries are made of; of those before the last `block` rows only entries are kept.
JournalShape compressed_keys_journal(const CompressedKeysOptions& options);

// One forward's use, in this order: construction, set() with what the caller makes of
// block_rows(), then attend() and choose().
class CompressedKeys {
 public:
  // x [rows, width] is appended to the journals at `slot`. Throws Error for a tape beside a state.
  CompressedKeys(const Context& context, const Tensor& x, const CompressedKeysOptions& options,
                 const CheckedBatch& batch, JournalSlot slot);
  CompressedKeys(const CompressedKeys&) = delete;
  CompressedKeys& operator=(const CompressedKeys&) = delete;
  ~CompressedKeys();

  // Blocks that end within the batch: their rows one after another [blocks block, width]; undefined
  // if there are none. The gradient goes to x.
  const Tensor& block_rows() const;
  // The position of the last row of each.
  std::span<const int32_t> positions() const;

  // entries: [blocks, width], keys of all heads and then values, a row from each block alone;
  // undefined if there are none.
  void set(const Tensor& entries);

  // Attention of q [rows, heads head_dim] to the entries whose blocks end at a row or before it:
  // [rows, heads value_dim], 0 for a row without any.
  Tensor attend(const Context& context, const Tensor& q) const;

  // The blocks of select_block rows that the key-value heads' groups choose: those whose rows have
  // the largest shares in the softmax of attend(), summed over the query heads of a group and over
  // the strides of the blocks that entries stand for (equations 9 and 10).
  BlockLists choose(const Tensor& q) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace pronghorn
