// Watched kernels of sequence operators. Operations are those of the equations, as Mixer's
// sequence_cost() counts them: what a chunked form computes besides is not counted. A backward pass
// counts twice its forward.
#include <algorithm>

#include "backend/watched_kernels.h"

namespace pronghorn {
namespace {

constexpr char kAttention[] = "attention", kRecurrence[] = "recurrence",
               kConvolution[] = "convolution";

double number_bytes(DType type) {
  return as_double(dtype_size(type)) / as_double(dtype_block(type));
}

class WatchedAttention final : public AttentionKernels {
 public:
  WatchedAttention(AttentionKernels& kernels, KernelWatcher& watcher)
      : kernels_(kernels), watcher_(watcher) {}

  void forward(const AttentionShape& shape, std::span<const AttentionUnit> units,
               const AttentionOperands& operands) override {
    const Watched watched(watcher_,
                          attention("attention_forward", shape, units, operands.lists, 1));
    kernels_.forward(shape, units, operands);
  }
  void forward_exact(const AttentionShape& shape, std::span<const AttentionUnit> units,
                     const AttentionOperands& operands) override {
    const Watched watched(watcher_,
                          attention("attention_forward_exact", shape, units, operands.lists, 1));
    kernels_.forward_exact(shape, units, operands);
  }
  void backward(const AttentionShape& shape, std::span<const AttentionUnit> units,
                const AttentionOperands& operands, const AttentionGradients& gradients) override {
    const Watched watched(watcher_,
                          attention("attention_backward", shape, units, operands.lists, 2));
    kernels_.backward(shape, units, operands, gradients);
  }
  void merge(const AttentionMerge& arguments, const Matrix& out) override {
    const Watched watched(watcher_, {.kernel = "attention_merge", .kind = kAttention});
    kernels_.merge(arguments, out);
  }
  void merge_backward(const AttentionMerge& arguments, const ConstMatrix& out,
                      const AttentionMergeGradients& gradients) override {
    const Watched watched(watcher_, {.kernel = "attention_merge_backward", .kind = kAttention});
    kernels_.merge_backward(arguments, out, gradients);
  }
  void summarise(std::span<const KeyBlock> blocks, BlockStatistic statistic, int64_t columns,
                 DType type, int64_t stride) override {
    double rows = 0;
    for (const KeyBlock& block : blocks) {
      for (const KeyTile& tile : block.tiles) rows += tile.count;
    }
    const double numbers = rows * as_double(columns);
    const Watched watched(watcher_, {.kernel = "attention_summarise",
                                     .kind = kAttention,
                                     .operations = numbers,
                                     .bytes = numbers * number_bytes(type)});
    kernels_.summarise(blocks, statistic, columns, type, stride);
  }
  void choose_blocks(const AttentionShape& shape, const BlockChoice& choice,
                     std::span<const AttentionUnit> units, const ConstMatrix& q,
                     const int32_t* own_block, int32_t* out) override {
    AttentionShape keys = shape;
    keys.value_dim = 0;
    const Watched watched(watcher_, attention("attention_choose_blocks", keys, units, {}, 1));
    kernels_.choose_blocks(shape, choice, units, q, own_block, out);
  }
  void weigh_keys(const AttentionShape& shape, const AttentionUnit& unit, const ConstMatrix& q,
                  const ConstMatrix& log_sum_exp, float* weights) override {
    AttentionShape keys = shape;
    keys.value_dim = 0;
    const Watched watched(watcher_, attention("attention_weigh_keys", keys, {&unit, 1}, {}, 1));
    kernels_.weigh_keys(shape, unit, q, log_sum_exp, weights);
  }
  void choose_keys(const IndexerOperands& indexer, std::span<const AttentionUnit> units,
                   int64_t top, int32_t* out) override {
    AttentionShape keys = indexer.shape;
    keys.value_dim = 0;
    const Watched watched(watcher_, attention("attention_choose_keys", keys, units, {}, 1));
    kernels_.choose_keys(indexer, units, top, out);
  }
  void indexer_loss(const IndexerLoss& arguments) override {
    // The indexer's products three times, with its gradients, and attention's scores once more.
    AttentionShape indexer = arguments.indexer.shape, heads = arguments.attention;
    indexer.value_dim = heads.value_dim = 0;
    KernelCall call = attention("attention_indexer_loss", indexer, arguments.units, {}, 3);
    const KernelCall scores = attention("", heads, arguments.units, arguments.operands.lists, 1);
    call.operations += scores.operations;
    call.bytes += scores.bytes;
    const Watched watched(watcher_, call);
    kernels_.indexer_loss(arguments);
  }
  void store_rows(const ConstMatrix& from, int64_t rows, int64_t columns, DType type, std::byte* to,
                  int64_t stride) override {
    const double bytes = as_double(rows * columns) * (kNumber + number_bytes(type));
    const Watched watched(watcher_, {.kernel = "store_rows", .kind = kAttention, .bytes = bytes});
    kernels_.store_rows(from, rows, columns, type, to, stride);
  }
  void load_rows(const std::byte* from, int64_t rows, int64_t columns, DType type, int64_t stride,
                 const Matrix& to) override {
    const double bytes = as_double(rows * columns) * (kNumber + number_bytes(type));
    const Watched watched(watcher_, {.kernel = "load_rows", .kind = kAttention, .bytes = bytes});
    kernels_.load_rows(from, rows, columns, type, stride, to);
  }

