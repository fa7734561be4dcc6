// Dense matrix products on the CPU: blocking, threads and the choice of kernel.
#include "backend/matmul.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "backend/cpu/block_panels.h"
#include "backend/cpu/cpu_features.h"
#include "backend/cpu/matmul_block.h"
#include "backend/cpu/matmul_scratch.h"
#include "backend/cpu/matmul_tasks.h"
#include "backend/cpu/packed_weight.h"
#include "base/error.h"
#include "base/threads.h"
#include "tensor/weight.h"

namespace pronghorn {
namespace {

// How products are cut. Numbers of our own kernels are from Zen 4: rows of 512 terms are 96 KB of
// bf16, which stay in the second cache while the weight passes once; four panels of 256 steps are
// 64 KB, which that cache delivers fast enough, where fewer steps load and store results more
// often; results of 96 rows and 24 panels are 144 KB, which stay there from one block of steps to
// the next. AMX multiplies ten times as fast and has larger caches beside it: more rows pass by
// what is read or unpacked of a weight, and results come and go less often.
struct Blocking {
  int64_t tile_rows = 24;  // a multiple of the rows of any register tile
  int64_t rows = 96;       // at a time; a multiple of tile_rows
  int64_t steps = 256;
  int64_t columns = 24 * kPanel;  // a multiple of the panels of the kernels' tiles

  explicit Blocking(Format format) {
    if (!uses_amx(format)) return;
    tile_rows = 32;
    rows = 512;
    steps = 512;
    columns = 8 * kPanel;
  }
};
// The same where panels are unpacked for few rows: 16 KB, which stay in the first cache.
constexpr int64_t kFewStepBlock = 32, kFewColumnBlock = 8 * kPanel;
// Rows that weights in blocks are unpacked for, where AMX can have them.
constexpr int64_t kUnpackRows = 64;

float rounded(float value) { return from_bf16(to_bf16(value)); }

// Rows as kernels take them: `stride` steps apart.
struct LeftOperand {
  const uint32_t* data = nullptr;
  int64_t stride = 0;

  LeftOperand(Format format, ConstMatrix x, int64_t terms)
      : data(reinterpret_cast<const uint32_t*>(x.data)), stride(x.stride) {
    // A line more than needed: rows a power of two apart would share few sets of the cache.
    if (format != Format::f32) stride = steps_of(format, terms) + kPanel;
  }
};

// Rounds rows [first, first + count) of x for kernels that do not take f32.
void round_rows(Format format, ConstMatrix x, int64_t terms, int64_t first, int64_t count,
                uint32_t* to, int64_t stride) {
  if (format == Format::pairs) {
    return pair_columns_bf16(x.row(first), x.stride, count, terms, to, stride);
  }
  for (int64_t i = 0; i < count; ++i) {
    const float* from = x.row(first + i);
    std::transform(from, from + terms, reinterpret_cast<float*>(to + i * stride), rounded);
  }
}

// How a block of rows passes over columns and steps.
struct Passes {
  int64_t columns = 0;  // at a time; whole panels
  int64_t steps = 0;    // of the sum at a time; whole groups

  Passes(const RightOperand& right, const Blocking& blocking, int64_t rows, int64_t all_steps) {
    const bool few = rows <= kPanel;
    const int64_t most = blocking.steps;
    if (right.direct() || right.pairs_in_place(rows)) {
      columns = blocking.columns;
      // One pass over all steps where the rows are too few to use a block of the weight twice.
      const int64_t parts = few ? 1 : std::max<int64_t>(1, divide_up(all_steps, most));
      steps = std::max<int64_t>(1, divide_up(divide_up(all_steps, parts), kStepGroup)) * kStepGroup;
    } else {
      columns = few ? kFewColumnBlock : blocking.columns;
      const int64_t granule = std::lcm(right.granule(), kStepGroup);
      steps = divide_up(few ? kFewStepBlock : most, granule) * granule;
    }
  }
};

// y [rows, columns] = x [rows, terms] times the right operand, plus bias.
void multiply(const RightOperand& right, ConstMatrix x, int64_t rows, const float* bias, Matrix y) {
  const Format format = right.kernel;
  const int64_t columns = right.columns, terms = right.terms;
  const int64_t steps = steps_of(format, terms);

  // Row blocks of about the same height, and columns cut so that there is work for several threads.
  const Blocking blocking(format);
  const int64_t row_blocks = divide_up(rows, blocking.rows);
  const int64_t row_block =
      row_blocks == 1 ? rows
                      : divide_up(rows, row_blocks * blocking.tile_rows) * blocking.tile_rows;
  const int64_t wanted = matmul_pieces(rows * columns * terms);
  int64_t chunks = std::max<int64_t>(1, wanted / row_blocks);
  // Whole pairs of panels: AMX multiplies two at a time.
  const int64_t chunk = divide_up(panels_of(columns), 2 * chunks) * 2 * kPanel;
  chunks = divide_up(columns, chunk);

  // Many rows are rounded once for all tasks, few by each of them: that costs less than a fork.
  LeftOperand left(format, x, terms);
  const bool in_tasks = format != Format::f32 && rows <= kPanel;
  if (format != Format::f32 && !in_tasks) {
    constexpr int64_t kGrain = 1 << 15;
    uint32_t* const all = matmul_scratch(Scratch::rows, rows * left.stride);
    parallel_for(rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, terms)),
                 [&](int64_t begin, int64_t end) {
                   round_rows(format, x, terms, begin, end - begin, all + begin * left.stride,
                              left.stride);
                 });
    left.data = all;
  }

