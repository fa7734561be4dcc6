#include "backend/cpu/matmul_onednn.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <dnnl.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "tensor/storage.h"

namespace pronghorn {
namespace {

using dnnl::memory;

// oneDNN forks a team of its own with OpenMP unless the calling thread asked for teams of one. The
// function is looked up at run time in the OpenMP library that oneDNN brought with it, which need
// not be the one that our compiler would link.
void stay_on_this_thread() {
  static const auto set_threads =
      reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  static thread_local bool done = false;
  if (done) return;
  if (set_threads != nullptr) set_threads(1);
  done = true;
}

memory::desc plain(memory::dims extents, memory::data_type type, int64_t row, int64_t column) {
  return {std::move(extents), type, memory::dims{row, column}};
}

// One for the process: the streams of threads outlive any of our objects.
const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

constexpr int64_t kTypicalRows = 128;  // that the packed form is chosen for

}  // namespace

struct OneDnnMatmul::Implementation {
  struct Kernel {
    dnnl::matmul::primitive_desc description;
    dnnl::matmul matmul;
  };

  // Tells it from others that lived at the same address.
  const uint64_t id = [] {
    static std::atomic<uint64_t> count{0};
    return count++;
  }();
  std::mutex mutex;
  std::map<Shape, std::unique_ptr<Kernel>> kernels;
  std::map<std::pair<int64_t, int64_t>, memory::desc> packed;  // by columns and terms

  dnnl::matmul::primitive_desc describe(const Shape& shape, const memory::desc& b) {
    const auto [m, n, k] = std::array{shape.rows, shape.columns, shape.terms};
    using Type = memory::data_type;
    const memory::desc a = shape.gradient ? plain({m, k}, Type::bf16, 1, m)  //
                                          : plain({m, k}, Type::bf16, k, 1);
    const memory::desc c = plain({m, n}, Type::f32, n, 1);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (shape.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    if (shape.bias) {
      const memory::desc bias = plain({1, n}, Type::f32, n, 1);
      return {dnnl::matmul::desc(a, b, bias, c), attributes, cpu_engine()};
    }
    return {dnnl::matmul::desc(a, b, c), attributes, cpu_engine()};
  }

  // With the mutex held.
  const memory::desc& packed_form(int64_t columns, int64_t terms) {
    const std::pair key{columns, terms};
    auto found = packed.find(key);
    if (found == packed.end()) {
      const memory::desc any({terms, columns}, memory::data_type::bf16, memory::format_tag::any);
      const Shape shape{kTypicalRows, columns, terms, false, false, false};
      found = packed.emplace(key, describe(shape, any).weights_desc()).first;
    }
    return found->second;
  }

  const Kernel& kernel(const Shape& shape) {
    // Each thread remembers what it has used, so that the lock is met once a shape.
    static thread_local std::map<std::pair<uint64_t, Shape>, const Kernel*> known;
    const Kernel*& mine = known[{id, shape}];
    if (mine != nullptr) return *mine;
    std::lock_guard<std::mutex> lock(mutex);
    std::unique_ptr<Kernel>& slot = kernels[shape];
    if (slot == nullptr) {
      const memory::desc b = shape.gradient ? plain({shape.terms, shape.columns},
                                                    memory::data_type::bf16, shape.columns, 1)
                                            : packed_form(shape.columns, shape.terms);
      const auto description = describe(shape, b);
      slot = std::make_unique<Kernel>(Kernel{description, dnnl::matmul(description)});
    }
    mine = slot.get();
    return *mine;
  }
};

OneDnnMatmul::OneDnnMatmul() : implementation_(std::make_unique<Implementation>()) {}
OneDnnMatmul::~OneDnnMatmul() = default;

size_t OneDnnMatmul::packed_bytes(int64_t columns, int64_t terms) {
  stay_on_this_thread();
  std::lock_guard<std::mutex> lock(implementation_->mutex);
  return implementation_->packed_form(columns, terms).get_size();
}

void OneDnnMatmul::pack(const float* weight, int64_t stride, bool transposed, int64_t columns,
                        int64_t terms, std::byte* to) {
  stay_on_this_thread();
  const memory::desc form = [&] {
    std::lock_guard<std::mutex> lock(implementation_->mutex);
    return implementation_->packed_form(columns, terms);
  }();
  const dnnl::engine& engine = cpu_engine();
  const memory::desc source = plain({terms, columns}, memory::data_type::f32,
                                    transposed ? 1 : stride, transposed ? stride : 1);
  memory from(source, engine, const_cast<float*>(weight));
  memory packed(form, engine, to);
  dnnl::stream stream(engine);
  dnnl::reorder(from, packed).execute(stream, from, packed);
}

void OneDnnMatmul::run(const Shape& shape, const bf16_t* a, const void* b, const float* bias,
                       float* c) {
  stay_on_this_thread();
  const Implementation::Kernel& kernel = implementation_->kernel(shape);
  const auto& description = kernel.description;
  const dnnl::engine& engine = cpu_engine();
  static thread_local dnnl::stream stream(engine);
  static thread_local std::unique_ptr<Storage> scratchpad;
  const size_t needed = std::max<size_t>(1, description.scratchpad_desc().get_size());
  if (scratchpad == nullptr || scratchpad->bytes() < needed) {
    scratchpad = std::make_unique<Storage>(needed);
  }
  std::unordered_map<int, memory> arguments = {
      {DNNL_ARG_SRC, memory(description.src_desc(), engine, const_cast<bf16_t*>(a))},
      {DNNL_ARG_WEIGHTS, memory(description.weights_desc(), engine, const_cast<void*>(b))},
      {DNNL_ARG_DST, memory(description.dst_desc(), engine, c)},
      {DNNL_ARG_SCRATCHPAD, memory(description.scratchpad_desc(), engine, scratchpad->data())}};
  if (shape.bias) {
    arguments[DNNL_ARG_BIAS] = memory(description.bias_desc(), engine, const_cast<float*>(bias));
  }
  kernel.matmul.execute(stream, arguments);
}

}  // namespace pronghorn
