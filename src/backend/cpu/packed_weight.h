// Weights as right operands of products on the CPU: what is kept packed, in which format, and how
// the kernels' panels come out of it.
//
// A panel is 16 columns of an operand, [steps][16], in steps of 4 bytes. What is kept of a weight
// is its panels in the format of the kernel where that costs speed or memory otherwise; a read-only
// weight in bf16 is kept as pairs of bf16 for all kernels, and one in an encoding of blocks for
// those of whole numbers (backend/cpu/block_panels.h). What is not kept in the kernel's format
// becomes so a few panels at a time.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "backend/cpu/matmul_block.h"
#include "backend/operands.h"
#include "base/float16.h"
#include "tensor/dtype.h"
#include "tensor/storage.h"
#include "tensor/weight.h"

namespace pronghorn {

// What the 4-byte steps of packed operands hold.
enum class Format {
  f32,
  rounded,  // f32 with the value of a bf16: Precision::bf16 where no bf16 instructions are
  pairs,    // two bf16, neighbours along the sum
  blocks,   // panels of blocks
  stored    // not packed: the weight's own encoding
};
constexpr size_t kPackedFormats = 4;

inline float rounded_to_bf16(float value) { return from_bf16(to_bf16(value)); }

enum class PanelSide { forward, backward };  // sums over `in` or over `out`

constexpr int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }
constexpr int64_t panels_of(int64_t columns) { return divide_up(columns, kPanel); }
// Numbers along the sum in one step.
constexpr int64_t terms_of(Format format) { return format == Format::pairs ? 2 : 1; }
constexpr int64_t steps_of(Format format, int64_t terms) {
  return divide_up(terms, terms_of(format));
}

// The format of our kernels' operands.
Format kernel_format(Precision precision);

// Rows -> panels [columns / 16][steps][16] whose sum runs over the rows, `panel` units from one to
// the next.
void pack_rows(Format format, ConstMatrix x, int64_t rows, int64_t columns, uint32_t* panels,
               int64_t panel);

// At most 16 rows -> one panel [steps][16] whose sum runs over the columns.
void pack_transposed(Format format, ConstMatrix x, int64_t rows, int64_t columns, uint32_t* panel);

// The numbers of a weight, from where they are: as they are stored or, if there are no such bytes,
// in panels of the forward side that hold all of them.
struct WeightNumbers {
  int64_t out = 0, in = 0;
  const Encoding* encoding = nullptr;
  Stored stored;
  std::shared_ptr<const Storage> panels;
  Format format = Format::f32;  // of the panels

  // The stored numbers where kernels can read them in place; or null.
  const float* f32() const;
  // Numbers [begin, begin + count) of a row, whole blocks.
  void read(int64_t row, int64_t begin, int64_t count, float* to) const;
  // A row as it is or was stored.
  void read_stored(int64_t row, std::byte* to) const;
};

// The right operand of a product, [terms, columns], for kernels that take `kernel`.
struct RightOperand {
  Format kernel = Format::f32, held = Format::f32;
  int64_t columns = 0, terms = 0;
  std::shared_ptr<const Storage> panels;  // in the format `held`, unless that is `stored`
  WeightNumbers numbers;                  // where it is
  PanelSide side = PanelSide::forward;

  const uint32_t* data() const { return reinterpret_cast<const uint32_t*>(panels->data()); }
  // Whether kernels take what is held; if not, they take what unpack() makes of it.
  bool direct() const { return held == kernel; }
  // Whether f32 kernels may take the pairs that are held: for few rows, which would wait for memory
  // while pairs are unpacked.
  bool pairs_in_place(int64_t rows) const {
    constexpr int64_t kFewRows = 4;
    return held == Format::pairs && !direct() && rows <= kFewRows;
  }
  // Steps that an unpack() may start at are multiples of this.
  int64_t granule() const;
  // Steps [step, step + count) of `panels` panels from panel `first` on -> [panels][count][16].
  void unpack(int64_t first, int64_t panels, int64_t step, int64_t count, uint32_t* to) const;

 private:
  void unpack_backward(int64_t first, int64_t panels, int64_t step, int64_t count,
                       uint32_t* to) const;
};

// The packed copies of all weights of a backend. Thread-safe.
class WeightPacker {
 public:
  // For our own kernels.
  RightOperand operand(const Weight& weight, PanelSide side, Precision precision);

  // Panels of blocks, for the kernels of whole numbers; of weights that takes_blocks() only.
  std::shared_ptr<const Storage> blocks(const Weight& weight);
  static bool takes_blocks(const Weight& weight);
  // The same for kernels that take pairs of bf16, which are made in passing.
  RightOperand block_pairs(const Weight& weight);

  // As MatmulKernels says.
  void read_rows(const Weight& weight, std::span<const int32_t> rows, Matrix to);
  void read_stored(const Weight& weight, std::byte* to);
  int64_t resident_bytes(const Weight& weight, Precision precision) const;
  int64_t bytes_read(const Weight& weight, Precision precision) const;

 private:
  std::mutex mutex_;
};

}  // namespace pronghorn
