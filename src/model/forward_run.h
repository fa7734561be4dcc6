// ForwardRun: a forward that may wait between its parts while other forwards run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "layers/carry.h"
#include "layers/subsample.h"
#include "model/block.h"
#include "model/observer.h"
#include "tensor/batch.h"
#include "tensor/tape.h"

namespace pronghorn {

class Model;

// The context in which the rows of a batch are computed: products need not be exact where the batch
// does not.
Context forward_context(const Context& asked, const CheckedBatch& batch);

// The states of chains include their rows from now on.
void count_rows(const CheckedBatch& batch);

// Model::forward() in parts, of a batch with the masks that the model sees by. The operators are
// the same, in the same order and on the same rows, so the bits do not depend on where it waits or
// on what runs meanwhile. From its beginning to finish() the states of its sequences are of use to
// nobody else: a run that is given up leaves them halfway, to be replaced by copies made before.
class ForwardRun {
 public:
  // Makes the rows that enter the first block; sequences that have not begun read the prefix. Model
  // and batch, and what the batch leads to, must outlive it. Throws Error as Model::forward() does.
  ForwardRun(const Model& model, const Context& asked, const CheckedBatch& batch,
             const ForwardObserver& observer = {});
  ForwardRun(const Model& model, const Context& asked, CheckedBatch&& batch,
             const ForwardObserver& observer = {}) = delete;  // it would be gone
  ForwardRun(const ForwardRun&) = delete;
  ForwardRun& operator=(const ForwardRun&) = delete;

  // Runs the next part: a block, or one of its two parts. False: none was left.
  bool advance();
  // What Model::forward() returns. Once, when all parts have run.
  Tensor finish();

 private:
  struct OpenSpan {
    const Subsample& layer;
    int64_t number;
    Subsample::Span span;
    Carry carry;                // of the rows in the span
    std::vector<int32_t> rows;  // of the whole batch that are in the span; only with on_span
  };

  // Rows as the first block is given them.
  ForwardRun(const Model& model, const Context& context, const CheckedBatch& batch,
             const Tensor& rows);

  void begin(const CheckedBatch& batch, const Tensor& rows);
  void read_prefix(const Context& asked, const CheckedBatch& batch, const Tensor& prefix) const;
  const CheckedBatch& batch() const {
    return open_.empty() ? *whole_batch_ : open_.back().span.batch;
  }
  Carry& carry() { return open_.empty() ? *whole_ : open_.back().carry; }
  void enter_span();
  void leave_span();
  void run_part();
  // Behind a block. Whether the forward goes on.
  bool observe();

  const Model& model_;
  const Context context_;
  ForwardObserver observer_;
  std::optional<CheckedBatch> prefixed_;  // in a model with a prefix
  std::vector<int32_t> own_;              // rows of that which are the caller's; empty: all
  const CheckedBatch* whole_batch_ = nullptr;
  std::optional<Carry> whole_;
  std::vector<OpenSpan> open_;
  Stream stream_;
  size_t step_ = 0, block_ = 0;  // of the pattern, of the blocks: the next
  int64_t next_span_ = 0;
  bool half_ = false;   // the first part of the block has run
  bool ended_ = false;  // an observer wants no more
};

}  // namespace pronghorn
