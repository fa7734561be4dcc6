// Attention on the CPU: how the work is shared out over threads.
#include "backend/attention.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "backend/cpu/attention_exact_plan.h"
#include "backend/cpu/attention_tasks.h"
#include "base/threads.h"
#include "tensor/storage.h"

namespace pronghorn {
namespace {

using cpu_attention::kQueryTile;

// Multiply-adds that outweigh a fork and join.
constexpr int64_t kParallelWork = 1 << 17;
// The same of forward_exact(), which reads its keys from memory: some microseconds of one thread.
constexpr int64_t kExactWork = 1 << 15;
// Backward tasks wanted at least; more partial sums of grad_q than kMostGroups cost too much
// memory.
constexpr int64_t kWantedTasks = 24, kMostGroups = 8;
// Rows of a task of merge(), and blocks of rows with sums of their own in the backward pass.
constexpr int64_t kMergeRows = 32, kMostMergeBlocks = 32;

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
                const AttentionOperands& operands, const AttentionGradients& gradients) override;
  void merge(const AttentionMerge& arguments, const Matrix& out) override;
  void merge_backward(const AttentionMerge& arguments, const ConstMatrix& out,
                      const AttentionMergeGradients& gradients) override;
  void summarise(std::span<const KeyBlock> blocks, BlockStatistic statistic, int64_t columns,
                 DType type, int64_t stride) override;
  void choose_blocks(const AttentionShape& shape, const BlockChoice& choice,
                     std::span<const AttentionUnit> units, const ConstMatrix& q,
                     const int32_t* own_block, int32_t* out) override;
  void weigh_keys(const AttentionShape& shape, const AttentionUnit& unit, const ConstMatrix& q,
                  const ConstMatrix& log_sum_exp, float* weights) override;
  void choose_keys(const IndexerOperands& indexer, std::span<const AttentionUnit> units,
                   int64_t top, int32_t* out) override;
  void indexer_loss(const IndexerLoss& arguments) override;
  void store_rows(const ConstMatrix& from, int64_t rows, int64_t columns, DType type, std::byte* to,
                  int64_t stride) override {
    cpu_attention::store_rows(from, rows, columns, type, to, stride);
  }
  void load_rows(const std::byte* from, int64_t rows, int64_t columns, DType type, int64_t stride,
                 const Matrix& to) override {
    cpu_attention::load_rows(from, rows, columns, type, stride, to);
  }
};

// What forward() does, in two rounds: first the tiles of keys and values are packed, then tiles of
// queries meet them.
struct ForwardPlan {
  struct PackTask {
    const AttentionUnit* unit;
    int64_t kv_head, tile, place;
  };
  struct TileTask {
    const AttentionUnit* unit;
    int64_t head, first, count, place;
  };
  // The packed tiles of a unit and key-value head.
  struct Place {
    int64_t offset, prefix_tiles, first_tile;
  };
  std::vector<Place> places;
  std::vector<PackTask> packs;
  std::vector<TileTask> tiles;
  int64_t size = 0;  // numbers that are packed

  void add(const AttentionShape& shape, const AttentionUnit& unit);
  cpu_attention::PackedKeys packed(const Storage& memory, int64_t place) const {
    const Place& at = places[static_cast<size_t>(place)];
    return {floats(memory) + at.offset, at.prefix_tiles, at.first_tile};
  }
};

