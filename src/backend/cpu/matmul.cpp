// Dense matrix products on the CPU: blocking, threads and the choice of kernel.
#include "backend/matmul.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>

#include "backend/cpu/block_panels.h"
#include "backend/cpu/cpu_features.h"
#include "backend/cpu/matmul_block.h"
#include "backend/cpu/matmul_onednn.h"
#include "backend/cpu/matmul_scratch.h"
#include "backend/cpu/matmul_tasks.h"
#include "backend/cpu/packed_weight.h"
#include "base/error.h"
#include "base/threads.h"
#include "tensor/weight.h"

namespace pronghorn {
namespace {

constexpr int64_t kTileRows = 24;  // a multiple of the rows of any register tile
// Rows of the left operand converted at a time: with a sum of 512 terms, 96 KB of bf16, which stays
// in the second cache while the weight passes once. A multiple of kTileRows.
constexpr int64_t kRowBlock = 96;
// Steps of a sum before the next columns' turn: four panels of 256 steps are 64 KB, which the
// second cache delivers fast enough; fewer steps load and store the result more often (measured on
// Zen 4).
constexpr int64_t kStepBlock = 256;
// Columns whose result stays in the second cache from one block of steps to the next: with 96 rows
// 144 KB. A multiple of the panels of the kernels' tiles, whichever they are.
constexpr int64_t kColumnBlock = 24 * kPanel;
// The same where panels are unpacked for few rows: 16 KB, which stay in the first cache.
constexpr int64_t kFewStepBlock = 32, kFewColumnBlock = 8 * kPanel;
// Rows below which a call of oneDNN costs more than its kernels save.
constexpr int64_t kOneDnnRows = 64;
// Rows below which its kernels do not save what it costs to pack a weight for one product.
constexpr int64_t kOneDnnPassingRows = 512;

float rounded(float value) { return from_bf16(to_bf16(value)); }

// Whether products of bf16 go to oneDNN where that may be: on machines with AMX, for which we have
// no kernels. On Zen 4 oneDNN takes 0.9 to 0.98 of our time for y and dx of 4096 rows, 0.95 to 1.5
// of it for dW, and is not exact: not worth a second set of packed weights. PRONGHORN_MATMUL=own or
// onednn overrules.
bool choose_onednn() {
  const char* choice = std::getenv("PRONGHORN_MATMUL");
  if (choice == nullptr) return cpu_features().amx;
  const std::string_view name = choice;
  require(name == "own" || name == "onednn", "PRONGHORN_MATMUL", "'{}' is neither own nor onednn",
          name);
  return name == "onednn";
}

// The left operand as a kernel takes it: rows [row, row + block.rows) of x, rounded if need be, in
// a buffer of this thread. Sets the strides of `block` too.
const uint32_t* left_operand(Format format, ConstMatrix x, int64_t row, int64_t terms,
                             MatmulBlock& block) {
  block.a_step = 1;
  if (format == Format::f32) {
    block.a_row = x.stride;
    block.a_panel = block.a_row * kPanel;
    return reinterpret_cast<const uint32_t*>(x.row(row));
  }
  // A line more than needed: rows a power of two apart would share few sets of the cache.
  block.a_row = steps_of(format, terms) + kPanel;
  block.a_panel = block.a_row * kPanel;
  uint32_t* a = matmul_scratch(Scratch::left, block.rows * block.a_row);
  if (format == Format::pairs) {
    pair_columns_bf16(x.row(row), x.stride, block.rows, terms, a, block.a_row);
  } else {
    for (int64_t i = 0; i < block.rows; ++i) {
      const float* from = x.row(row + i);
      std::transform(from, from + terms, reinterpret_cast<float*>(a + i * block.a_row), rounded);
    }
  }
  return a;
}

// How a block of rows passes over columns and steps.
struct Passes {
  int64_t columns = 0;  // at a time; whole panels
  int64_t steps = 0;    // of the sum at a time

