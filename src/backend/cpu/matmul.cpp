// Dense matrix products on the CPU: blocking, threads and the choice of kernel.
#include "backend/matmul.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "backend/cpu/block_products.h"
#include "backend/cpu/cpu_features.h"
#include "backend/cpu/matmul_block.h"
#include "backend/cpu/matmul_scratch.h"
#include "backend/cpu/matmul_tasks.h"
#include "backend/cpu/packed_weight.h"
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
    std::transform(from, from + terms, reinterpret_cast<float*>(to + i * stride), rounded_to_bf16);
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
struct DenseProduct {
  RightOperand right;
  ConstMatrix x;
  int64_t rows = 0;
  const float* bias = nullptr;
  Matrix y;

  int64_t work() const { return rows * right.columns * right.terms; }
  bool reads_rows_of(const DenseProduct& other) const {
    return x.data == other.x.data && x.stride == other.x.stride && rows == other.rows &&
           right.terms == other.right.terms;
  }
};

// How one of several products is cut into tasks.
struct Cut {
  LeftOperand left;
  int64_t row_block = 0;
  int64_t chunk = 0, chunks = 0;  // columns
  int64_t tasks = 0, first_task = 0;

  // Row blocks of about the same height, and columns cut so that there are about that many pieces.
  Cut(const DenseProduct& product, const Blocking& blocking, int64_t pieces)
      : left(product.right.kernel, product.x, product.right.terms) {
    const int64_t rows = product.rows, row_blocks = divide_up(rows, blocking.rows);
    row_block = row_blocks == 1
                    ? rows
                    : divide_up(rows, row_blocks * blocking.tile_rows) * blocking.tile_rows;
    chunks = std::max<int64_t>(1, pieces / row_blocks);
    // Whole pairs of panels: AMX multiplies two at a time.
    chunk = divide_up(panels_of(product.right.columns), 2 * chunks) * 2 * kPanel;
    chunks = divide_up(product.right.columns, chunk);
    tasks = divide_up(rows, row_block) * chunks;
  }
};

// The last element whose `first` is not after index.
template <typename List>
size_t place_of(const List& list, int64_t index, int64_t(List::value_type::*first)) {
  const auto after = std::ranges::upper_bound(list, index, {}, first);
  return static_cast<size_t>(after - list.begin()) - 1;
}

// Rounds the rows of all products, those that several read once; few of them without a fork.
void round_all(std::span<const DenseProduct> products, PooledVector<Cut>& cuts) {
  struct Rows {
    size_t product = 0;
    int64_t first = 0;  // rows before them
    uint32_t* to = nullptr;
  };
  PooledVector<Rows> distinct;
  distinct.reserve(products.size());
  PooledVector<size_t> readers(products.size());  // which of them a product reads
  int64_t rows = 0, steps = 0, widest = 1;
  for (size_t i = 0; i < products.size(); ++i) {
    const auto known = std::ranges::find_if(distinct, [&](const Rows& each) {
      return products[i].reads_rows_of(products[each.product]);
    });
    readers[i] = static_cast<size_t>(known - distinct.begin());
    if (known != distinct.end()) continue;
    distinct.push_back({i, rows, nullptr});
    rows += products[i].rows;
    steps += products[i].rows * cuts[i].left.stride;
    widest = std::max(widest, products[i].right.terms);
  }
  uint32_t* next = matmul_scratch(MatmulBuffer::rows, steps);
  for (Rows& each : distinct) {
    each.to = next;
    next += products[each.product].rows * cuts[each.product].left.stride;
  }
  for (size_t i = 0; i < products.size(); ++i) cuts[i].left.data = distinct[readers[i]].to;
  constexpr int64_t kGrain = 1 << 15;
  parallel_for(rows, std::max<int64_t>(1, kGrain / widest), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const Rows& some = distinct[place_of(distinct, begin, &Rows::first)];
      const DenseProduct& product = products[some.product];
      const int64_t stride = cuts[some.product].left.stride, first = begin - some.first;
      const int64_t count = std::min(product.rows - first, end - begin);
      round_rows(product.right.kernel, product.x, product.right.terms, first, count,
                 some.to + first * stride, stride);
      begin += count;
    }
  });
}

// One task of a product.
void run_task(const DenseProduct& product, const Cut& cut, const Blocking& blocking, int64_t task) {
  const RightOperand& right = product.right;
  const Format format = right.kernel;
  const int64_t steps = steps_of(format, right.terms);
  const int64_t row = task / cut.chunks * cut.row_block, column = task % cut.chunks * cut.chunk;
  MatmulBlock block;
  block.rows = std::min(cut.row_block, product.rows - row);
  block.c_stride = product.y.stride;
  block.a_row = cut.left.stride;
  block.a_panel = block.a_row * kPanel;
  block.a_step = 1;
  const uint32_t* a = cut.left.data + row * cut.left.stride;
  const Passes pass(right, blocking, block.rows, steps);
  const int64_t end_column = std::min(right.columns, column + cut.chunk);
  for (int64_t first = column; first < end_column; first += pass.columns) {
    block.columns = std::min(pass.columns, end_column - first);
    block.c = product.y.row(row) + first;
    // At least once, for a sum without terms.
    for (int64_t step = 0; step == 0 || step < steps; step += pass.steps) {
      block.steps = std::min(pass.steps, steps - step);
      block.a = a + step;
      if (right.direct()) {
        block.b = right.data() + first * steps + step * kPanel;
        block.b_panel = steps * kPanel;
      } else if (right.pairs_in_place(block.rows)) {
        block.pairs = true;
        block.b_panel = steps_of(right.held, right.terms) * kPanel;
        block.b = right.data() + first / kPanel * block.b_panel;
      } else {
        uint32_t* b =
            matmul_scratch(MatmulBuffer::right, panels_of(block.columns) * block.steps * kPanel);
        right.unpack(first / kPanel, panels_of(block.columns), step, block.steps, b);
        block.b = b;
        block.b_panel = block.steps * kPanel;
      }
      block.load = product.y.accumulate || step > 0;
      block.bias =
          step + pass.steps >= steps && product.bias != nullptr ? product.bias + first : nullptr;
      run_matmul_block(format, block);
    }
  }
}

