// Attention on the CPU: how the work is shared out over threads.
#include "backend/attention.h"

#include <vector>

#include "backend/cpu/attention_tasks.h"
#include "base/threads.h"
#include "tensor/storage.h"

namespace pronghorn {
namespace {

using cpu_attention::kQueryTile;
using cpu_attention::kSplitKeys;

// Multiply-adds that outweigh a fork and join.
constexpr int64_t kParallelWork = 1 << 17;
// Backward tasks wanted at least; more partial sums of grad_q than kMostGroups cost too much
// memory.
constexpr int64_t kWantedTasks = 24, kMostGroups = 8;
// Rows of a task of merge(), and blocks of rows with sums of their own on its way back.
constexpr int64_t kJoinRows = 32, kMostJoinBlocks = 32;

int64_t tiles_of(int64_t count, int64_t tile) { return (count + tile - 1) / tile; }

float* floats(const Storage& storage) { return reinterpret_cast<float*>(storage.data()); }

size_t float_bytes(int64_t count) { return static_cast<size_t>(count) * sizeof(float); }

class CpuAttentionKernels final : public AttentionKernels {
 public:
  void forward(const AttentionShape& shape, std::span<const AttentionUnit> units,
               const AttentionOperands& operands) override;
  void forward_exact(const AttentionShape& shape, std::span<const AttentionUnit> units,
                     const AttentionOperands& operands) override;
  void backward(const AttentionShape& shape, std::span<const AttentionUnit> units,
                const AttentionOperands& operands, const float* grad_o, int64_t grad_o_stride,
                const float* grad_log_sum_exp, const Matrix& grad_q, const Matrix& grad_k,
                const Matrix& grad_v) override;
  void merge(const AttentionMerge& arguments, float* out, int64_t out_stride) override;
  void merge_backward(const AttentionMerge& arguments, const float* out, int64_t out_stride,
                      const float* grad_out, int64_t grad_out_stride, const Matrix& grad_q,
                      const Matrix& grad_k, const Matrix& grad_v,
                      std::span<const AttentionPartGradient> grad_parts) override;
};

void CpuAttentionKernels::forward(const AttentionShape& shape, std::span<const AttentionUnit> units,
                                  const AttentionOperands& operands) {
  struct PackTask {
    const AttentionUnit* unit;
    int64_t kv_head, tile, first_tile;
    int64_t offset;  // of the packed tiles of this unit and head
  };
  struct TileTask {
    const AttentionUnit* unit;
    int64_t head, first, count, first_tile;
    int64_t offset;
  };
  std::vector<PackTask> packs;
  std::vector<TileTask> tiles;
  const int64_t group = shape.heads / shape.kv_heads;
  int64_t size = 0;
  for (const AttentionUnit& unit : units) {
    const KeyRange seen = cpu_attention::rows_range(unit, 0, unit.rows).any;
    const int64_t first_tile = std::min(seen.begin, seen.end) / kAttentionTile;
    const int64_t end_tile = tiles_of(seen.end, kAttentionTile);
    const int64_t head_size = (end_tile - first_tile) * cpu_attention::packed_tile_size(shape);
    for (int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
      for (int64_t tile = first_tile; tile < end_tile; ++tile) {
        packs.push_back({&unit, kv_head, tile, first_tile, size + kv_head * head_size});
      }
    }
    // The last rows see the most keys: start with them.
    for (int64_t tile = tiles_of(unit.rows, kQueryTile) - 1; tile >= 0; --tile) {
      const int64_t first = tile * kQueryTile, count = std::min(kQueryTile, unit.rows - first);
      for (int64_t head = 0; head < shape.heads; ++head) {
        tiles.push_back({&unit, head, first, count, first_tile, size + head / group * head_size});
      }
    }
    size += shape.kv_heads * head_size;
  }
  const Storage packed(float_bytes(size));
  parallel_for(static_cast<int64_t>(packs.size()), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const PackTask& task = packs[static_cast<size_t>(i)];
      cpu_attention::pack_tile(shape, *task.unit, task.kv_head, task.tile,
                               {floats(packed) + task.offset, task.first_tile});
    }
  });
  parallel_for(static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const TileTask& task = tiles[static_cast<size_t>(i)];
      cpu_attention::forward_tile(shape, *task.unit, task.head, task.first, task.count,
                                  {floats(packed) + task.offset, task.first_tile}, operands);
    }
  });
}

