// Carry: what the layers of one forward hand to each other besides the residual stream, and the
// losses that they ask the trainer to add to its own.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/batch.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn {

// A loss of a layer, such as the balance of experts. Training adds weight * value to its loss.
struct LayerLoss {
  std::string name;  // losses of one name are added up in the log
  Tensor value;      // [1]: a mean over the rows of the layer's batch
  double weight = 1;
};

// How many rows of a batch each expert of a layer was given.
struct ExpertLoad {
  int64_t layer = 0;
  std::vector<int64_t> rows;
};

// Keys and values of a layer of attention that later layers may read as if they were theirs.
struct LentKeys {
  int64_t number = 0;   // under which they are asked for
  Tensor keys, values;  // of the batch's rows, the keys with their rotary positions
  JournalSlot slot;     // where the sequence's are
};

// Which of what layers hand out somebody receives.
struct HandedOut {
  bool losses = false, loads = false;
};

class Carry {
 public:
  // rows: of the batch.
  explicit Carry(int64_t rows, HandedOut wanted = {}) : rows_(rows), wanted_(wanted) {}

  // Carries `tensor`, one row per row of the batch, under this name for the layers that follow.
  // One that is there already is replaced. Throws Error if the number of rows is another.
  void set(std::string_view name, Tensor tensor);
  // Null if nothing of this name is carried.
  const Tensor* find(std::string_view name) const;
  // Throws Error if nothing of this name is carried.
  const Tensor& at(std::string_view name) const;

  // Lends keys and values to the layers that follow, in place of those lent under this number.
  void lend(LentKeys lent);
  // Those that the nearest layer before this one lent under the number. Throws Error if none did.
  const LentKeys& borrow(int64_t number) const;

  HandedOut wanted() const { return wanted_; }
  // Whether to compute a loss at all: without a receiver it would be thrown away.
  bool wants_losses() const { return wanted_.losses; }
  void add_loss(std::string_view name, Tensor value, double weight);
  std::span<const LayerLoss> losses() const { return losses_; }
  bool wants_loads() const { return wanted_.loads; }
  void add_load(ExpertLoad load);
  std::span<const ExpertLoad> loads() const { return loads_; }

  // Of a subsampled span: the carried tensors' rows that enter it. Lent keys do not: their journal
  // has rows for tokens that the span has not. What layers in the span carry ends with it; what
  // they hand out, of the rows there, is handed on by take().
  Carry select(const Context& context, std::span<const int32_t> rows) const;
  void take(const Carry& inner);

  // For whoever has to put other tensors in their places (recomputed blocks).
  struct Entry {
    std::string name;
    Tensor tensor;
  };
  std::vector<Entry>& entries() { return entries_; }
  std::vector<LentKeys>& lent() { return lent_; }
  std::vector<LayerLoss>& losses() { return losses_; }

 private:
  int64_t rows_;
  HandedOut wanted_;
  std::vector<Entry> entries_;
  std::vector<LentKeys> lent_;
  std::vector<LayerLoss> losses_;
  std::vector<ExpertLoad> loads_;
};

}  // namespace pronghorn