 private:
  // passes: forward 1, backward 2.
  static KernelCall attention(const char* kernel, const AttentionShape& shape,
                              std::span<const AttentionUnit> units, const KeyLists& lists,
                              double passes) {
    const double group = as_double(shape.heads) / as_double(shape.kv_heads);
    const double widths = as_double(shape.key_dim + shape.value_dim);
    const double listed = as_double(lists.width * lists.block);
    double operations = 0, bytes = 0;
    for (const AttentionUnit& unit : units) {
      double pairs = 0, keys = 0;
      for (int64_t i = 0; i < unit.rows; ++i) {
        const KeyRange& seen = unit.visible[i];
        const int64_t prefix = std::min(seen.prefix, seen.begin);
        const double all = as_double(seen.end - seen.begin + std::max<int64_t>(0, prefix));
        pairs += lists.blocks == nullptr ? all : std::min(all, listed);
      }
      for (const KeyTile& tile : unit.tiles) keys += tile.count;
      if (lists.blocks != nullptr) keys = std::min(keys, as_double(unit.rows) * group * listed);
      const double heads = as_double(unit.kv_heads);
      operations += 2 * pairs * heads * group * widths;
      bytes += heads * widths *
               (keys * number_bytes(unit.type) + as_double(unit.rows) * group * kNumber);
    }
    return {.kernel = kernel,
            .kind = kAttention,
            .operations = passes * operations,
            .bytes = passes * bytes};
  }

  AttentionKernels& kernels_;
  KernelWatcher& watcher_;
};

class WatchedConvolution final : public ConvolutionKernels {
 public:
  WatchedConvolution(ConvolutionKernels& kernels, KernelWatcher& watcher)
      : kernels_(kernels), watcher_(watcher) {}

  void forward(const Filter& filter, int64_t rows, const float* const* inputs, float* y,
               int64_t y_stride) override {
    const Watched watched(watcher_, convolution("convolution_forward", filter, rows, 2));
    kernels_.forward(filter, rows, inputs, y, y_stride);
  }
  void backward(const Filter& filter, int64_t rows, const float* const* inputs, const float* dy,
                int64_t dy_stride, float* pre_grad, const Matrix& weight_grad,
                const Matrix& bias_grad) override {
    const Watched watched(watcher_, convolution("convolution_backward", filter, rows, 3));
    kernels_.backward(filter, rows, inputs, dy, dy_stride, pre_grad, weight_grad, bias_grad);
  }
  void backward_input(const Filter& filter, int64_t rows, const float* const* pre_grads,
                      const Matrix& x_grad) override {
    const Watched watched(watcher_, convolution("convolution_backward_input", filter, rows, 2));
    kernels_.backward_input(filter, rows, pre_grads, x_grad);
  }

