// Memory that is closed to the host but for kernels and the functions of Memory, and a backend
// whose kernels open it: an operator that follows an address into it by itself dies of a signal.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <string>

#include "backend/backend.h"
#include "tensor/memory.h"

namespace pronghorn::testing_support {

// One range of addresses, of which blocks are cut and never given back.
class GuardedArena {
 public:
  static GuardedArena& instance() {
    static GuardedArena arena;
    return arena;
  }

  std::byte* allocate(size_t bytes, size_t alignment) {
    const std::lock_guard<std::mutex> lock(mutex_);
    used_ = (used_ + alignment - 1) / alignment * alignment;
    if (used_ + bytes > kBytes) return nullptr;
    used_ += bytes;
    return begin_ + used_ - bytes;
  }
  bool holds(const std::byte* block) const { return block >= begin_ && block < begin_ + kBytes; }

  // Closed while somebody guards and nobody has access.
  void change(int guards, int accesses) {
    const std::lock_guard<std::mutex> lock(mutex_);
    guards_ += guards;
    accesses_ += accesses;
    const bool close = guards_ > 0 && accesses_ == 0;
    if (close == closed_) return;
    closed_ = close;
    if (mprotect(begin_, kBytes, close ? PROT_NONE : PROT_READ | PROT_WRITE) != 0) std::abort();
  }

 private:
  static constexpr size_t kBytes = size_t{1} << 32;

  GuardedArena()
      : begin_(static_cast<std::byte*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    if (begin_ == MAP_FAILED) std::abort();
  }

  std::mutex mutex_;
  std::byte* begin_;
  size_t used_ = 0;
  int guards_ = 0, accesses_ = 0;
  bool closed_ = false;
};

// Opens the memory as long as it lives.
class HostAccess {
 public:
  HostAccess() { GuardedArena::instance().change(0, 1); }
  ~HostAccess() { GuardedArena::instance().change(0, -1); }
  HostAccess(const HostAccess&) = delete;
  HostAccess& operator=(const HostAccess&) = delete;
};

class GuardedMemory final : public Memory {
 public:
  std::byte* allocate(size_t bytes, size_t alignment) override {
    return GuardedArena::instance().allocate(bytes, alignment);
  }
  void release(std::byte* block) override {
    if (!GuardedArena::instance().holds(block)) Memory::release(block);
  }
  void clear(std::byte* to, size_t bytes) override {
    const HostAccess access;
    Memory::clear(to, bytes);
  }
  void fill(StridedRows to, int64_t rows, int64_t columns, float value) override {
    const HostAccess access;
    Memory::fill(to, rows, columns, value);
  }
  void add(StridedRows from, StridedRows to, int64_t rows, int64_t columns) override {
    const HostAccess access;
    Memory::add(from, to, rows, columns);
  }
  void copy(const std::byte* from, int64_t from_stride, std::byte* to, int64_t to_stride,
            int64_t rows, int64_t row_bytes) override {
    const HostAccess access;
    Memory::copy(from, from_stride, to, to_stride, rows, row_bytes);
  }
  void copy(std::span<const RowCopy> copies) override {
    const HostAccess access;
    Memory::copy(copies);
  }
  void read(const void* from, void* to, size_t bytes) override {
    const HostAccess access;
    Memory::read(from, to, bytes);
  }
  void write(const void* from, void* to, size_t bytes) override {
    const HostAccess access;
    Memory::write(from, to, bytes);
  }
};

class GuardedMatmulKernels final : public MatmulKernels {
 public:
  explicit GuardedMatmulKernels(MatmulKernels& kernels) : kernels_(kernels) {}
  void linear_forward(const Weight& weight, ConstMatrix x, int64_t rows, const float* bias,
                      Matrix y, Precision precision, bool exact) override {
    const HostAccess access;
    kernels_.linear_forward(weight, x, rows, bias, y, precision, exact);
  }
  void grouped_forward(std::span<const GroupedProduct> products, Precision precision,
                       bool exact) override {
    const HostAccess access;
    kernels_.grouped_forward(products, precision, exact);
  }
  void linear_backward_input(const Weight& weight, ConstMatrix dy, int64_t rows, Matrix dx,
                             Precision precision) override {
    const HostAccess access;
    kernels_.linear_backward_input(weight, dy, rows, dx, precision);
  }
  void linear_backward_weight(ConstMatrix dy, ConstMatrix x, int64_t rows, int64_t out, int64_t in,
                              Matrix dw, Precision precision) override {
    const HostAccess access;
    kernels_.linear_backward_weight(dy, x, rows, out, in, dw, precision);
  }
  void linear_backward_bias(ConstMatrix dy, int64_t rows, int64_t out, GradVector db) override {
    const HostAccess access;
    kernels_.linear_backward_bias(dy, rows, out, db);
  }
  void read_rows(const Weight& weight, std::span<const int32_t> rows, Matrix to) override {
    const HostAccess access;
    kernels_.read_rows(weight, rows, to);
  }
  int64_t resident_bytes(const Weight& weight, Precision precision) override {
    const HostAccess access;
    return kernels_.resident_bytes(weight, precision);
  }
  int64_t bytes_read(const Weight& weight, Precision precision) override {
    const HostAccess access;
    return kernels_.bytes_read(weight, precision);
  }
  void read_stored(const Weight& weight, std::byte* to) override {
    const HostAccess access;
    kernels_.read_stored(weight, to);
  }

