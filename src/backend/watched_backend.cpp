#include "backend/watched_backend.h"

#include <utility>

#include "backend/watched_kernels.h"
#include "tensor/block_layouts.h"
#include "tensor/weight.h"

namespace pronghorn {
namespace {

constexpr char kProduct[] = "product", kMemory[] = "memory";

class WatchedMatmul final : public MatmulKernels {
 public:
  WatchedMatmul(MatmulKernels& kernels, KernelWatcher& watcher)
      : kernels_(kernels), watcher_(watcher) {}

  void linear_forward(const Weight& weight, ConstMatrix x, int64_t rows, const float* bias,
                      Matrix y, Precision precision, bool exact) override {
    KernelCall call = product("linear_forward", weight, rows, precision);
    call.weight = &weight;
    const Watched watched(watcher_, call);
    kernels_.linear_forward(weight, x, rows, bias, y, precision, exact);
  }

  void grouped_forward(std::span<const GroupedProduct> products, Precision precision,
                       bool exact) override {
    KernelCall call{.kernel = "grouped_forward", .kind = kProduct, .products = products};
    for (const GroupedProduct& each : products) {
      const KernelCall one = product("", *each.weight, each.rows, precision);
      call.operations += one.operations;
      call.bytes += one.bytes;
      call.arithmetic = one.arithmetic;
    }
    const Watched watched(watcher_, call);
    kernels_.grouped_forward(products, precision, exact);
  }

  void linear_backward_input(const Weight& weight, ConstMatrix dy, int64_t rows, Matrix dx,
                             Precision precision) override {
    KernelCall call = product("linear_backward_input", weight, rows, precision);
    call.arithmetic = whole(precision);
    call.weight = &weight;
    call.gradient = dy.data;
    const Watched watched(watcher_, call);
    kernels_.linear_backward_input(weight, dy, rows, dx, precision);
  }

  void linear_backward_weight(ConstMatrix dy, ConstMatrix x, int64_t rows, int64_t out, int64_t in,
                              Matrix dw, Precision precision) override {
    const double numbers =
        as_double(rows * (in + out)) + as_double(out * in) * (dw.accumulate ? 2 : 1);
    const KernelCall call{.kernel = "linear_backward_weight",
                          .kind = kProduct,
                          .operations = 2 * as_double(rows) * as_double(out * in),
                          .arithmetic = whole(precision),
                          .bytes = kNumber * numbers,
                          .gradient = dy.data};
    const Watched watched(watcher_, call);
    kernels_.linear_backward_weight(dy, x, rows, out, in, dw, precision);
  }

  void linear_backward_bias(ConstMatrix dy, int64_t rows, int64_t out, GradVector db) override {
    const KernelCall call{.kernel = "linear_backward_bias",
                          .kind = kProduct,
                          .bytes = kNumber * as_double(rows * out),
                          .gradient = dy.data};
    const Watched watched(watcher_, call);
    kernels_.linear_backward_bias(dy, rows, out, db);
  }

  void read_rows(const Weight& weight, std::span<const int32_t> rows, Matrix to) override {
    const auto count = static_cast<int64_t>(rows.size());
    const double stored = as_double(weight.encoding().bytes(weight.in()));
    const KernelCall call{.kernel = "read_rows",
                          .kind = "embedding",
                          .bytes = as_double(count) * (stored + kNumber * as_double(weight.in())),
                          .weight = &weight};
    const Watched watched(watcher_, call);
    kernels_.read_rows(weight, rows, to);
  }

  // For sizes and files, not for operators.
  void read_stored(const Weight& weight, std::byte* to) override {
    const Watched watched(watcher_, {.kernel = "read_stored", .kind = "embedding"});
    kernels_.read_stored(weight, to);
  }
  int64_t resident_bytes(const Weight& weight, Precision precision) override {
    return kernels_.resident_bytes(weight, precision);
  }
  int64_t bytes_read(const Weight& weight, Precision precision) override {
    return kernels_.bytes_read(weight, precision);
  }

 private:
  static Arithmetic whole(Precision precision) {
    return precision == Precision::bf16 ? Arithmetic::bf16 : Arithmetic::f32;
  }

  KernelCall product(const char* kernel, const Weight& weight, int64_t rows,
                     Precision precision) const {
    const bool blocks = precision == Precision::bf16 && !weight.trainable().defined() &&
                        layout_of(weight.encoding()) != nullptr;
    const double numbers = as_double(rows * (weight.in() + weight.out()));
    return {.kernel = kernel,
            .kind = kProduct,
            .operations = 2 * as_double(rows) * as_double(weight.size()),
            .arithmetic = blocks ? Arithmetic::int8 : whole(precision),
            .bytes = as_double(kernels_.bytes_read(weight, precision)) + kNumber * numbers};
  }