void ForwardPlan::add(const AttentionShape& shape, const AttentionUnit& unit) {
  const int64_t group = shape.heads / shape.kv_heads;
  const cpu_attention::SeenTiles seen = cpu_attention::seen_tiles(unit);
  const int64_t end_kv_head = unit.first_kv_head + unit.kv_heads;
  const auto first_place = static_cast<int64_t>(places.size()) - unit.first_kv_head;
  for (int64_t kv_head = unit.first_kv_head; kv_head < end_kv_head; ++kv_head) {
    places.push_back({size, seen.prefix_end / kAttentionTile, seen.begin / kAttentionTile});
    for (int64_t key = seen.from(0); key < seen.end; key = seen.from(key + kAttentionTile)) {
      packs.push_back({&unit, kv_head, key / kAttentionTile, first_place + kv_head});
      size += cpu_attention::packed_tile_size(shape);
    }
  }
  // The last rows see the most keys: start with them.
  for (int64_t tile = tiles_of(unit.rows, kQueryTile) - 1; tile >= 0; --tile) {
    const int64_t first = tile * kQueryTile, count = std::min(kQueryTile, unit.rows - first);
    for (int64_t head = unit.first_kv_head * group; head < end_kv_head * group; ++head) {
      tiles.push_back({&unit, head, first, count, first_place + head / group});
    }
  }
}

void CpuAttentionKernels::forward(const AttentionShape& shape, std::span<const AttentionUnit> units,
                                  const AttentionOperands& operands) {
  ForwardPlan plan;
  for (const AttentionUnit& unit : units) plan.add(shape, unit);
  const Storage packed(float_bytes(plan.size));
  parallel_for(static_cast<int64_t>(plan.packs.size()), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const ForwardPlan::PackTask& task = plan.packs[static_cast<size_t>(i)];
      cpu_attention::pack_tile(shape, *task.unit, task.kv_head, task.tile,
                               plan.packed(packed, task.place));
    }
  });
  parallel_for(static_cast<int64_t>(plan.tiles.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const ForwardPlan::TileTask& task = plan.tiles[static_cast<size_t>(i)];
      cpu_attention::forward_tile(shape, *task.unit, task.head, task.first, task.count,
                                  plan.packed(packed, task.place), operands);
    }
  });
}

// A unit for each row.
PooledVector<AttentionUnit> rows_of(std::span<const AttentionUnit> units) {
  PooledVector<AttentionUnit> rows;
  for (const AttentionUnit& unit : units) {
    for (int64_t i = 0; i < unit.rows; ++i) {
      AttentionUnit& row = rows.emplace_back(unit);
      row.first_row += i;
      row.rows = 1;
      row.visible += i;
    }
  }
  return rows;
}

void CpuAttentionKernels::forward_exact(const AttentionShape& shape,
                                        std::span<const AttentionUnit> units,
                                        const AttentionOperands& operands) {
  const bool gathers = cpu_attention::gathers(shape, operands.lists);
  const PooledVector<AttentionUnit> rows = gathers ? rows_of(units) : PooledVector<AttentionUnit>();
  if (gathers) units = rows;
  const cpu_attention::ExactPlan plan(shape, units, operands.lists);
  const Storage partials(float_bytes(std::max<int64_t>(1, plan.size)));
  // How many tasks a thread takes at once changes no result.
  const auto count = static_cast<int64_t>(plan.parts.size());
  const int64_t grain = std::max<int64_t>(1, count * kExactWork / std::max<int64_t>(1, plan.work));
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const cpu_attention::ExactPlan::Part& each = plan.parts[static_cast<size_t>(i)];
      const cpu_attention::ExactPlan::Task& task = plan.tasks[static_cast<size_t>(each.task)];
      const int64_t part_size = cpu_attention::partial_size(shape, *task.unit);
      const bool goes_on = i + 1 < end && operands.lists.blocks == nullptr;
      float* partial = floats(partials) + task.offset + each.place * part_size;
      if (gathers) {
        cpu_attention::gathered_split(shape, *task.unit, task.kv_head, each.part.split, operands,
                                      partial);
        continue;
      }
      cpu_attention::exact_part(shape, each.part,
                                goes_on ? &plan.parts[static_cast<size_t>(i + 1)].part : nullptr,
                                operands, partial, task.splits * part_size);
    }
  });
  const auto merges = static_cast<int64_t>(plan.tasks.size());
  const int64_t merge_grain =
      std::max<int64_t>(1, kParallelWork / std::max<int64_t>(1, plan.size) * merges);
  parallel_for(merges, merge_grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const cpu_attention::ExactPlan::Task& task = plan.tasks[static_cast<size_t>(i)];
      cpu_attention::exact_merge(shape, *task.unit, task.kv_head, floats(partials) + task.offset,
                                 task.splits, operands);
    }
  });
}