// All products, of one kernel's format, in one fork of the threads, or one more where many rows are
// rounded first.
void multiply(std::span<const DenseProduct> products) {
  if (products.empty()) return;
  const Format format = products[0].right.kernel;
  const Blocking blocking(format);
  int64_t few_work = 0;
  bool all_few = true;
  for (const DenseProduct& product : products) {
    const bool few = product.rows <= kPanel;
    if (few) few_work += product.work();
    all_few = all_few && few;
  }
  // Of few rows, pieces are shares of the work of all products; of many, each has enough.
  const int64_t few_pieces = matmul_pieces(few_work);
  PooledVector<Cut> cuts;
  cuts.reserve(products.size());
  int64_t tasks = 0;
  for (const DenseProduct& product : products) {
    const int64_t work = product.work();
    const int64_t pieces = product.rows <= kPanel
                               ? divide_up(work * few_pieces, std::max<int64_t>(1, few_work))
                               : matmul_pieces(work);
    cuts.emplace_back(product, blocking, pieces).first_task = tasks;
    tasks += cuts.back().tasks;
  }
  if (format != Format::f32) round_all(products, cuts);

  // Which piece of the result a task computes depends on shapes alone; what it computes does not
  // even depend on the pieces.
  const int64_t grain = all_few && few_pieces == 1 ? std::max<int64_t>(1, tasks) : 1;
  parallel_for(tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const size_t index = place_of(cuts, task, &Cut::first_task);
      run_task(products[index], cuts[index], blocking, task - cuts[index].first_task);
    }
  });
}

class CpuMatmulKernels final : public MatmulKernels {
 public:
  void linear_forward(const Weight& weight, ConstMatrix x, int64_t rows, const float* bias,
                      Matrix y, Precision precision, bool exact) override {
    if (rows == 0 || weight.out() == 0) return;
    const GroupedProduct product{&weight, x, rows, bias, y};
    if (takes_blocks(product, precision, exact)) {
      const std::shared_ptr<const Storage> panels = packer_.blocks(weight);
      return multiply_blocks(shape_of(weight), numbers_of(panels), x, rows, bias, y);
    }
    const DenseProduct dense = dense_product(product, precision);
    multiply({&dense, 1});
  }

  void grouped_forward(std::span<const GroupedProduct> products, Precision precision,
                       bool exact) override {
    PooledVector<DenseProduct> dense;
    PooledVector<BlockLinear> blocks;
    PooledVector<std::shared_ptr<const Storage>> panels;  // of blocks
    for (const GroupedProduct& product : products) {
      if (product.rows == 0 || product.weight->out() == 0) continue;
      if (takes_blocks(product, precision, exact)) {
        blocks.reserve(products.size());
        panels.reserve(products.size());
        panels.push_back(packer_.blocks(*product.weight));
        blocks.push_back({shape_of(*product.weight), numbers_of(panels.back()), product.x,
                          product.rows, product.bias, product.y});
      } else {
        dense.reserve(products.size());
        dense.push_back(dense_product(product, precision));
      }
    }
    multiply_blocks(blocks);
    multiply(dense);
  }

  void linear_backward_input(const Weight& weight, ConstMatrix dy, int64_t rows, Matrix dx,
                             Precision precision) override {
    if (rows == 0 || weight.in() == 0) return;
    const DenseProduct product{packer_.operand(weight, PanelSide::backward, precision), dy, rows,
                               nullptr, dx};
    multiply({&product, 1});
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
  // Whether a product is computed in whole numbers.
  static bool takes_blocks(const GroupedProduct& product, Precision precision, bool exact) {
    if (precision != Precision::bf16 || !WeightPacker::takes_blocks(*product.weight)) return false;
    return exact || product.rows < kUnpackRows || !uses_amx(kernel_format(precision));
  }

  static BlockPanels shape_of(const Weight& weight) {
    return {layout_of(weight.encoding()), weight.out(), weight.in()};
  }
  static const uint8_t* numbers_of(const std::shared_ptr<const Storage>& panels) {
    return reinterpret_cast<const uint8_t*>(panels->data());
  }

  DenseProduct dense_product(const GroupedProduct& product, Precision precision) {
    const Weight& weight = *product.weight;
    const bool pairs = precision == Precision::bf16 && WeightPacker::takes_blocks(weight);
    return {pairs ? packer_.block_pairs(weight)
                  : packer_.operand(weight, PanelSide::forward, precision),
            product.x, product.rows, product.bias, product.y};
  }

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
