// Dense matrix products on the CPU: packed copies of weights, blocking and the choice of kernel.
#include "backend/matmul.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <string_view>

#include "backend/cpu/cpu_features.h"
#include "backend/cpu/matmul_block.h"
#include "backend/cpu/matmul_onednn.h"
#include "base/error.h"
#include "base/threads.h"

namespace pronghorn {
namespace {

// What the 4-byte steps of packed operands hold.
enum class Format {
  f32,
  rounded,  // f32 with the value of a bf16: Precision::bf16 where no bf16 instructions are
  pairs,    // two bf16
  onednn    // what oneDNN likes, for its kernels
};
constexpr size_t kFormats = 4;

enum class Side { forward, backward };  // sums over `in` or over `out`

// Rows of the left operand converted at a time: with a sum of 512 terms, 96 KB of bf16, which stays
// in the second cache while the weight passes once. A multiple of the kernels' tile rows.
constexpr int64_t kRowBlock = 96;
// Steps of a sum before the next columns' turn: three panels of 128 steps are 24 KB, which stay in
// the first cache while the rows pass.
constexpr int64_t kStepBlock = 128;
// Columns whose result stays in the second cache from one block of steps to the next: with 96 rows
// 144 KB. A multiple of the panels of the kernels' tiles, whichever they are.
constexpr int64_t kColumnBlock = 24 * kPanel;
// Rows of a weight gradient's sum at a time; even, so that pairs never depend on the blocking.
constexpr int64_t kSumRows = 256;
// Multiply-adds below which a fork of the threads costs more than it saves: about 3 microseconds.
constexpr int64_t kSerialWork = 1 << 17;
// Rows below which a call of oneDNN costs more than its kernels save.
constexpr int64_t kOneDnnRows = 64;
// Pieces that a product is cut into, to keep several threads evenly busy.
constexpr int64_t kPieces = 16;

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

int64_t panels_of(int64_t columns) { return divide_up(columns, kPanel); }

int64_t steps_of(Format format, int64_t terms) {
  return format == Format::pairs ? divide_up(terms, 2) : terms;
}

Format format_of(Precision precision) {
  if (precision == Precision::f32) return Format::f32;
  return cpu_features().bf16 ? Format::pairs : Format::rounded;
}

void run_block(Format format, const MatmulBlock& block) {
  if (format == Format::pairs) {
    matmul_block_bf16(block);
  } else {
    matmul_block_f32(block);
  }
}

// Buffer of the calling thread that grows to what it is asked for; `slot` tells several apart.
uint32_t* scratch(int slot, int64_t count) {
  struct Free {
    void operator()(uint32_t* data) const { std::free(data); }
  };
  struct Buffer {
    std::unique_ptr<uint32_t, Free> data;
    int64_t capacity = 0;
  };
  static thread_local std::array<Buffer, 2> buffers;
  Buffer& buffer = buffers[static_cast<size_t>(slot)];
  if (buffer.capacity < count) {
    constexpr int64_t kUnit = 1024;
    buffer.capacity = divide_up(count, kUnit) * kUnit;
    buffer.data.reset(static_cast<uint32_t*>(
        std::aligned_alloc(64, static_cast<size_t>(buffer.capacity) * sizeof(uint32_t))));
    require(buffer.data != nullptr, "memory", "cannot allocate {} numbers", buffer.capacity);
  }
  return buffer.data.get();
}

float rounded(float value) { return from_bf16(to_bf16(value)); }

// Rows -> panels [columns / 16][steps][16] whose sum runs over the rows, `panel` units from one to
// the next.
void pack_rows(Format format, const float* x, int64_t x_stride, int64_t rows, int64_t columns,
               uint32_t* panels, int64_t panel) {
  if (format == Format::pairs) {
    return pack_row_pairs_bf16(x, x_stride, rows, columns, panels, panel);
  }
  for (int64_t s = 0; s < rows; ++s) {
    const float* from = x + s * x_stride;
    auto* to = reinterpret_cast<float*>(panels) + s * kPanel;
    for (int64_t column = 0; column < columns; column += kPanel, to += panel) {
      const int64_t width = std::min(kPanel, columns - column);
      if (width == kPanel) {
        std::memcpy(to, from + column, kPanel * sizeof(float));
      } else {
        std::copy_n(from + column, width, to);
        std::fill(to + width, to + kPanel, 0.0f);
      }
      if (format == Format::rounded) std::transform(to, to + width, to, rounded);
    }
  }
}

// Rows of numbers -> adjacent rows of bf16.
void round_rows(const float* x, int64_t x_stride, int64_t rows, int64_t columns, bf16_t* to) {
  for (int64_t i = 0; i < rows; ++i) {
    round_row_bf16(x + i * x_stride, columns, to + i * columns);
  }
}

// At most 16 rows -> one panel [steps][16] whose sum runs over the columns.
void pack_transposed(Format format, const float* x, int64_t x_stride, int64_t rows, int64_t columns,
                     uint32_t* panel) {
  constexpr int64_t kChunk = 128;  // steps; even, so that pairs do not cross
  std::array<uint32_t, kPanel * kChunk> chunk{};
  const int64_t steps = steps_of(format, columns);
  const int64_t terms = format == Format::pairs ? 2 : 1;  // of a step
  for (int64_t first = 0; first < steps; first += kChunk) {
    const int64_t count = std::min(kChunk, steps - first);
    const int64_t width = std::min(count * terms, columns - first * terms);
    const float* from = x + first * terms;
    if (format == Format::pairs) {
      pair_columns_bf16(from, x_stride, rows, width, chunk.data(), kChunk);
    } else {
      for (int64_t i = 0; i < rows; ++i) {
        auto* to = reinterpret_cast<float*>(chunk.data() + i * kChunk);
        std::copy_n(from + i * x_stride, width, to);
        if (format == Format::rounded) std::transform(to, to + width, to, rounded);
      }
    }
    for (int64_t s = 0; s < count; ++s) {
      for (int64_t i = 0; i < kPanel; ++i) {
        panel[(first + s) * kPanel + i] = chunk[static_cast<size_t>(i * kChunk + s)];
      }
    }
  }
}

}  // namespace

// Panels of a weight for each side and format that was asked for.
struct PackedWeight {
  struct Panels {
    std::optional<Storage> storage;
    uint64_t version = 0;
  };
  std::array<std::array<Panels, kFormats>, 2> panels;
};

namespace {

// Whether products of bf16 go to oneDNN where that may be: on machines with AMX, for which we have
// no kernels. On Zen 4 ours and oneDNN's are about as fast. PRONGHORN_MATMUL=own or onednn
// overrules.
bool choose_onednn() {
  const char* choice = std::getenv("PRONGHORN_MATMUL");
  if (choice == nullptr) return cpu_features().amx;
  const std::string_view name = choice;
  require(name == "own" || name == "onednn", "PRONGHORN_MATMUL", "'{}' is neither own nor onednn",
          name);
  return name == "onednn";
}

class CpuMatmulKernels final : public MatmulKernels {
 public:
  void linear_forward(const Weight& weight, const float* x, int64_t x_stride, int64_t rows,
                      const float* bias, float* y, int64_t y_stride, Precision precision,
                      bool exact) override {
    if (!exact && use_onednn(precision, rows)) {
      return multiply_onednn(weight, Side::forward, x, x_stride, rows, bias, y, y_stride, false);
    }
    multiply(weight, Side::forward, format_of(precision), x, x_stride, rows, bias, y, y_stride,
             false);
  }