 private:
  MatmulKernels& kernels_;
};

class GuardedPointwiseKernels final : public PointwiseKernels {
 public:
  explicit GuardedPointwiseKernels(PointwiseKernels& kernels) : kernels_(kernels) {}
  void add(Extent extent, ConstMatrix a, ConstMatrix b, Matrix y) override {
    const HostAccess access;
    kernels_.add(extent, a, b, y);
  }
  void multiply(Extent extent, ConstMatrix a, ConstMatrix b, Matrix y) override {
    const HostAccess access;
    kernels_.multiply(extent, a, b, y);
  }
  void add_bias(Extent extent, ConstMatrix x, const float* bias, Matrix y) override {
    const HostAccess access;
    kernels_.add_bias(extent, x, bias, y);
  }
  void column_sums(Extent extent, ConstMatrix x, GradVector sums) override {
    const HostAccess access;
    kernels_.column_sums(extent, x, sums);
  }
  void scale(Extent extent, ConstMatrix x, float factor, Matrix y) override {
    const HostAccess access;
    kernels_.scale(extent, x, factor, y);
  }
  void sigmoid(Extent extent, ConstMatrix x, Matrix y) override {
    const HostAccess access;
    kernels_.sigmoid(extent, x, y);
  }
  void sigmoid_backward(Extent extent, ConstMatrix y, ConstMatrix dy, Matrix dx) override {
    const HostAccess access;
    kernels_.sigmoid_backward(extent, y, dy, dx);
  }
  void activate(Extent extent, ConstMatrix x, Activation activation, Matrix y) override {
    const HostAccess access;
    kernels_.activate(extent, x, activation, y);
  }
  void activate_backward(Extent extent, ConstMatrix x, ConstMatrix dy, Activation activation,
                         Matrix dx) override {
    const HostAccess access;
    kernels_.activate_backward(extent, x, dy, activation, dx);
  }
  void soft_cap(Extent extent, ConstMatrix x, float cap, Matrix y) override {
    const HostAccess access;
    kernels_.soft_cap(extent, x, cap, y);
  }
  void soft_cap_backward(Extent extent, ConstMatrix y, ConstMatrix dy, float cap,
                         Matrix dx) override {
    const HostAccess access;
    kernels_.soft_cap_backward(extent, y, dy, cap, dx);
  }
  void round_rows(Extent extent, ConstMatrix x, Matrix y) override {
    const HostAccess access;
    kernels_.round_rows(extent, x, y);
  }
  void round_ternary(Extent extent, ConstMatrix x, Matrix y) override {
    const HostAccess access;
    kernels_.round_ternary(extent, x, y);
  }
  void swiglu(Extent extent, ConstMatrix gate, ConstMatrix up, Matrix y) override {
    const HostAccess access;
    kernels_.swiglu(extent, gate, up, y);
  }
  void swiglu_backward(Extent extent, ConstMatrix gate, ConstMatrix up, ConstMatrix dy,
                       Matrix dgate, Matrix dup) override {
    const HostAccess access;
    kernels_.swiglu_backward(extent, gate, up, dy, dgate, dup);
  }
  void clamped_swiglu(Extent extent, ConstMatrix gate, ConstMatrix up, float limit,
                      Matrix y) override {
    const HostAccess access;
    kernels_.clamped_swiglu(extent, gate, up, limit, y);
  }
  void clamped_swiglu_backward(Extent extent, ConstMatrix gate, ConstMatrix up, float limit,
                               ConstMatrix dy, Matrix dgate, Matrix dup) override {
    const HostAccess access;
    kernels_.clamped_swiglu_backward(extent, gate, up, limit, dy, dgate, dup);
  }
  void decay_gate(const DecayGate& gate, Matrix dt, Matrix log_decay) override {
    const HostAccess access;
    kernels_.decay_gate(gate, dt, log_decay);
  }
  void decay_gate_backward(const DecayGate& gate, ConstMatrix d_dt, ConstMatrix d_log_decay,
                           Matrix d_raw, GradVector d_dt_bias, GradVector d_A_log) override {
    const HostAccess access;
    kernels_.decay_gate_backward(gate, d_dt, d_log_decay, d_raw, d_dt_bias, d_A_log);
  }
  void norm(const NormForward& arguments) override {
    const HostAccess access;
    kernels_.norm(arguments);
  }
  void norm_backward(const NormBackward& arguments) override {
    const HostAccess access;
    kernels_.norm_backward(arguments);
  }
  void gated_norm(const GatedNorm& arguments, Matrix y, float* inverse_rms) override {
    const HostAccess access;
    kernels_.gated_norm(arguments, y, inverse_rms);
  }
  void gated_norm_backward(const GatedNorm& arguments, const float* inverse_rms, ConstMatrix dy,
                           Matrix dx, Matrix dz, GradVector dweight) override {
    const HostAccess access;
    kernels_.gated_norm_backward(arguments, inverse_rms, dy, dx, dz, dweight);
  }
  void l2_normalize(Extent extent, int64_t group, float epsilon, ConstMatrix x, Matrix y) override {
    const HostAccess access;
    kernels_.l2_normalize(extent, group, epsilon, x, y);
  }
  void l2_normalize_backward(Extent extent, int64_t group, float epsilon, ConstMatrix x,
                             ConstMatrix dy, Matrix dx) override {
    const HostAccess access;
    kernels_.l2_normalize_backward(extent, group, epsilon, x, dy, dx);
  }
  void rotate(const Rotation& rotation, ConstMatrix x, Matrix y) override {
    const HostAccess access;
    kernels_.rotate(rotation, x, y);
  }
  void gather_rows(Extent extent, ConstMatrix table, const int32_t* tokens, Matrix y) override {
    const HostAccess access;
    kernels_.gather_rows(extent, table, tokens, y);
  }
  void scatter_add_rows(Extent extent, ConstMatrix dy, const int32_t* tokens, int64_t table_rows,
                        Matrix dtable) override {
    const HostAccess access;
    kernels_.scatter_add_rows(extent, dy, tokens, table_rows, dtable);
  }
  void upsample(const Upsampling& arguments, Matrix out) override {
    const HostAccess access;
    kernels_.upsample(arguments, out);
  }
  void upsample_backward(const Upsampling& arguments, ConstMatrix d_out, Matrix dx, Matrix dy,
                         Matrix dweights, GradVector d_bypass_scale) override {
    const HostAccess access;
    kernels_.upsample_backward(arguments, d_out, dx, dy, dweights, d_bypass_scale);
  }
  void combine_rows(const Combination& arguments, Matrix y) override {
    const HostAccess access;
    kernels_.combine_rows(arguments, y);
  }
  void combine_rows_backward(const Combination& arguments, ConstMatrix dy, Matrix dx,
                             Matrix dweights) override {
    const HostAccess access;
    kernels_.combine_rows_backward(arguments, dy, dx, dweights);
  }
  void cross_entropy(Extent extent, Matrix logits, const int32_t* targets, bool gradient,
                     double gradient_scale, double z_loss_weight, RowLoss* losses) override {
    const HostAccess access;
    kernels_.cross_entropy(extent, logits, targets, gradient, gradient_scale, z_loss_weight,
                           losses);
  }
  void adamw(int64_t count, float* parameters, const float* gradients, float* m, float* v,
             const AdamW& settings) override {
    const HostAccess access;
    kernels_.adamw(count, parameters, gradients, m, v, settings);
  }
  double sum_of_squares(int64_t count, const float* values) override {
    const HostAccess access;
    return kernels_.sum_of_squares(count, values);
  }
  void append_ones(Extent extent, int64_t group, ConstMatrix x, Matrix y) override {
    const HostAccess access;
    kernels_.append_ones(extent, group, x, y);
  }
  void append_ones_backward(Extent extent, int64_t group, ConstMatrix dy, Matrix dx) override {
    const HostAccess access;
    kernels_.append_ones_backward(extent, group, dy, dx);
  }
  void divide_by_sums(Extent extent, int64_t group, float least, ConstMatrix x, Matrix y) override {
    const HostAccess access;
    kernels_.divide_by_sums(extent, group, least, x, y);
  }
  void divide_by_sums_backward(Extent extent, int64_t group, float least, ConstMatrix x,
                               ConstMatrix dy, Matrix dx) override {
    const HostAccess access;
    kernels_.divide_by_sums_backward(extent, group, least, x, dy, dx);
  }
  void scale_columns(Extent extent, ConstMatrix x, const float* weight, Matrix y) override {
    const HostAccess access;
    kernels_.scale_columns(extent, x, weight, y);
  }
  void scale_columns_backward(Extent extent, ConstMatrix x, const float* weight, ConstMatrix dy,
                              Matrix dx, GradVector dweight) override {
    const HostAccess access;
    kernels_.scale_columns_backward(extent, x, weight, dy, dx, dweight);
  }
  void lower_bounded_gate(Extent extent, ConstMatrix x, const float* bound, Matrix log_decay,
                          Matrix k) override {
    const HostAccess access;
    kernels_.lower_bounded_gate(extent, x, bound, log_decay, k);
  }
  void lower_bounded_gate_backward(Extent extent, ConstMatrix x, const float* bound,
                                   ConstMatrix d_log_decay, ConstMatrix dk, Matrix dx,
                                   GradVector d_bound) override {
    const HostAccess access;
    kernels_.lower_bounded_gate_backward(extent, x, bound, d_log_decay, dk, dx, d_bound);
  }
  void cumulative_softmax(Extent extent, ConstMatrix x, int64_t row, float* bound) override {
    const HostAccess access;
    kernels_.cumulative_softmax(extent, x, row, bound);
  }
  void cumulative_softmax_backward(Extent extent, ConstMatrix x, int64_t row, const float* d_bound,
                                   Matrix dx) override {
    const HostAccess access;
    kernels_.cumulative_softmax_backward(extent, x, row, d_bound, dx);
  }

