#include "backend/cpu/block_products.h"

#include <algorithm>

#include "backend/cpu/matmul_tasks.h"
#include "backend/cpu/scratch.h"
#include "base/threads.h"
#include "tensor/storage.h"

namespace pronghorn {
namespace {

// Rows whose activations stay in the second cache while the weight passes: with 2048 numbers, 256
// KB. What a panel's codes cost to unpack is shared by that many rows.
constexpr int64_t kRowBlockTiles = 8;

// Rows as kernels take them.
struct Input {
  ConstMatrix x;
  int offset = 0;
  QuantisedRows rounded;
  int64_t first_tile = 0;  // tiles of the inputs before this one

  // Whether it is also what this product reads.
  bool serves(const BlockLinear& product) const {
    return x.data == product.x.data && x.stride == product.x.stride &&
           rounded.rows == product.rows && rounded.units == product.shape.units() &&
           offset == product.shape.layout->offset &&
           rounded.halves == (product.shape.layout->group < kUnitTerms);
  }
};

Input input_of(const BlockLinear& product, int64_t first_tile, Scratch& scratch) {
  Input input{product.x, product.shape.layout->offset, {}, first_tile};
  QuantisedRows& q = input.rounded;
  q.rows = product.rows;
  q.units = product.shape.units();
  q.halves = product.shape.layout->group < kUnitTerms;
  const int64_t parts = q.halves ? 2 : 1, count = q.tiles() * kRowTile * q.units;
  q.codes = reinterpret_cast<int8_t*>(scratch.take(count * kUnitTerms / 4));
  q.scales = scratch.take(count);
  q.corrections = reinterpret_cast<int32_t*>(scratch.take(count * parts));
  q.sums = scratch.take(count * parts);
  return input;
}

// How a product is cut into tasks.
struct Cut {
  size_t input = 0;
  int64_t row_blocks = 0, chunk = 0, chunks = 0;  // panels of a chunk
  int64_t first_task = 0;                         // tasks of the products before this one

  int64_t tasks() const { return row_blocks * chunks; }
};

template <typename List>
size_t last_not_after(const List& list, int64_t index, int64_t(List::value_type::*first)) {
  const auto after = std::upper_bound(
      list.begin(), list.end(), index,
      [first](int64_t value, const auto& element) { return value < element.*first; });
  return static_cast<size_t>(after - list.begin()) - 1;
}

}  // namespace

void multiply_blocks(const BlockPanels& shape, const uint8_t* panels, ConstMatrix x, int64_t rows,
                     const float* bias, Matrix y) {
  const BlockLinear product{shape, panels, x, rows, bias, y};
  multiply_blocks({&product, 1});
}

void multiply_blocks(std::span<const BlockLinear> products) {
  if (products.empty()) return;
  Scratch scratch;
  PooledVector<Input> inputs;
  PooledVector<Cut> cuts;
  inputs.reserve(products.size());
  cuts.reserve(products.size());
  int64_t tiles = 0, widest = 1, few_work = 0;
  bool all_few = true;
  for (const BlockLinear& product : products) {
    const bool few = product.rows <= kRowTile;
    if (few) few_work += product.rows * product.shape.out * product.shape.in;
    all_few = all_few && few;
  }
  // Of few rows, pieces are shares of the work of all products; of many, a product has enough.
  const int64_t few_pieces = matmul_pieces(few_work);
  int64_t tasks = 0;
  for (const BlockLinear& product : products) {
    Cut cut;
    cut.input = inputs.size();
    while (cut.input > 0 && !inputs[cut.input - 1].serves(product)) --cut.input;
    if (cut.input > 0) {
      --cut.input;
    } else {
      cut.input = inputs.size();
      inputs.push_back(input_of(product, tiles, scratch));
      tiles += inputs.back().rounded.tiles();
      widest = std::max(widest, std::min(product.rows, kRowTile) * product.shape.in);
    }
    const int64_t work = product.rows * product.shape.out * product.shape.in;
    cut.row_blocks = divide_up(inputs[cut.input].rounded.tiles(), kRowBlockTiles);
    const int64_t wanted = product.rows <= kRowTile
                               ? divide_up(work * few_pieces, std::max<int64_t>(1, few_work))
                               : matmul_pieces(work) / cut.row_blocks;
    cut.chunk = divide_up(product.shape.panels(), std::max<int64_t>(1, wanted));
    cut.chunks = divide_up(product.shape.panels(), cut.chunk);
    cut.first_task = tasks;
    tasks += cut.tasks();
    cuts.push_back(cut);
  }

  constexpr int64_t kQuantiseGrain = 1 << 15;
  parallel_for(tiles, std::max<int64_t>(1, kQuantiseGrain / widest),
               [&](int64_t begin, int64_t end) {
                 for (int64_t tile = begin; tile < end;) {
                   const Input& input = inputs[last_not_after(inputs, tile, &Input::first_tile)];
                   const int64_t first = tile - input.first_tile;
                   const int64_t last = std::min(input.rounded.tiles(), end - input.first_tile);
                   quantise_tiles(input.x, input.offset, input.rounded, first, last);
                   tile += last - first;
                 }
               });

  // Little work is done here: a fork costs more.
  const int64_t grain = all_few && few_pieces == 1 ? std::max<int64_t>(1, tasks) : 1;
  parallel_for(tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const size_t index = last_not_after(cuts, task, &Cut::first_task);
      const Cut& cut = cuts[index];
      const BlockLinear& linear = products[index];
      const int64_t place = task - cut.first_task;
      BlockProduct product;
      product.shape = linear.shape;
      product.panels = linear.panels;
      product.x = inputs[cut.input].rounded;
      product.begin_tile = place / cut.chunks * kRowBlockTiles;
      product.end_tile = std::min(product.x.tiles(), product.begin_tile + kRowBlockTiles);
      product.first = place % cut.chunks * cut.chunk;
      product.end = std::min(linear.shape.panels(), product.first + cut.chunk);
      product.y = linear.y;
      product.bias = linear.bias;
      multiply_block_panels(product);
    }
  });
}

}  // namespace pronghorn