  Passes(const RightOperand& right, int64_t rows, int64_t all_steps) {
    const bool few = rows <= kPanel;
    if (right.direct() || right.pairs_in_place(rows)) {
      columns = kColumnBlock;
      // One pass over all steps where the rows are too few to use a block of the weight twice.
      const int64_t parts = few ? 1 : std::max<int64_t>(1, divide_up(all_steps, kStepBlock));
      steps = std::max<int64_t>(1, divide_up(all_steps, parts));
    } else {
      columns = few ? kFewColumnBlock : kColumnBlock;
      const int64_t granule = right.granule();
      steps = divide_up(few ? kFewStepBlock : kStepBlock, granule) * granule;
    }
  }
};

// y [rows, columns] = x [rows, terms] times the right operand, plus bias.
void multiply(const RightOperand& right, ConstMatrix x, int64_t rows, const float* bias, Matrix y) {
  const Format format = right.kernel;
  const int64_t columns = right.columns, terms = right.terms;
  const int64_t steps = steps_of(format, terms);

  // Row blocks of about the same height, and columns cut so that there is work for several threads.
  const int64_t row_blocks = divide_up(rows, kRowBlock);
  const int64_t row_block =
      row_blocks == 1 ? rows : divide_up(rows, row_blocks * kTileRows) * kTileRows;
  const int64_t wanted = matmul_pieces(rows * columns * terms);
  int64_t chunks = std::max<int64_t>(1, wanted / row_blocks);
  const int64_t chunk = divide_up(panels_of(columns), chunks) * kPanel;
  chunks = divide_up(columns, chunk);

  // Which piece of the result a task computes depends on shapes alone; what it computes does not
  // even depend on the pieces.
  parallel_for(divide_up(rows, row_block) * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / chunks * row_block, column = task % chunks * chunk;
      MatmulBlock block;
      block.rows = std::min(row_block, rows - row);
      block.c_stride = y.stride;
      const uint32_t* a = left_operand(format, x, row, terms, block);
      const Passes pass(right, block.rows, steps);
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
      const std::shared_ptr<const Storage> panels = packer_.blocks(weight);
      const BlockPanels shape{layout_of(weight.encoding()), weight.out(), weight.in()};
      return multiply_blocks(shape, reinterpret_cast<const uint8_t*>(panels->data()), x, rows, bias,
                             y);
    }
    if (!exact && use_onednn(precision, rows)) {
      if (weight.trainable().defined()) {
        return multiply_onednn(weight, Side::forward, x, rows, bias, y);
      }
      if (rows >= kOneDnnPassingRows) return multiply_in_passing(weight, x, rows, bias, y);
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
    if (use_onednn(precision, rows) && weight.trainable().defined()) {
      return multiply_onednn(weight, Side::backward, dy, rows, nullptr, dx);
    }
    multiply(packer_.operand(weight, Side::backward, precision), dy, rows, nullptr, dx);
  }

  void linear_backward_weight(ConstMatrix dy, ConstMatrix x, int64_t rows, int64_t out, int64_t in,
                              Matrix dw, Precision precision) override {
    matmul_weight_gradient(use_onednn(precision, rows) ? &library_ : nullptr,
                           kernel_format(precision), dy, x, rows, out, in, dw);
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
  void multiply_onednn(const Weight& weight, Side side, ConstMatrix x, int64_t rows,
                       const float* bias, Matrix y);

  void multiply_in_passing(const Weight& weight, ConstMatrix x, int64_t rows, const float* bias,
                           Matrix y);

  // The one place that decides between our kernels and oneDNN's.
  bool use_onednn(Precision precision, int64_t rows) const {
    return onednn_ && precision == Precision::bf16 && cpu_features().bf16 && rows >= kOneDnnRows;
  }

  WeightPacker packer_;
  const bool onednn_ = choose_onednn();
  OneDnnMatmul library_;
};

void CpuMatmulKernels::multiply_onednn(const Weight& weight, Side side, ConstMatrix x, int64_t rows,
                                       const float* bias, Matrix y) {
  const bool forward = side == Side::forward;
  OneDnnMatmul::Shape shape;
  shape.columns = forward ? weight.out() : weight.in();
  shape.terms = forward ? weight.in() : weight.out();
  shape.accumulate = y.accumulate;
  shape.bias = bias != nullptr;
  const void* b = packer_.onednn(weight, side, library_);
  // Tasks of few different heights, for each of which oneDNN compiles a kernel: the last rows go
  // through a padded buffer, and so does a result whose rows are not adjacent.
  const int64_t height = rows >= 512 ? 128 : rows >= 256 ? 64 : 32;
  parallel_for(divide_up(rows, height), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task * height, count = std::min(height, rows - row);
      const int64_t width = divide_up(shape.terms, 2);
      auto* a = reinterpret_cast<bf16_t*>(matmul_scratch(Scratch::left, height * width));
      OneDnnMatmul::Shape piece = shape;
      piece.rows = height;
      round_rows(x.row(row), x.stride, count, shape.terms, a, height, shape.terms);
      float* const c = y.row(row);
      if (count == height && y.stride == shape.columns) {
        library_.run(piece, a, b, bias, c);
        continue;
      }
      auto* edge = reinterpret_cast<float*>(matmul_scratch(Scratch::right, height * shape.columns));
      for (int64_t i = 0; i < height && y.accumulate; ++i) {
        if (i < count) {
          std::copy_n(y.row(row + i), shape.columns, edge + i * shape.columns);
        } else {
          std::fill_n(edge + i * shape.columns, shape.columns, 0.0f);
        }
      }
      library_.run(piece, a, b, bias, edge);
      for (int64_t i = 0; i < count; ++i) {
        std::copy_n(edge + i * shape.columns, shape.columns, y.row(row + i));
      }
    }
  });
}

// With oneDNN's kernels, for which each task packs its columns of the weight and forgets them: a
// read-only weight is kept once. y is not added to.
void CpuMatmulKernels::multiply_in_passing(const Weight& weight, ConstMatrix x, int64_t rows,
                                           const float* bias, Matrix y) {
  constexpr int64_t kHeight = 128, kWidth = 16 * kPanel, kSteps = 32;
  RightOperand right = packer_.operand(weight, Side::forward, Precision::bf16);
  right.kernel = Format::f32;  // what the library packs from
  const int64_t terms = right.terms, columns = right.columns;
  const int64_t strips = divide_up(rows, kHeight);
  const Storage rounded_x(static_cast<size_t>(strips * kHeight * terms) * sizeof(bf16_t));
  auto* const a = reinterpret_cast<bf16_t*>(rounded_x.data());
  parallel_for(strips, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kHeight, count = (end - begin) * kHeight;
    round_rows(x.row(first), x.stride, std::min(count, rows - first), terms, a + first * terms,
               count, terms);
  });
  parallel_for(divide_up(columns, kWidth), 1, [&](int64_t begin, int64_t end) {
    for (int64_t column = begin * kWidth; column < std::min(columns, end * kWidth);
         column += kWidth) {
      OneDnnMatmul::Shape shape;
      shape.rows = kHeight;
      shape.columns = std::min(kWidth, columns - column);
      shape.terms = terms;
      shape.bias = bias != nullptr;
      const int64_t panels = panels_of(shape.columns);
      auto* plain = reinterpret_cast<float*>(matmul_scratch(Scratch::left, terms * kWidth));
      std::array<float, kSteps * kWidth> unpacked;
      for (int64_t step = 0; step < terms; step += kSteps) {
        const int64_t steps = std::min(kSteps, terms - step);
        right.unpack(column / kPanel, panels, step, steps,
                     reinterpret_cast<uint32_t*>(unpacked.data()));
        for (int64_t p = 0; p < panels; ++p) {
          for (int64_t s = 0; s < steps; ++s) {
            std::copy_n(unpacked.data() + (p * steps + s) * kPanel, kPanel,
                        plain + (step + s) * kWidth + p * kPanel);
          }
        }
      }
      const size_t bytes = library_.packed_bytes(shape.columns, terms);
      auto* b = reinterpret_cast<std::byte*>(
          matmul_scratch(Scratch::right, static_cast<int64_t>(bytes / sizeof(uint32_t)) + 1));
      library_.pack(plain, kWidth, false, shape.columns, terms, b);
      auto* c = reinterpret_cast<float*>(matmul_scratch(Scratch::result, kHeight * kWidth));
      for (int64_t row = 0; row < rows; row += kHeight) {
        library_.run(shape, a + row * terms, b, bias == nullptr ? nullptr : bias + column, c);
        for (int64_t i = 0; i < std::min(kHeight, rows - row); ++i) {
          std::copy_n(c + i * shape.columns, shape.columns, y.row(row + i) + column);
        }
      }
    }
  });
}

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