 private:
  PointwiseKernels& kernels_;
};

class GuardedAttentionKernels final : public AttentionKernels {
 public:
  explicit GuardedAttentionKernels(AttentionKernels& kernels) : kernels_(kernels) {}
  void forward(const AttentionShape& shape, std::span<const AttentionUnit> units,
               const AttentionOperands& operands) override {
    const HostAccess access;
    kernels_.forward(shape, units, operands);
  }
  void forward_exact(const AttentionShape& shape, std::span<const AttentionUnit> units,
                     const AttentionOperands& operands) override {
    const HostAccess access;
    kernels_.forward_exact(shape, units, operands);
  }
  void backward(const AttentionShape& shape, std::span<const AttentionUnit> units,
                const AttentionOperands& operands, const AttentionGradients& gradients) override {
    const HostAccess access;
    kernels_.backward(shape, units, operands, gradients);
  }
  void merge(const AttentionMerge& arguments, const Matrix& out) override {
    const HostAccess access;
    kernels_.merge(arguments, out);
  }
  void merge_backward(const AttentionMerge& arguments, const ConstMatrix& out,
                      const AttentionMergeGradients& gradients) override {
    const HostAccess access;
    kernels_.merge_backward(arguments, out, gradients);
  }
  void store_rows(const ConstMatrix& from, int64_t rows, int64_t columns, DType type, std::byte* to,
                  int64_t stride) override {
    const HostAccess access;
    kernels_.store_rows(from, rows, columns, type, to, stride);
  }