  MatmulKernels& kernels_;
  KernelWatcher& watcher_;
};

class WatchedBackend final : public Backend {
 public:
  WatchedBackend(Backend& backend, KernelWatcher& watcher)
      : backend_(backend),
        matmul_(backend.matmul(), watcher),
        pointwise_(make_watched_pointwise(backend.pointwise(), watcher)),
        attention_(make_watched_attention(backend.attention(), watcher)),
        convolution_(make_watched_convolution(backend.convolution(), watcher)),
        outer_product_state_(
            make_watched_outer_product_state(backend.outer_product_state(), watcher)),
        scan_(make_watched_scan(backend.scan(), watcher)),
        diagonal_plus_rank_one_(
            make_watched_diagonal_plus_rank_one(backend.diagonal_plus_rank_one(), watcher)),
        rwkv_(make_watched_rwkv(backend.rwkv(), watcher)),
        state_rows_(make_watched_state_rows(backend.state_rows(), watcher)),
        compressive_memory_(make_watched_compressive_memory(backend.compressive_memory(), watcher)),
        diagonal_scan_(make_watched_diagonal_scan(backend.diagonal_scan(), watcher)),
        fast_weight_memory_(
            make_watched_fast_weight_memory(backend.fast_weight_memory(), watcher)) {}

  std::string description() const override { return backend_.description(); }
  MatmulKernels& matmul() override { return matmul_; }
  PointwiseKernels& pointwise() override { return *pointwise_; }
  AttentionKernels& attention() override { return *attention_; }
  ConvolutionKernels& convolution() override { return *convolution_; }
  OuterProductStateKernels& outer_product_state() override { return *outer_product_state_; }
  ScanKernels& scan() override { return *scan_; }
  DiagonalPlusRankOneKernels& diagonal_plus_rank_one() override { return *diagonal_plus_rank_one_; }
  RwkvKernels& rwkv() override { return *rwkv_; }
  StateRowKernels& state_rows() override { return *state_rows_; }
  CompressiveMemoryKernels& compressive_memory() override { return *compressive_memory_; }
  DiagonalScanKernels& diagonal_scan() override { return *diagonal_scan_; }
  FastWeightMemoryKernels& fast_weight_memory() override { return *fast_weight_memory_; }

 private:
  Backend& backend_;
  WatchedMatmul matmul_;
  std::unique_ptr<PointwiseKernels> pointwise_;
  std::unique_ptr<AttentionKernels> attention_;
  std::unique_ptr<ConvolutionKernels> convolution_;
  std::unique_ptr<OuterProductStateKernels> outer_product_state_;
  std::unique_ptr<ScanKernels> scan_;
  std::unique_ptr<DiagonalPlusRankOneKernels> diagonal_plus_rank_one_;
  std::unique_ptr<RwkvKernels> rwkv_;
  std::unique_ptr<StateRowKernels> state_rows_;
  std::unique_ptr<CompressiveMemoryKernels> compressive_memory_;
  std::unique_ptr<DiagonalScanKernels> diagonal_scan_;
  std::unique_ptr<FastWeightMemoryKernels> fast_weight_memory_;
};

class WatchedMemory final : public Memory {
 public:
  explicit WatchedMemory(KernelWatcher& watcher) : watcher_(watcher) {}

  void clear(std::byte* to, size_t bytes) override {
    const Watched watched(watcher_, call("clear", static_cast<double>(bytes)));
    Memory::clear(to, bytes);
  }
  void fill(StridedRows to, int64_t rows, int64_t columns, float value) override {
    const Watched watched(watcher_, call("fill", kNumber * as_double(rows * columns)));
    Memory::fill(to, rows, columns, value);
  }
  void add(StridedRows from, StridedRows to, int64_t rows, int64_t columns) override {
    const Watched watched(watcher_, call("add_to", 3 * kNumber * as_double(rows * columns)));
    Memory::add(from, to, rows, columns);
  }
  void copy(const std::byte* from, int64_t from_stride, std::byte* to, int64_t to_stride,
            int64_t rows, int64_t row_bytes) override {
    const Watched watched(watcher_, call("copy", 2 * as_double(rows * row_bytes)));
    Memory::copy(from, from_stride, to, to_stride, rows, row_bytes);
  }
  void copy(std::span<const RowCopy> copies) override {
    double bytes = 0;
    for (const RowCopy& each : copies) bytes += 2 * static_cast<double>(each.bytes);
    const Watched watched(watcher_, call("copy_rows", bytes));
    Memory::copy(copies);
  }
  void read(const void* from, void* to, size_t bytes) override {
    const Watched watched(watcher_, call("read", 2 * static_cast<double>(bytes)));
    Memory::read(from, to, bytes);
  }
  void write(const void* from, void* to, size_t bytes) override {
    const Watched watched(watcher_, call("write", 2 * static_cast<double>(bytes)));
    Memory::write(from, to, bytes);
  }

 private:
  static KernelCall call(const char* name, double bytes) {
    return {.kernel = name, .kind = kMemory, .bytes = bytes};
  }
  KernelWatcher& watcher_;
};

}  // namespace

std::unique_ptr<Backend> make_watched_backend(Backend& backend, KernelWatcher& watcher) {
  return std::make_unique<WatchedBackend>(backend, watcher);
}

std::unique_ptr<Memory> make_watched_memory(KernelWatcher& watcher) {
  return std::make_unique<WatchedMemory>(watcher);
}

}  // namespace pronghorn