void CpuAttentionKernels::forward_exact(const AttentionShape& shape,
                                        std::span<const AttentionUnit> units,
                                        const AttentionOperands& operands) {
  struct Task {  // one unit and key-value head
    const AttentionUnit* unit;
    int64_t kv_head, first_split, splits, offset;
  };
  std::vector<Task> tasks;
  std::vector<std::pair<int64_t, int64_t>> parts;  // task, split
  int64_t size = 0, work = 0;
  for (const AttentionUnit& unit : units) {
    const KeyRange seen = cpu_attention::rows_range(unit, 0, unit.rows).any;
    const int64_t first_split = std::min(seen.begin, seen.end) / kSplitKeys;
    const int64_t splits = tiles_of(seen.end, kSplitKeys) - first_split;
    // The heads of a share one after another: they lie side by side in memory.
    for (int64_t s = 0; s < splits; ++s) {
      for (int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
        parts.push_back({static_cast<int64_t>(tasks.size()) + kv_head, s});
      }
    }
    for (int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
      tasks.push_back({&unit, kv_head, first_split, splits, size});
      size += splits * cpu_attention::partial_size(shape, unit);
    }
    work += unit.rows * shape.heads * (seen.end - std::min(seen.begin, seen.end)) * shape.head_dim;
  }
  const Storage partials(float_bytes(std::max<int64_t>(1, size)));
  // How many tasks a thread takes at once changes no result.
  const auto count = static_cast<int64_t>(parts.size());
  const int64_t grain = std::max<int64_t>(1, count * kParallelWork / std::max<int64_t>(1, work));
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto [index, split] = parts[static_cast<size_t>(i)];
      const Task& task = tasks[static_cast<size_t>(index)];
      const int64_t part_size = cpu_attention::partial_size(shape, *task.unit);
      cpu_attention::exact_split(shape, *task.unit, task.kv_head, task.first_split + split,
                                 operands, floats(partials) + task.offset + split * part_size);
    }
  });
  const int64_t merge_grain = std::max<int64_t>(
      1, kParallelWork / std::max<int64_t>(1, size) * static_cast<int64_t>(tasks.size()));
  parallel_for(static_cast<int64_t>(tasks.size()), merge_grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Task& task = tasks[static_cast<size_t>(i)];
      cpu_attention::exact_merge(shape, *task.unit, task.kv_head, floats(partials) + task.offset,
                                 task.splits, operands);
    }
  });
}