 private:
  static KernelCall convolution(const char* kernel, const Filter& filter, int64_t rows,
                                double matrices) {
    const double numbers = as_double(rows * filter.channels);
    return {.kernel = kernel,
            .kind = kConvolution,
            .operations = 2 * numbers * as_double(filter.taps),
            .bytes = kNumber * matrices * numbers};
  }

  ConvolutionKernels& kernels_;
  KernelWatcher& watcher_;
};

class WatchedOuterProductState final : public OuterProductStateKernels {
 public:
  WatchedOuterProductState(OuterProductStateKernels& kernels, KernelWatcher& watcher)
      : kernels_(kernels), watcher_(watcher) {}

  void forward(const OuterProductProblem& problem, std::span<const OuterProductSegment> segments,
               const Matrix& out, const OuterProductSaved& saved) override {
    const Watched watched(watcher_, state("outer_product_forward", problem, 1));
    kernels_.forward(problem, segments, out, saved);
  }
  void backward(const OuterProductProblem& problem, std::span<const OuterProductSegment> segments,
                const ConstMatrix& out_grad, const OuterProductSaved& saved,
                const OuterProductGradients& gradients) override {
    const Watched watched(watcher_, state("outer_product_backward", problem, 2));
    kernels_.backward(problem, segments, out_grad, saved, gradients);
  }
  void step(const OuterProductProblem& problem,
            std::span<const std::span<const ReplayStep>> sequences, const Matrix& out) override {
    KernelCall call = state("outer_product_step", problem, 1);
    double anchors = 0;
    for (const std::span<const ReplayStep> steps : sequences) {
      for (const ReplayStep& each : steps) {
        anchors += (each.anchor() != nullptr ? 1 : 0) + (each.fold.to != nullptr ? 1 : 0);
      }
    }
    call.bytes +=
        kNumber * anchors * as_double(problem.value_heads * problem.key_dim * problem.value_dim);
    const Watched watched(watcher_, call);
    kernels_.step(problem, sequences, out);
  }

 private:
  // Per number of the state and row: decay 1, write 2, read 2, and with the delta rule what the key
  // held 2. Bytes are those of the rows.
  static KernelCall state(const char* kernel, const OuterProductProblem& problem, double passes) {
    const double numbers =
        as_double(problem.value_heads * problem.key_dim) * as_double(problem.value_dim);
    const double widths = as_double(2 * problem.key_heads * problem.key_dim +
                                    2 * problem.value_heads * problem.value_dim);
    return {.kernel = kernel,
            .kind = kRecurrence,
            .operations = passes * as_double(problem.rows) * numbers * (problem.delta_rule ? 7 : 5),
            .bytes = passes * kNumber * as_double(problem.rows) * widths};
  }

  OuterProductStateKernels& kernels_;
  KernelWatcher& watcher_;
};

class WatchedScan final : public ScanKernels {
 public:
  WatchedScan(ScanKernels& kernels, KernelWatcher& watcher)
      : kernels_(kernels), watcher_(watcher) {}