  void linear_backward_input(const Weight& weight, const float* dy, int64_t dy_stride, int64_t rows,
                             float* dx, int64_t dx_stride, bool accumulate,
                             Precision precision) override {
    if (use_onednn(precision, rows)) {
      return multiply_onednn(weight, Side::backward, dy, dy_stride, rows, nullptr, dx, dx_stride,
                             accumulate);
    }
    multiply(weight, Side::backward, format_of(precision), dy, dy_stride, rows, nullptr, dx,
             dx_stride, accumulate);
  }

  void linear_backward_weight(const float* dy, int64_t dy_stride, const float* x, int64_t x_stride,
                              int64_t rows, int64_t out, int64_t in, float* dw, int64_t dw_stride,
                              bool accumulate, Precision precision) override;

  void linear_backward_bias(const float* dy, int64_t dy_stride, int64_t rows, int64_t out,
                            float* db, bool accumulate) override;

 private:
  const uint32_t* packed(const Weight& weight, Side side, Format format);
  void multiply(const Weight& weight, Side side, Format format, const float* x, int64_t x_stride,
                int64_t rows, const float* bias, float* y, int64_t y_stride, bool accumulate);

  void multiply_onednn(const Weight& weight, Side side, const float* x, int64_t x_stride,
                       int64_t rows, const float* bias, float* y, int64_t y_stride,
                       bool accumulate);