void CpuAttentionKernels::backward(const AttentionShape& shape,
                                   std::span<const AttentionUnit> units,
                                   const AttentionOperands& operands, const float* grad_o,
                                   int64_t grad_o_stride, const float* grad_log_sum_exp,
                                   const Matrix& grad_q, const Matrix& grad_k,
                                   const Matrix& grad_v) {
  const int64_t width = shape.heads * shape.head_dim;
  int64_t rows = 0, most_tiles = 1;
  for (const AttentionUnit& unit : units) {
    rows = std::max(rows, unit.first_row + unit.rows);
    most_tiles = std::max(most_tiles, tiles_of(unit.keys, kAttentionTile));
  }
  if (rows == 0) return;
  // Key tiles are dealt out to groups, each of which adds up its own part of grad_q: the number of
  // groups depends on the shapes alone, and the parts are added in order.
  const int64_t streams = static_cast<int64_t>(units.size()) * shape.kv_heads;
  const int64_t groups = std::min({tiles_of(kWantedTasks, streams), kMostGroups, most_tiles});
  const bool parts = grad_q.data != nullptr && groups > 1;
  const Storage part_storage(float_bytes(parts ? (groups - 1) * rows * width : 1));
  const Storage delta_storage(float_bytes(rows * shape.heads));
  float* delta = floats(delta_storage);
  parallel_for(rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      cpu_attention::backward_delta(shape, grad_o + i * grad_o_stride,
                                    operands.o + i * operands.o_stride, delta + i * shape.heads);
      for (int64_t h = 0; grad_log_sum_exp != nullptr && h < shape.heads; ++h) {
        delta[i * shape.heads + h] -= grad_log_sum_exp[i * shape.heads + h];
      }
      if (grad_q.data != nullptr && !grad_q.accumulate) {
        std::fill_n(grad_q.data + i * grad_q.stride, width, 0.0f);
      }
      for (int64_t part = 0; parts && part < groups - 1; ++part) {
        std::fill_n(floats(part_storage) + (part * rows + i) * width, width, 0.0f);
      }
    }
  });
  const int64_t count = streams * groups;
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      // The groups of one stream one after another: they share keys and queries in the caches.
      const int64_t group = i % groups, stream = i / groups;
      const AttentionUnit& unit = units[static_cast<size_t>(stream / shape.kv_heads)];
      cpu_attention::BackwardOperands task{
          operands.q, operands.q_stride, grad_o,        grad_o_stride, operands.log_sum_exp,
          delta,      grad_q.data,       grad_q.stride, grad_k,        grad_v};
      if (parts && group > 0) {
        task.grad_q = floats(part_storage) + (group - 1) * rows * width;
        task.grad_q_stride = width;
      }
      cpu_attention::backward_task(shape, {&unit, stream % shape.kv_heads, group, groups}, task);
    }
  });
  if (!parts) return;
  parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* __restrict to = grad_q.data + i * grad_q.stride;
      for (int64_t part = 0; part < groups - 1; ++part) {
        const float* __restrict from = floats(part_storage) + (part * rows + i) * width;
        for (int64_t c = 0; c < width; ++c) to[c] += from[c];
      }
    }
  });
}

void CpuAttentionKernels::merge(const AttentionMerge& arguments, float* out, int64_t out_stride) {
  parallel_for(arguments.rows, kJoinRows, [&](int64_t begin, int64_t end) {
    cpu_attention::merge_rows(arguments, begin, end, out, out_stride);
  });
}

void CpuAttentionKernels::merge_backward(const AttentionMerge& arguments, const float* out,
                                         int64_t out_stride, const float* grad_out,
                                         int64_t grad_out_stride, const Matrix& grad_q,
                                         const Matrix& grad_k, const Matrix& grad_v,
                                         std::span<const AttentionPartGradient> grad_parts) {
  // Blocks of rows have sums of their own for the fixed keys and values, which are added in order.
  const int64_t size = arguments.fixed * arguments.shape.heads * arguments.shape.head_dim;
  const int64_t block = std::max(kJoinRows, tiles_of(arguments.rows, kMostJoinBlocks));
  const int64_t blocks = tiles_of(arguments.rows, block);
  const Storage sums(float_bytes(std::max<int64_t>(1, blocks * 2 * size)));
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      float* own = floats(sums) + b * 2 * size;
      std::fill_n(own, 2 * size, 0.0f);
      cpu_attention::merge_rows_backward(
          arguments, b * block, std::min(arguments.rows, (b + 1) * block),
          {out, out_stride, grad_out, grad_out_stride, grad_q, own, own + size, grad_parts});
    }
  });
  const Matrix targets[] = {grad_k, grad_v};
  for (int64_t which = 0; which < 2; ++which) {
    float* to = targets[which].data;
    if (to == nullptr) continue;
    if (!targets[which].accumulate) std::fill_n(to, size, 0.0f);
    for (int64_t b = 0; b < blocks; ++b) {
      const float* own = floats(sums) + (2 * b + which) * size;
      for (int64_t i = 0; i < size; ++i) to[i] += own[i];
    }
  }
}

}  // namespace

std::unique_ptr<AttentionKernels> make_cpu_attention_kernels() {
  return std::make_unique<CpuAttentionKernels>();
}

}  // namespace pronghorn