  int64_t rates_size(int64_t channels, int64_t state_size) override {
    return kernels_.rates_size(channels, state_size);
  }
  void make_rates(const ConstMatrix& A_log, int64_t channels, int64_t state_size,
                  float* rates) override {
    const Watched watched(watcher_, {.kernel = "scan_rates",
                                     .kind = kRecurrence,
                                     .bytes = 2 * kNumber * as_double(channels * state_size)});
    kernels_.make_rates(A_log, channels, state_size, rates);
  }
  void selective_forward(const SelectiveScan& scan, std::span<const ScanSegment> segments, float* y,
                         int64_t y_stride) override {
    const Watched watched(watcher_, scanned("scan_forward", scan, rows_of(segments), 1));
    kernels_.selective_forward(scan, segments, y, y_stride);
  }
  void selective_replay(const SelectiveScan& scan, std::span<const float* const> rows, bool fresh,
                        float* state) override {
    const auto count = static_cast<int64_t>(rows.size());
    const Watched watched(watcher_, scanned("scan_replay", scan, count, 1));
    kernels_.selective_replay(scan, rows, fresh, state);
  }
  void selective_backward(const SelectiveScan& scan, std::span<const ScanSegment> segments,
                          const ConstMatrix& dy, const SelectiveScanGradients& gradients) override {
    const Watched watched(watcher_, scanned("scan_backward", scan, rows_of(segments), 2));
    kernels_.selective_backward(scan, segments, dy, gradients);
  }

 private:
  static int64_t rows_of(std::span<const ScanSegment> segments) {
    int64_t rows = 0;
    for (const ScanSegment& segment : segments) rows += segment.length;
    return rows;
  }
  static KernelCall scanned(const char* kernel, const SelectiveScan& scan, int64_t rows,
                            double passes) {
    const double state = as_double(scan.channels * scan.state_size);
    const double widths = as_double(3 * scan.channels + 2 * scan.state_size);
    return {.kernel = kernel,
            .kind = kRecurrence,
            .operations = passes * 7 * as_double(rows) * state,
            .bytes = passes * kNumber * as_double(rows) * widths};
  }

  ScanKernels& kernels_;
  KernelWatcher& watcher_;
};

class WatchedFastWeightMemory final : public FastWeightMemoryKernels {
 public:
  WatchedFastWeightMemory(FastWeightMemoryKernels& kernels, KernelWatcher& watcher)
      : kernels_(kernels), watcher_(watcher) {}

  void forward(const MemoryProblem& problem, std::span<const MemoryRun> runs, const Matrix& out,
               float* saved) override {
    const Watched watched(watcher_, {.kernel = "memory_forward", .kind = kRecurrence});
    kernels_.forward(problem, runs, out, saved);
  }
  void fold(const MemoryProblem& problem, std::span<const MemoryFold> folds) override {
    const Watched watched(watcher_, {.kernel = "memory_fold", .kind = kRecurrence});
    kernels_.fold(problem, folds);
  }
  void backward(const MemoryProblem& problem, std::span<const MemoryRun> runs,
                const ConstMatrix& out_grad, const float* saved,
                const MemoryGradients& gradients) override {
    const Watched watched(watcher_, {.kernel = "memory_backward", .kind = kRecurrence});
    kernels_.backward(problem, runs, out_grad, saved, gradients);
  }

 private:
  FastWeightMemoryKernels& kernels_;
  KernelWatcher& watcher_;
};

}  // namespace

std::unique_ptr<AttentionKernels> make_watched_attention(AttentionKernels& kernels,
                                                         KernelWatcher& watcher) {
  return std::make_unique<WatchedAttention>(kernels, watcher);
}
std::unique_ptr<ConvolutionKernels> make_watched_convolution(ConvolutionKernels& kernels,
                                                             KernelWatcher& watcher) {
  return std::make_unique<WatchedConvolution>(kernels, watcher);
}
std::unique_ptr<OuterProductStateKernels> make_watched_outer_product_state(
    OuterProductStateKernels& kernels, KernelWatcher& watcher) {
  return std::make_unique<WatchedOuterProductState>(kernels, watcher);
}
std::unique_ptr<ScanKernels> make_watched_scan(ScanKernels& kernels, KernelWatcher& watcher) {
  return std::make_unique<WatchedScan>(kernels, watcher);
}
std::unique_ptr<FastWeightMemoryKernels> make_watched_fast_weight_memory(
    FastWeightMemoryKernels& kernels, KernelWatcher& watcher) {
  return std::make_unique<WatchedFastWeightMemory>(kernels, watcher);
}

}  // namespace pronghorn