  // Which piece of the result a task computes depends on shapes alone; what it computes does not
  // even depend on the pieces.
  parallel_for(divide_up(rows, row_block) * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / chunks * row_block, column = task % chunks * chunk;
      MatmulBlock block;
      block.rows = std::min(row_block, rows - row);
      block.c_stride = y.stride;
      block.a_row = left.stride;
      block.a_panel = block.a_row * kPanel;
      block.a_step = 1;
      const uint32_t* a = left.data + row * left.stride;
      if (in_tasks) {
        uint32_t* const own = matmul_scratch(Scratch::rows, block.rows * left.stride);
        round_rows(format, x, terms, row, block.rows, own, left.stride);
        a = own;
      }
      const Passes pass(right, blocking, block.rows, steps);
      const int64_t end_column = std::min(columns, column + chunk);
      for (int64_t first = column; first < end_column; first += pass.columns) {
        block.columns = std::min(pass.columns, end_column - first);
        block.c = y.row(row) + first;
        // At least once, for a sum without terms.
        for (int64_t step = 0; step == 0 || step < steps; step += pass.steps) {
          block.steps = std::min(pass.steps, steps - step);
          block.a = a + step;
          if (right.direct()) {
            block.b = right.data() + first * steps + step * kPanel;
            block.b_panel = steps * kPanel;
          } else if (right.pairs_in_place(block.rows)) {
            block.pairs = true;
            block.b_panel = steps_of(right.held, terms) * kPanel;
            block.b = right.data() + first / kPanel * block.b_panel;
          } else {
            uint32_t* b =
                matmul_scratch(Scratch::right, panels_of(block.columns) * block.steps * kPanel);
            right.unpack(first / kPanel, panels_of(block.columns), step, block.steps, b);
            block.b = b;
            block.b_panel = block.steps * kPanel;
          }
          block.load = y.accumulate || step > 0;
          block.bias = step + pass.steps >= steps && bias != nullptr ? bias + first : nullptr;
          run_matmul_block(format, block);
        }
      }
    }
  });
}

class CpuMatmulKernels final : public MatmulKernels {
 public:
  void linear_forward(const Weight& weight, ConstMatrix x, int64_t rows, const float* bias,
                      Matrix y, Precision precision, bool exact) override {
    if (rows == 0 || weight.out() == 0) return;
    if (precision == Precision::bf16 && WeightPacker::takes_blocks(weight)) {
      if (!exact && rows >= kUnpackRows && uses_amx(kernel_format(precision))) {
        return multiply(packer_.block_pairs(weight), x, rows, bias, y);
      }
      const std::shared_ptr<const Storage> panels = packer_.blocks(weight);
      const BlockPanels shape{layout_of(weight.encoding()), weight.out(), weight.in()};
      return multiply_blocks(shape, reinterpret_cast<const uint8_t*>(panels->data()), x, rows, bias,
                             y);
    }
    multiply(packer_.operand(weight, Side::forward, precision), x, rows, bias, y);
  }

  void grouped_forward(std::span<const GroupedProduct> products, Precision precision,
                       bool exact) override {
    // Short products side by side, one a task; long ones have work for all threads.
    const auto count = static_cast<int64_t>(products.size());
    const bool is_short = std::ranges::all_of(
        products, [](const GroupedProduct& product) { return product.rows <= kPanel; });
    const int64_t grain = is_short && count >= thread_count() ? 1 : count;
    parallel_for(count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const GroupedProduct& product = products[static_cast<size_t>(i)];
        linear_forward(*product.weight, product.x, product.rows, product.bias, product.y, precision,
                       exact);
      }
    });
  }

  void linear_backward_input(const Weight& weight, ConstMatrix dy, int64_t rows, Matrix dx,
                             Precision precision) override {
    if (rows == 0 || weight.in() == 0) return;
    multiply(packer_.operand(weight, Side::backward, precision), dy, rows, nullptr, dx);
  }

  void linear_backward_weight(ConstMatrix dy, ConstMatrix x, int64_t rows, int64_t out, int64_t in,
                              Matrix dw, Precision precision) override {
    matmul_weight_gradient(kernel_format(precision), dy, x, rows, out, in, dw);
  }

  void linear_backward_bias(ConstMatrix dy, int64_t rows, int64_t out, GradVector db) override;

  void read_rows(const Weight& weight, std::span<const int32_t> rows, Matrix to) override {
    packer_.read_rows(weight, rows, to);
  }
  void read_stored(const Weight& weight, std::byte* to) override {
    packer_.read_stored(weight, to);
  }
  int64_t resident_bytes(const Weight& weight, Precision precision) override {
    return packer_.resident_bytes(weight, precision);
  }
  int64_t bytes_read(const Weight& weight, Precision precision) override {
    return packer_.bytes_read(weight, precision);
  }

 private:
  WeightPacker packer_;
};

void CpuMatmulKernels::linear_backward_bias(ConstMatrix dy, int64_t rows, int64_t out,
                                            GradVector db) {
  constexpr int64_t kColumns = 64;
  const int64_t grain = matmul_pieces(rows * out) == 1 ? out : kColumns;
  parallel_for(out, grain, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; j += kColumns) {
      const int64_t width = std::min(kColumns, end - j);
      std::array<float, kColumns> sum{};
      if (db.accumulate) std::copy_n(db.data + j, width, sum.data());
      for (int64_t i = 0; i < rows; ++i) {
        const float* from = dy.row(i) + j;
        if (width == kColumns) {
          for (int64_t c = 0; c < kColumns; ++c) sum[static_cast<size_t>(c)] += from[c];
        } else {
          for (int64_t c = 0; c < width; ++c) sum[static_cast<size_t>(c)] += from[c];
        }
      }
      std::copy_n(sum.data(), width, db.data + j);
    }
  });
}

}  // namespace

std::unique_ptr<MatmulKernels> make_cpu_matmul_kernels() {
  return std::make_unique<CpuMatmulKernels>();
}

}  // namespace pronghorn