  // The one place that decides between our kernels and oneDNN's.
  bool use_onednn(Precision precision, int64_t rows) const {
    return onednn_ && precision == Precision::bf16 && cpu_features().bf16 && rows >= kOneDnnRows;
  }

  std::mutex packing_;
  const bool onednn_ = choose_onednn();
  OneDnnMatmul library_;
};

// The panels of `weight`, packed now if there are none or the numbers have changed since.
const uint32_t* CpuMatmulKernels::packed(const Weight& weight, Side side, Format format) {
  std::lock_guard<std::mutex> lock(packing_);
  std::shared_ptr<PackedWeight>& slot = weight.packed();
  if (slot == nullptr) slot = std::make_shared<PackedWeight>();
  PackedWeight::Panels& panels =
      slot->panels[static_cast<size_t>(side)][static_cast<size_t>(format)];
  const Tensor& value = weight.value();
  if (panels.storage && panels.version == value.version()) {
    return reinterpret_cast<const uint32_t*>(panels.storage->data());
  }
  const bool forward = side == Side::forward;
  const int64_t columns = forward ? weight.out() : weight.in();
  const int64_t terms = forward ? weight.in() : weight.out();
  if (format == Format::onednn) {
    if (!panels.storage) panels.storage.emplace(library_.packed_bytes(columns, terms));
    library_.pack(value.data(), value.row_stride(), forward, columns, terms,
                  panels.storage->data());
    panels.version = value.version();
    return reinterpret_cast<const uint32_t*>(panels.storage->data());
  }
  const int64_t panel = steps_of(format, terms) * kPanel;
  if (!panels.storage) {
    panels.storage.emplace(static_cast<size_t>(panels_of(columns) * panel) * sizeof(uint32_t));
  }
  auto* to = reinterpret_cast<uint32_t*>(panels.storage->data());
  const float* from = value.data();
  const int64_t stride = value.row_stride();
  const int64_t grain = std::max<int64_t>(1, kSerialWork / 4 / std::max<int64_t>(1, panel));
  parallel_for(panels_of(columns), grain, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t width = std::min(kPanel, columns - p * kPanel);
      if (forward) {
        pack_transposed(format, from + p * kPanel * stride, stride, width, terms, to + p * panel);
      } else {
        pack_rows(format, from + p * kPanel, stride, terms, width, to + p * panel, panel);
      }
    }
  });
  panels.version = value.version();
  return to;
}