 private:
  AttentionKernels& kernels_;
};

class GuardedConvolutionKernels final : public ConvolutionKernels {
 public:
  explicit GuardedConvolutionKernels(ConvolutionKernels& kernels) : kernels_(kernels) {}
  void forward(const Filter& filter, int64_t rows, const float* const* inputs, float* y,
               int64_t y_stride) override {
    const HostAccess access;
    kernels_.forward(filter, rows, inputs, y, y_stride);
  }
  void backward(const Filter& filter, int64_t rows, const float* const* inputs, const float* dy,
                int64_t dy_stride, float* pre_grad, const Matrix& weight_grad,
                const Matrix& bias_grad) override {
    const HostAccess access;
    kernels_.backward(filter, rows, inputs, dy, dy_stride, pre_grad, weight_grad, bias_grad);
  }
  void backward_input(const Filter& filter, int64_t rows, const float* const* pre_grads,
                      const Matrix& x_grad) override {
    const HostAccess access;
    kernels_.backward_input(filter, rows, pre_grads, x_grad);
  }

 private:
  ConvolutionKernels& kernels_;
};

class GuardedFastWeightMemoryKernels final : public FastWeightMemoryKernels {
 public:
  explicit GuardedFastWeightMemoryKernels(FastWeightMemoryKernels& kernels) : kernels_(kernels) {}
  void forward(const MemoryProblem& problem, std::span<const MemoryRun> runs, const Matrix& out,
               float* saved) override {
    const HostAccess access;
    kernels_.forward(problem, runs, out, saved);
  }
  void fold(const MemoryProblem& problem, std::span<const MemoryFold> folds) override {
    const HostAccess access;
    kernels_.fold(problem, folds);
  }
  void backward(const MemoryProblem& problem, std::span<const MemoryRun> runs,
                const ConstMatrix& out_grad, const float* saved,
                const MemoryGradients& gradients) override {
    const HostAccess access;
    kernels_.backward(problem, runs, out_grad, saved, gradients);
  }

