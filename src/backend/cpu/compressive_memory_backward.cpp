// Compressive memories: gradients. The memories before each segment are computed again; then
// segments are walked from the last to the first, with the gradients of the memory after them.
#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/compressive_memory_backward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/compressive_memory-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// One sequence and memory.
struct BackwardRun {
  BackwardRun(const CompressiveMemoryShape& of, const CompressiveMemoryRun& over, int64_t number,
              const CompressiveMemoryInputs& inputs)
      : shape(of),
        run(over),
        memory(number),
        in(inputs),
        key_dim(of.key_dim),
        value_dim(of.value_dim),
        size(of.memory_size()),
        segments((over.length + of.segment - 1) / of.segment),
        most(std::min(of.segment, over.length)),
        storage(
            static_cast<size_t>((segments + 4) * size + most * (3 * key_dim + 4 * value_dim + 2)) *
            sizeof(float)) {
    float* next = reinterpret_cast<float*>(storage.data());
    const auto take = [&](int64_t count) {
      next += count;
      return next - count;
    };
    states = take(segments * size);
    after = take(size);
    before = take(size);
    transposed = take(size);
    after_transposed = take(size);
    keys = take(most * key_dim);
    grad_keys = take(most * key_dim);
    queries = take(most * key_dim);
    values = take(most * value_dim);
    looked_up = take(most * value_dim);
    grad = take(most * value_dim);
    parts = take(most * value_dim);
    inverse = take(most);
    sums = take(most);
  }

  int64_t rows(int64_t segment) const {
    return std::min(shape.segment, run.length - segment * shape.segment);
  }
  int64_t first_row(int64_t segment) const { return run.first_row + segment * shape.segment; }
  HeldMemory held(int64_t segment) const {
    if (segment == 0) return {};
    const float* state = states + segment * size;
    return {state, state + key_dim * value_dim};
  }
  // Keys after sigma and values of a segment.
  void load(int64_t segment) {
    for (int64_t i = 0; i < rows(segment); ++i) {
      const int64_t row = first_row(segment) + i;
      Positive(key_dim, in.k.row(row) + memory * key_dim, keys + i * key_dim);
      std::copy_n(in.v.row(row) + memory * value_dim, value_dim, values + i * value_dim);
    }
  }

  const CompressiveMemoryShape& shape;
  const CompressiveMemoryRun& run;
  int64_t memory;
  const CompressiveMemoryInputs& in;
  int64_t key_dim, value_dim, size, segments, most;
  Storage storage;
  float* states;                         // the memory before each segment
  float *after, *before;                 // gradients of the memory after and before a segment
  float *transposed, *after_transposed;  // M and the gradient of M after, [value_dim, key_dim]
  float *keys, *grad_keys, *queries;
  float *values, *looked_up, *grad, *parts;
  float *inverse, *sums;
};

void ComputeStates(BackwardRun& r) {
  std::fill_n(r.states, r.size, 0.0f);
  for (int64_t s = 0; s + 1 < r.segments; ++s) {
    r.load(s);
    float* next = r.states + (s + 1) * r.size;
    std::copy_n(r.states + s * r.size, r.size, next);
    Written(r.shape, r.held(s), r.rows(s), r.keys, r.values, r.parts);
    Grow(r.shape, r.rows(s), r.keys, r.values, next, next + r.key_dim * r.value_dim);
  }
}

// From r.grad, the gradient of n rows r.looked_up with r.inverse: adds that of `keys` to grad_keys
// and that of the memory to r.before. r.transposed is M's.
//   o = (x M) / (x z):  with g = do / (x z) and s = -(do . o) / (x z)
//   dx = g M^T + s z^T,  dM += x^T g,  dz += x^T s
void LookUpBackward(BackwardRun& r, const HeldMemory& memory, int64_t n, const float* keys,
                    float* grad_keys) {
  for (int64_t i = 0; i < n; ++i) {
    float* grad = r.grad + i * r.value_dim;
    const float product = DotProduct(grad, r.looked_up + i * r.value_dim, r.value_dim);
    r.sums[i] = -product * r.inverse[i];
    for (int64_t c = 0; c < r.value_dim; ++c) grad[c] *= r.inverse[i];
  }
  SmallMatmul(n, r.key_dim, r.value_dim, r.grad, r.value_dim, 1, r.transposed, r.key_dim, grad_keys,
              r.key_dim, true);
  SmallMatmul(r.key_dim, r.value_dim, n, keys, 1, r.key_dim, r.grad, r.value_dim, r.before,
              r.value_dim, true);
  float* grad_z = r.before + r.key_dim * r.value_dim;
  for (int64_t i = 0; i < n; ++i) {
    AddScaled(r.key_dim, r.sums[i], memory.z, grad_keys + i * r.key_dim);
    AddScaled(r.key_dim, r.sums[i], keys + i * r.key_dim, grad_z);
  }
}