// y [rows, columns] = x [rows, terms] times the panels of the weight, plus bias.
void CpuMatmulKernels::multiply(const Weight& weight, Side side, Format format, const float* x,
                                int64_t x_stride, int64_t rows, const float* bias, float* y,
                                int64_t y_stride, bool accumulate) {
  const bool forward = side == Side::forward;
  const int64_t columns = forward ? weight.out() : weight.in();
  if (rows == 0 || columns == 0) return;
  const uint32_t* panels = packed(weight, side, format);
  const int64_t terms = forward ? weight.in() : weight.out();
  const int64_t steps = steps_of(format, terms);

  const int64_t row_blocks = divide_up(rows, kRowBlock);
  int64_t chunks = 1;  // of columns
  if (rows * columns * terms >= kSerialWork) chunks = std::max<int64_t>(1, kPieces / row_blocks);
  const int64_t chunk = divide_up(panels_of(columns), chunks) * kPanel;
  chunks = divide_up(columns, chunk);

  // Which piece of the result a task computes depends on shapes alone; what it computes does not
  // even depend on the pieces.
  parallel_for(row_blocks * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / chunks * kRowBlock, column = task % chunks * chunk;
      MatmulBlock block;
      block.rows = std::min(kRowBlock, rows - row);
      block.a = x + row * x_stride;
      block.a_row = x_stride;
      if (format != Format::f32) {
        // A line more than needed: rows a power of two apart would share few sets of the cache.
        block.a_row = steps + kPanel;
        uint32_t* a = scratch(0, block.rows * block.a_row);
        block.a = a;
        if (format == Format::pairs) {
          pair_columns_bf16(x + row * x_stride, x_stride, block.rows, terms, a, block.a_row);
        } else {
          for (int64_t i = 0; i < block.rows; ++i) {
            const float* from = x + (row + i) * x_stride;
            std::transform(from, from + terms, reinterpret_cast<float*>(a + i * block.a_row),
                           rounded);
          }
        }
      }
      block.a_panel = block.a_row * kPanel;
      block.a_step = 1;
      block.b_panel = steps * kPanel;
      block.c_stride = y_stride;
      // One pass over all steps where the rows are too few to use a block of the weight twice.
      const int64_t parts =
          block.rows <= kPanel ? 1 : std::max<int64_t>(1, divide_up(steps, kStepBlock));
      const int64_t part = divide_up(steps, parts);
      const auto* a = static_cast<const uint32_t*>(block.a);
      const int64_t end_column = std::min(columns, column + chunk);
      for (int64_t first = column; first < end_column; first += kColumnBlock) {
        block.columns = std::min(kColumnBlock, end_column - first);
        block.c = y + row * y_stride + first;
        for (int64_t p = 0; p < parts; ++p) {
          const int64_t step = p * part;
          block.steps = std::min(part, steps - step);
          block.a = a + step;
          block.b = panels + first * steps + step * kPanel;
          block.load = accumulate || p > 0;
          block.bias = p == parts - 1 && bias != nullptr ? bias + first : nullptr;
          run_block(format, block);
        }
      }
    }
  });
}

void CpuMatmulKernels::multiply_onednn(const Weight& weight, Side side, const float* x,
                                       int64_t x_stride, int64_t rows, const float* bias, float* y,
                                       int64_t y_stride, bool accumulate) {
  const bool forward = side == Side::forward;
  OneDnnMatmul::Shape shape;
  shape.columns = forward ? weight.out() : weight.in();
  shape.terms = forward ? weight.in() : weight.out();
  shape.c_stride = y_stride;
  shape.accumulate = accumulate;
  shape.bias = bias != nullptr;
  const void* b = packed(weight, side, Format::onednn);
  // Tasks of few different heights, for each of which oneDNN compiles a kernel: the last rows go
  // through a padded buffer.
  const int64_t height = rows >= 512 ? 128 : rows >= 256 ? 64 : 32;
  parallel_for(divide_up(rows, height), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task * height, count = std::min(height, rows - row);
      const int64_t width = divide_up(shape.terms, 2);
      auto* a = reinterpret_cast<bf16_t*>(scratch(0, height * width));
      OneDnnMatmul::Shape piece = shape;
      piece.rows = height;
      round_rows(x + row * x_stride, x_stride, count, shape.terms, a);
      float* const c = y + row * y_stride;
      if (count == height) {
        library_.run(piece, a, b, bias, c);
        continue;
      }
      std::fill(a + count * shape.terms, a + height * shape.terms, bf16_t{0});
      piece.c_stride = shape.columns;
      auto* edge = reinterpret_cast<float*>(scratch(1, height * shape.columns));
      for (int64_t i = 0; i < height && accumulate; ++i) {
        if (i < count) {
          std::copy_n(c + i * y_stride, shape.columns, edge + i * shape.columns);
        } else {
          std::fill_n(edge + i * shape.columns, shape.columns, 0.0f);
        }
      }
      library_.run(piece, a, b, bias, edge);
      for (int64_t i = 0; i < count; ++i) {
        std::copy_n(edge + i * shape.columns, shape.columns, c + i * y_stride);
      }
    }
  });
}