// How backward() is cut. Key tiles are dealt out to groups, each of which adds up its own part of
// grad_q: the number of groups depends on the shapes alone, and the parts are added in order.
struct BackwardPlan {
  BackwardPlan(const AttentionShape& shape, std::span<const AttentionUnit> units);
  struct Stream {
    const AttentionUnit* unit;
    int64_t kv_head;
  };
  std::vector<Stream> streams;
  int64_t rows = 0;
  int64_t width;  // of a row of q
  int64_t groups = 1;
};

BackwardPlan::BackwardPlan(const AttentionShape& shape, std::span<const AttentionUnit> units)
    : width(shape.heads * shape.key_dim) {
  int64_t most_tiles = 1;
  for (const AttentionUnit& unit : units) {
    rows = std::max(rows, unit.first_row + unit.rows);
    most_tiles = std::max(most_tiles, static_cast<int64_t>(unit.tiles.size()));
    for (int64_t i = 0; i < unit.kv_heads; ++i) {
      streams.push_back({&unit, unit.first_kv_head + i});
    }
  }
  if (streams.empty()) return;
  const auto count = static_cast<int64_t>(streams.size());
  groups = std::min({tiles_of(kWantedTasks, count), kMostGroups, most_tiles});
}

// Sums of grad_q of all groups but the first, which adds to grad_q itself.
struct QuerySums {
  QuerySums(const BackwardPlan& plan, bool wanted)
      : rows(plan.rows),
        width(plan.width),
        parts(wanted ? plan.groups - 1 : 0),
        memory(float_bytes(std::max<int64_t>(1, parts * rows * width))) {}

  float* row(int64_t part, int64_t index) const {
    return floats(memory) + (part * rows + index) * width;
  }

  int64_t rows, width, parts;
  Storage memory;
};

// delta of each row; and what is added to is made 0.
void prepare_backward(const AttentionShape& shape, const AttentionOperands& operands,
                      const AttentionGradients& gradients, const QuerySums& sums, float* delta) {
  parallel_for(sums.rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* own = delta + i * shape.heads;
      cpu_attention::backward_delta(shape, gradients.o.row(i), operands.o.row(i), own);
      for (int64_t h = 0; gradients.log_sum_exp != nullptr && h < shape.heads; ++h) {
        own[h] -= gradients.log_sum_exp[i * shape.heads + h];
      }
      if (gradients.q.data != nullptr && !gradients.q.accumulate) {
        std::fill_n(gradients.q.row(i), sums.width, 0.0f);
      }
      for (int64_t part = 0; part < sums.parts; ++part) {
        std::fill_n(sums.row(part, i), sums.width, 0.0f);
      }
    }
  });
}

void sink_gradients(const AttentionShape& shape, int64_t rows, const AttentionOperands& operands,
                    const float* delta, const GradVector& to) {
  if (to.data == nullptr) return;
  parallel_for(shape.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      const float gradient = cpu_attention::sink_gradient(shape, h, rows, operands.sinks[h],
                                                          operands.log_sum_exp, delta);
      to.data[h] = to.accumulate ? to.data[h] + gradient : gradient;
    }
  });
}