 private:
  FastWeightMemoryKernels& kernels_;
};

class GuardedOuterProductStateKernels final : public OuterProductStateKernels {
 public:
  explicit GuardedOuterProductStateKernels(OuterProductStateKernels& kernels) : kernels_(kernels) {}
  void forward(const OuterProductProblem& problem, std::span<const OuterProductSegment> segments,
               const Matrix& out, const OuterProductSaved& saved) override {
    const HostAccess access;
    kernels_.forward(problem, segments, out, saved);
  }
  void backward(const OuterProductProblem& problem, std::span<const OuterProductSegment> segments,
                const ConstMatrix& out_grad, const OuterProductSaved& saved,
                const OuterProductGradients& gradients) override {
    const HostAccess access;
    kernels_.backward(problem, segments, out_grad, saved, gradients);
  }
  void step(const OuterProductProblem& problem,
            std::span<const std::span<const ReplayStep>> sequences, const Matrix& out) override {
    const HostAccess access;
    kernels_.step(problem, sequences, out);
  }

 private:
  OuterProductStateKernels& kernels_;
};

class GuardedScanKernels final : public ScanKernels {
 public:
  explicit GuardedScanKernels(ScanKernels& kernels) : kernels_(kernels) {}
  void selective_forward(const SelectiveScan& scan, std::span<const ScanSegment> segments, float* y,
                         int64_t y_stride) override {
    const HostAccess access;
    kernels_.selective_forward(scan, segments, y, y_stride);
  }
  void selective_replay(const SelectiveScan& scan, std::span<const float* const> rows, bool fresh,
                        float* state) override {
    const HostAccess access;
    kernels_.selective_replay(scan, rows, fresh, state);
  }
  void selective_backward(const SelectiveScan& scan, std::span<const ScanSegment> segments,
                          const ConstMatrix& dy, const SelectiveScanGradients& gradients) override {
    const HostAccess access;
    kernels_.selective_backward(scan, segments, dy, gradients);
  }

 private:
  ScanKernels& kernels_;
};

class GuardedBackend final : public Backend {
 public:
  std::string description() const override { return backend_.description(); }
  MatmulKernels& matmul() override { return matmul_; }
  PointwiseKernels& pointwise() override { return pointwise_; }
  AttentionKernels& attention() override { return attention_; }
  ConvolutionKernels& convolution() override { return convolution_; }
  FastWeightMemoryKernels& fast_weight_memory() override { return fast_weight_memory_; }
  OuterProductStateKernels& outer_product_state() override { return outer_product_state_; }
  ScanKernels& scan() override { return scan_; }

 private:
  Backend& backend_ = backend();
  GuardedMatmulKernels matmul_{backend_.matmul()};
  GuardedPointwiseKernels pointwise_{backend_.pointwise()};
  GuardedAttentionKernels attention_{backend_.attention()};
  GuardedConvolutionKernels convolution_{backend_.convolution()};
  GuardedFastWeightMemoryKernels fast_weight_memory_{backend_.fast_weight_memory()};
  GuardedOuterProductStateKernels outer_product_state_{backend_.outer_product_state()};
  GuardedScanKernels scan_{backend_.scan()};
};

// Puts both in place for the rest of the program: what was allocated before stays open. Guard
// closes the memory as long as it lives.
inline void use_guarded_memory() {
  static GuardedMemory memory;
  static GuardedBackend backend;
  static const bool once = (exchange_memory(memory), exchange_backend(backend), true);
  static_cast<void>(once);
}

class Guard {
 public:
  Guard() { GuardedArena::instance().change(1, 0); }
  ~Guard() { GuardedArena::instance().change(-1, 0); }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;
};

}  // namespace pronghorn::testing_support