// Writes the gradients of raw keys or queries: that after sigma, whose slope is 1 above 0 and sigma
// itself below, times this.
void WriteKeys(int64_t n, int64_t dim, const float* keys, const float* grad, int64_t first_row,
               int64_t column, const Matrix& to) {
  if (to.data == nullptr) return;
  for (int64_t i = 0; i < n; ++i) {
    float* row = to.row(first_row + i) + column;
    for (int64_t c = 0; c < dim; ++c) {
      const float g = grad[i * dim + c] * std::min(1.0f, keys[i * dim + c]);
      row[c] = to.accumulate ? row[c] + g : g;
    }
  }
}

// The update at the end of segment s, from r.after: gradients of its keys and values, and of the
// memory before it (r.before, which begins as r.after).
void UpdateBackward(BackwardRun& r, int64_t s, const CompressiveMemoryGradients& to) {
  const int64_t n = r.rows(s), row0 = r.first_row(s);
  const int64_t key_dim = r.key_dim, value_dim = r.value_dim;
  r.load(s);
  const bool delta = r.shape.delta_rule && s > 0;
  if (delta) {
    LookUp(r.shape, r.held(s), n, r.keys, r.looked_up, r.inverse);
    AddScaled(n * value_dim, -1, r.looked_up, r.values);
  }
  // du = sigma(k) dM', dsigma(k) = u dM'^T + dz'
  SmallMatmul(n, value_dim, key_dim, r.keys, key_dim, 1, r.after, value_dim, r.grad, value_dim,
              false);
  Transpose(key_dim, value_dim, r.after, value_dim, r.after_transposed, key_dim);
  SmallMatmul(n, key_dim, value_dim, r.values, value_dim, 1, r.after_transposed, key_dim,
              r.grad_keys, key_dim, false);
  for (int64_t i = 0; i < n; ++i) {
    AddScaled(key_dim, 1, r.after + key_dim * value_dim, r.grad_keys + i * key_dim);
  }
  if (to.v.data != nullptr) {
    for (int64_t i = 0; i < n; ++i) {
      float* row = to.v.row(row0 + i) + r.memory * value_dim;
      const float* from = r.grad + i * value_dim;
      for (int64_t c = 0; c < value_dim; ++c) row[c] = to.v.accumulate ? row[c] + from[c] : from[c];
    }
  }
  if (delta) {
    for (int64_t i = 0; i < n * value_dim; ++i) r.grad[i] = -r.grad[i];
    LookUpBackward(r, r.held(s), n, r.keys, r.grad_keys);
  }
  WriteKeys(n, key_dim, r.keys, r.grad_keys, row0, r.memory * key_dim, to.k);
}

void ReadBackward(BackwardRun& r, int64_t s, const ConstMatrix& out, const ConstMatrix& grad_out,
                  const CompressiveMemoryGradients& to) {
  const int64_t n = r.rows(s), row0 = r.first_row(s);
  const int64_t group = r.shape.heads / r.shape.kv_heads;
  for (int64_t head = r.memory * group; head < (r.memory + 1) * group; ++head) {
    std::fill_n(r.grad_keys, n * r.key_dim, 0.0f);
    for (int64_t i = 0; i < n; ++i) {
      Positive(r.key_dim, r.in.q.row(row0 + i) + head * r.key_dim, r.queries + i * r.key_dim);
    }
    if (s > 0) {
      for (int64_t i = 0; i < n; ++i) {
        const float weight = DotProduct(r.queries + i * r.key_dim, r.held(s).z, r.key_dim);
        r.inverse[i] = weight > 0 ? 1 / weight : 0.0f;
        std::copy_n(out.row(row0 + i) + head * r.value_dim, r.value_dim,
                    r.looked_up + i * r.value_dim);
        std::copy_n(grad_out.row(row0 + i) + head * r.value_dim, r.value_dim,
                    r.grad + i * r.value_dim);
      }
      LookUpBackward(r, r.held(s), n, r.queries, r.grad_keys);
    }
    WriteKeys(n, r.key_dim, r.queries, r.grad_keys, row0, head * r.key_dim, to.q);
  }
}

void Backward(const CompressiveMemoryShape& shape, const CompressiveMemoryRun& run, int64_t memory,
              const CompressiveMemoryInputs& in, const ConstMatrix& out,
              const ConstMatrix& grad_out, const CompressiveMemoryGradients& to) {
  BackwardRun r(shape, run, memory, in);
  ComputeStates(r);
  std::fill_n(r.after, r.size, 0.0f);  // nothing reads the memory after the last segment
  for (int64_t s = r.segments - 1; s >= 0; --s) {
    std::copy_n(r.after, r.size, r.before);
    if (s > 0) Transpose(r.key_dim, r.value_dim, r.held(s).m, r.value_dim, r.transposed, r.key_dim);
    UpdateBackward(r, s, to);
    ReadBackward(r, s, out, grad_out, to);
    std::swap(r.after, r.before);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(Backward);

void cpu_compressive_memory::backward(const CompressiveMemoryShape& shape,
                                      const CompressiveMemoryRun& run, int64_t memory,
                                      const CompressiveMemoryInputs& inputs, const ConstMatrix& out,
                                      const ConstMatrix& grad_out,
                                      const CompressiveMemoryGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(Backward)(shape, run, memory, inputs, out, grad_out, gradients);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