void CpuAttentionKernels::backward(const AttentionShape& shape,
                                   std::span<const AttentionUnit> units,
                                   const AttentionOperands& operands,
                                   const AttentionGradients& gradients) {
  const BackwardPlan plan(shape, units);
  if (plan.rows == 0) return;
  const QuerySums sums(plan, gradients.q.data != nullptr);
  const Storage delta(float_bytes(plan.rows * shape.heads));
  prepare_backward(shape, operands, gradients, sums, floats(delta));
  sink_gradients(shape, plan.rows, operands, floats(delta), gradients.sinks);
  const int64_t count = static_cast<int64_t>(plan.streams.size()) * plan.groups;
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      // The groups of one stream one after another: they share keys and queries in the caches.
      const int64_t group = i % plan.groups;
      const BackwardPlan::Stream& stream = plan.streams[static_cast<size_t>(i / plan.groups)];
      cpu_attention::BackwardOperands task{operands.q,    gradients.o,    operands.log_sum_exp,
                                           floats(delta), operands.lists, gradients.q,
                                           gradients.k,   gradients.v};
      if (sums.parts > 0 && group > 0) task.grad_q = {sums.row(group - 1, 0), sums.width, true};
      cpu_attention::backward_task(shape, {stream.unit, stream.kv_head, group, plan.groups}, task);
    }
  });
  if (sums.parts == 0) return;
  parallel_for(sums.rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* __restrict to = gradients.q.row(i);
      for (int64_t part = 0; part < sums.parts; ++part) {
        const float* __restrict from = sums.row(part, i);
        for (int64_t c = 0; c < sums.width; ++c) to[c] += from[c];
      }
    }
  });
}

void CpuAttentionKernels::merge(const AttentionMerge& arguments, const Matrix& out) {
  parallel_for(arguments.rows, kMergeRows, [&](int64_t begin, int64_t end) {
    cpu_attention::merge_rows(arguments, begin, end, out);
  });
}

void CpuAttentionKernels::merge_backward(const AttentionMerge& arguments, const ConstMatrix& out,
                                         const AttentionMergeGradients& gradients) {
  // Blocks of rows have sums of their own for the fixed keys and values, which are added in order.
  const int64_t key_width = arguments.shape.heads * arguments.shape.key_dim;
  const int64_t value_width = arguments.shape.heads * arguments.shape.value_dim;
  const int64_t block_size = arguments.fixed * (key_width + value_width);
  const int64_t block = std::max(kMergeRows, tiles_of(arguments.rows, kMostMergeBlocks));
  const int64_t blocks = tiles_of(arguments.rows, block);
  const Storage sums(float_bytes(std::max<int64_t>(1, blocks * block_size)));
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      float* own = floats(sums) + b * block_size;
      std::fill_n(own, block_size, 0.0f);
      AttentionMergeGradients part = gradients;
      part.k = {own, key_width, true};
      part.v = {own + arguments.fixed * key_width, value_width, true};
      cpu_attention::merge_rows_backward(arguments, b * block,
                                         std::min(arguments.rows, (b + 1) * block), out, part);
    }
  });
  const auto add_up = [&](const Matrix& target, int64_t offset, int64_t size) {
    float* to = target.data;
    if (to == nullptr) return;
    if (!target.accumulate) std::fill_n(to, size, 0.0f);
    for (int64_t b = 0; b < blocks; ++b) {
      const float* own = floats(sums) + b * block_size + offset;
      for (int64_t i = 0; i < size; ++i) to[i] += own[i];
    }
  };
  add_up(gradients.k, 0, arguments.fixed * key_width);
  add_up(gradients.v, arguments.fixed * key_width, arguments.fixed * value_width);
}

void CpuAttentionKernels::summarise(std::span<const KeyBlock> blocks, BlockStatistic statistic,
                                    int64_t columns, DType type, int64_t stride) {
  parallel_for(std::ssize(blocks), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      cpu_attention::summarise_block(blocks[static_cast<size_t>(i)], statistic, columns, type,
                                     stride);
    }
  });
}

