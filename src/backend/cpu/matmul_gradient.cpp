// Gradients of weights: products whose both operands are packed on the way, tile by tile.
#include <algorithm>

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

void multiply_tile(Format format, ConstMatrix dy, ConstMatrix x, int64_t sum_rows, const Tile& tile,
                   Matrix dw) {
  MatmulBlock block;
  block.rows = tile.rows;
  block.columns = tile.columns;
  block.a_row = 1;
  block.a_step = kPanel;
  block.c = dw.row(tile.row) + tile.column;
  block.c_stride = dw.stride;
  const int64_t most = uses_amx(format) ? kAmxSumRows : kSumRows;
  for (int64_t first = 0; first < sum_rows; first += most) {
    const int64_t count = std::min(most, sum_rows - first);
    block.steps = steps_of(format, count);
    // A line more than needed: panels a power of two apart would share few sets of the cache.
    block.a_panel = block.b_panel = (block.steps + 1) * kPanel;
    uint32_t* a = matmul_scratch(Scratch::left, panels_of(block.rows) * block.a_panel);
    uint32_t* b = matmul_scratch(Scratch::right, panels_of(block.columns) * block.b_panel);
    pack_rows(format, {dy.row(first) + tile.row, dy.stride}, count, block.rows, a, block.a_panel);
    pack_rows(format, {x.row(first) + tile.column, x.stride}, count, block.columns, b,
              block.b_panel);
    block.a = a;
    block.b = b;
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
  parallel_for(tiles.down * tiles.across, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      Tile tile;
      tile.row = task / tiles.across * tiles.tall;
      tile.column = task % tiles.across * tiles.wide;
      tile.rows = std::min(tiles.tall, out - tile.row);
      tile.columns = std::min(tiles.wide, in - tile.column);
      multiply_tile(format, dy, x, rows, tile, dw);
    }
  });
}

}  // namespace pronghorn