void CpuMatmulKernels::linear_backward_weight(const float* dy, int64_t dy_stride, const float* x,
                                              int64_t x_stride, int64_t rows, int64_t out,
                                              int64_t in, float* dw, int64_t dw_stride,
                                              bool accumulate, Precision precision) {
  if (rows == 0) {
    if (!accumulate) {
      for (int64_t i = 0; i < out; ++i) std::fill_n(dw + i * dw_stride, in, 0.0f);
    }
    return;
  }
  const Format format = format_of(precision);
  const bool onednn = use_onednn(precision, rows);
  // Tiles of the result, small enough to give every thread several. A tile packs its own operands,
  // so wider is cheaper.
  int64_t tall = 192, wide = 384;
  const auto tiles = [&] { return divide_up(out, tall) * divide_up(in, wide); };
  if (rows * out * in >= kSerialWork) {
    while (tiles() < kPieces / 2 && (tall > kPanel || wide > kPanel)) {
      int64_t& side = std::min(wide, in) >= std::min(tall, out) ? wide : tall;
      side = divide_up(side, 2 * kPanel) * kPanel;
    }
  }
  const int64_t across = divide_up(in, wide);
  parallel_for(tiles(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / across * tall, column = task % across * wide;
      MatmulBlock block;
      block.rows = std::min(tall, out - row);
      block.columns = std::min(wide, in - column);
      block.a_row = 1;
      block.a_step = kPanel;
      block.c = dw + row * dw_stride + column;
      block.c_stride = dw_stride;
      if (onednn) {
        OneDnnMatmul::Shape shape;
        shape.rows = block.rows;
        shape.columns = block.columns;
        shape.c_stride = dw_stride;
        shape.gradient = true;
        for (int64_t first = 0; first < rows; first += kSumRows) {
          shape.terms = std::min(kSumRows, rows - first);
          shape.accumulate = accumulate || first > 0;
          auto* a = reinterpret_cast<bf16_t*>(scratch(0, kSumRows * tall));
          auto* b = reinterpret_cast<bf16_t*>(scratch(1, kSumRows * wide));
          round_rows(dy + first * dy_stride + row, dy_stride, shape.terms, shape.rows, a);
          round_rows(x + first * x_stride + column, x_stride, shape.terms, shape.columns, b);
          library_.run(shape, a, b, nullptr, block.c);
        }
        continue;
      }
      for (int64_t first = 0; first < rows; first += kSumRows) {
        const int64_t count = std::min(kSumRows, rows - first);
        block.steps = steps_of(format, count);
        // A line more than needed, as above.
        block.a_panel = block.b_panel = (block.steps + 1) * kPanel;
        uint32_t* a = scratch(0, panels_of(block.rows) * block.a_panel);
        uint32_t* b = scratch(1, panels_of(block.columns) * block.b_panel);
        pack_rows(format, dy + first * dy_stride + row, dy_stride, count, block.rows, a,
                  block.a_panel);
        pack_rows(format, x + first * x_stride + column, x_stride, count, block.columns, b,
                  block.b_panel);
        block.a = a;
        block.b = b;
        block.load = accumulate || first > 0;
        run_block(format, block);
      }
    }
  });
}

void CpuMatmulKernels::linear_backward_bias(const float* dy, int64_t dy_stride, int64_t rows,
                                            int64_t out, float* db, bool accumulate) {
  constexpr int64_t kColumns = 64;
  parallel_for(out, rows * out < kSerialWork ? out : kColumns, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; j += kColumns) {
      const int64_t width = std::min(kColumns, end - j);
      std::array<float, kColumns> sum{};
      if (accumulate) std::copy_n(db + j, width, sum.data());
      for (int64_t i = 0; i < rows; ++i) {
        const float* from = dy + i * dy_stride + j;
        if (width == kColumns) {
          for (int64_t c = 0; c < kColumns; ++c) sum[static_cast<size_t>(c)] += from[c];
        } else {
          for (int64_t c = 0; c < width; ++c) sum[static_cast<size_t>(c)] += from[c];
        }
      }
      std::copy_n(sum.data(), width, db + j);
    }
  });
}

}  // namespace

std::unique_ptr<MatmulKernels> make_cpu_matmul_kernels() {
  return std::make_unique<CpuMatmulKernels>();
}

}  // namespace pronghorn