void CpuAttentionKernels::choose_blocks(const AttentionShape& shape, const BlockChoice& choice,
                                        std::span<const AttentionUnit> units, const ConstMatrix& q,
                                        const int32_t* own_block, int32_t* out) {
  for (const AttentionUnit& unit : units) {
    const int64_t work = unit.end_tile() * kAttentionTile * shape.heads * shape.key_dim;
    const int64_t grain = std::max<int64_t>(1, kParallelWork / std::max<int64_t>(1, work));
    parallel_for(unit.rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = unit.first_row + i;
        cpu_attention::choose_row(shape, choice, unit, i, q, own_block[row],
                                  out + row * choice.lists * choice.top);
      }
    });
  }
}

void CpuAttentionKernels::weigh_keys(const AttentionShape& shape, const AttentionUnit& unit,
                                     const ConstMatrix& q, const ConstMatrix& log_sum_exp,
                                     float* weights) {
  const int64_t work = kAttentionTile * unit.rows * shape.heads * shape.key_dim;
  const int64_t grain = std::max<int64_t>(1, kParallelWork / std::max<int64_t>(1, work));
  parallel_for(std::ssize(unit.tiles), grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      cpu_attention::weigh_tile(shape, unit, tile, q, log_sum_exp, weights + tile * kAttentionTile);
    }
  });
}

// Rows of a unit that are scored together, and keys of a task of these scores.
constexpr int64_t kIndexerRows = 16, kIndexerKeys = 1024;

// choose_keys() of rows first ... first + count - 1 of a unit.
void choose_keys_of(const IndexerOperands& indexer, const AttentionUnit& unit, int64_t first,
                    int64_t count, int64_t top, int32_t* out) {
  int64_t keys = 0;
  for (int64_t i = first; i < first + count; ++i) keys = std::max(keys, unit.visible[i].end);
  const int64_t stride = tiles_of(keys, kAttentionTile) * kAttentionTile;
  const Storage scores(float_bytes(std::max<int64_t>(1, keys > top ? count * stride : 0)));
  if (keys > top) {
    parallel_for(tiles_of(keys, kIndexerKeys), 1, [&](int64_t begin, int64_t end) {
      cpu_attention::indexer_scores(indexer, unit, first, count, begin * kIndexerKeys,
                                    std::min(keys, end * kIndexerKeys), floats(scores), stride);
    });
  }
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t seen = unit.visible[first + i].end;
      int32_t* list = out + (unit.first_row + first + i) * top;
      if (seen > top) {
        cpu_attention::take_top(floats(scores) + i * stride, seen, top, list);
      } else {
        std::iota(list, list + seen, 0);
        std::fill(list + seen, list + top, -1);
      }
    }
  });
}

void CpuAttentionKernels::choose_keys(const IndexerOperands& indexer,
                                      std::span<const AttentionUnit> units, int64_t top,
                                      int32_t* out) {
  struct Group {
    const AttentionUnit* unit;
    int64_t first, count;
  };
  PooledVector<Group> groups;
  for (const AttentionUnit& unit : units) {
    for (int64_t i = 0; i < unit.rows; i += kIndexerRows) {
      groups.push_back({&unit, i, std::min(kIndexerRows, unit.rows - i)});
    }
  }
  const auto run = [&](const Group& group) {
    choose_keys_of(indexer, *group.unit, group.first, group.count, top, out);
  };
  // Few groups share out their keys instead.
  constexpr size_t kManyGroups = 8;
  if (groups.size() < kManyGroups) {
    for (const Group& group : groups) run(group);
    return;
  }
  parallel_for(std::ssize(groups), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(groups[static_cast<size_t>(i)]);
  });
}

void CpuAttentionKernels::indexer_loss(const IndexerLoss& arguments) {
  parallel_for(std::ssize(arguments.units), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      cpu_attention::indexer_loss_unit(arguments, arguments.units[static_cast<size_t>(i)]);
    }
  });
}

}  // namespace

std::unique_ptr<AttentionKernels> make_cpu_attention_kernels() {
  return std::make_unique<CpuAttentionKernels>();
}

}  // namespace pronghorn
