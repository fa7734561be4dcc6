// Gradients of weights: products whose both operands are packed on the way.
#include <algorithm>
#include <array>

#include "backend/cpu/matmul_scratch.h"
#include "backend/cpu/matmul_tasks.h"
#include "base/threads.h"

namespace pronghorn {
namespace {

// Rows of the sum at a time: whole groups of steps, of pairs too.
constexpr int64_t kSumRows = 256, kAmxSumRows = 1024;
static_assert(kSumRows % (2 * kStepGroup) == 0 && kAmxSumRows % (2 * kStepGroup) == 0);

// Tiles of the result, small enough to give every thread several. A tile packs its own operands, so
// wider is cheaper.
struct Tiles {
  int64_t tall = 0, wide = 0, down = 0, across = 0;

  Tiles(int64_t rows, int64_t out, int64_t in) {
    constexpr int64_t kTall = 192, kWide = 384;
    down = divide_up(out, kTall);
    across = divide_up(in, kWide);
    const int64_t wanted = matmul_pieces(rows * out * in) / 2;
    while (true) {
      tall = divide_up(panels_of(out), down) * kPanel;
      wide = divide_up(panels_of(in), across) * kPanel;
      if (down * across >= wanted || (tall == kPanel && wide == kPanel)) break;
      (wide >= tall ? across : down) *= 2;
    }
    down = divide_up(out, tall);
    across = divide_up(in, wide);
  }
};

// One tile: columns [row, row + rows) of dy against columns [column, column + columns) of x.
struct Tile {
  int64_t row = 0, column = 0, rows = 0, columns = 0;
};

int64_t sum_rows_at_a_time(Format format) { return uses_amx(format) ? kAmxSumRows : kSumRows; }

// Units from one packed panel to the next: a line more than needed, since panels a power of two
// apart would share few sets of the cache.
int64_t panel_of(Format format, int64_t rows) { return (steps_of(format, rows) + 1) * kPanel; }

// All columns of an operand, packed: blocks of rows one after another, [panels][panel_of()] each.
struct PackedColumns {
  Format format = Format::f32;
  ConstMatrix from;
  int64_t rows = 0, columns = 0;
  uint32_t* to = nullptr;

  int64_t most() const { return std::min(rows, sum_rows_at_a_time(format)); }
  int64_t blocks() const { return divide_up(rows, sum_rows_at_a_time(format)); }
  int64_t block_size() const { return panels_of(columns) * panel_of(format, most()); }
  int64_t size() const { return blocks() * block_size(); }
  // Of the rows from `first` on, the panel of `column`.
  uint32_t* place(int64_t first, int64_t column) const {
    return to + first / sum_rows_at_a_time(format) * block_size() +
           column / kPanel * panel_of(format, std::min(most(), rows - first));
  }
  // A piece is a block of rows of some panels.
  static constexpr int64_t kPanels = 4;
  int64_t pieces() const { return blocks() * divide_up(panels_of(columns), kPanels); }
  void pack(int64_t piece) const {
    const int64_t first = piece % blocks() * sum_rows_at_a_time(format);
    const int64_t column = piece / blocks() * kPanels * kPanel;
    const int64_t count = std::min(most(), rows - first);
    pack_rows(format, {from.row(first) + column, from.stride}, count,
              std::min(kPanels * kPanel, columns - column), place(first, column),
              panel_of(format, count));
  }
};

// packed: both operands, or null: the tile packs what it needs.
void multiply_tile(Format format, ConstMatrix dy, ConstMatrix x, int64_t sum_rows, const Tile& tile,
                   Matrix dw, const PackedColumns* packed) {
  MatmulBlock block;
  block.rows = tile.rows;
  block.columns = tile.columns;
  block.a_row = 1;
  block.a_step = kPanel;
  block.c = dw.row(tile.row) + tile.column;
  block.c_stride = dw.stride;
  const int64_t most = sum_rows_at_a_time(format);
  for (int64_t first = 0; first < sum_rows; first += most) {
    const int64_t count = std::min(most, sum_rows - first);
    block.steps = steps_of(format, count);
    block.a_panel = block.b_panel = panel_of(format, count);
    if (packed != nullptr) {
      block.a = packed[0].place(first, tile.row);
      block.b = packed[1].place(first, tile.column);
    } else {
      uint32_t* a = matmul_scratch(MatmulBuffer::left, panels_of(block.rows) * block.a_panel);
      uint32_t* b = matmul_scratch(MatmulBuffer::right, panels_of(block.columns) * block.b_panel);
      pack_rows(format, {dy.row(first) + tile.row, dy.stride}, count, block.rows, a, block.a_panel);
      pack_rows(format, {x.row(first) + tile.column, x.stride}, count, block.columns, b,
                block.b_panel);
      block.a = a;
      block.b = b;
    }
    block.load = dw.accumulate || first > 0;
    run_matmul_block(format, block);
  }
}

}  // namespace

void matmul_weight_gradient(Format format, ConstMatrix dy, ConstMatrix x, int64_t rows, int64_t out,
                            int64_t in, Matrix dw) {
  if (rows == 0) {
    for (int64_t i = 0; i < out && !dw.accumulate; ++i) std::fill_n(dw.row(i), in, 0.0f);
    return;
  }
  const Tiles tiles(rows, out, in);
  const int64_t count = tiles.down * tiles.across;
  std::array<PackedColumns, 2> packed = {PackedColumns{format, dy, rows, out, nullptr},
                                         PackedColumns{format, x, rows, in, nullptr}};
  // Operands that stay in a cache are packed once for all tiles; larger ones by each tile, which
  // then finds them in its own.
  constexpr int64_t kMostShared = 1 << 21;
  const bool shared = count > 1 && packed[0].size() + packed[1].size() <= kMostShared;
  if (shared) {
    packed[0].to = matmul_scratch(MatmulBuffer::left, packed[0].size());
    packed[1].to = matmul_scratch(MatmulBuffer::right, packed[1].size());
    const int64_t first = packed[0].pieces();
    parallel_for(first + packed[1].pieces(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        piece < first ? packed[0].pack(piece) : packed[1].pack(piece - first);
      }
    });
  }
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      Tile tile;
      tile.row = task / tiles.across * tiles.tall;
      tile.column = task % tiles.across * tiles.wide;
      tile.rows = std::min(tiles.tall, out - tile.row);
      tile.columns = std::min(tiles.wide, in - tile.column);
      multiply_tile(format, dy, x, rows, tile, dw, shared ? packed.data() : nullptr);
    }
  });
}

}  // namespace pronghorn
