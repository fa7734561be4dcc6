// Tape: what operators record during a forward so that gradients can be computed by walking back.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "tensor/dtype.h"
#include "tensor/tensor.h"

namespace pronghorn {

// An operator that is given a tape and whose inputs require gradients records one closure; it reads
// the gradient of its outputs and adds to the gradients of its inputs. Not thread-safe.
class Tape {
 public:
  Tape() = default;
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  void record(std::function<void()> backward) { steps_.push_back(std::move(backward)); }

  // Runs the closures last to first, each destroyed (with the activations it holds) once it has
  // run. The gradients to start from must have been set with give_grad().
  void run_backward() {
    while (!steps_.empty()) {
      const std::function<void()> step = std::move(steps_.back());
      steps_.pop_back();
      step();
    }
  }

  bool empty() const { return steps_.empty(); }

 private:
  std::vector<std::function<void()>> steps_;
};

// What an operator needs to know besides its inputs.
struct Context {
  Tape* tape = nullptr;  // null: no gradients wanted
  Precision precision = Precision::f32;
  // Whether, in inference, rows must be the same bits whatever the other rows of the batch are
  // (MatmulKernels::linear_forward). Model::forward() says so unless all rows are of long segments.
  bool exact = true;
  // The optimiser step that a training forward belongs to, for layers with a schedule or with
  // regularisation of their own (subsampling); none: they go without.
  std::optional<int64_t> training_step = {};
};

// Whether an operator must record: there is a tape and one of the inputs requires a gradient. Marks
// `output` as requiring one in that case.
template <typename... Inputs>
bool needs_gradient(const Context& context, const Tensor& output, const Inputs&... inputs) {
  if (context.tape == nullptr || !(inputs.requires_grad() || ...)) return false;
  output.set_requires_grad(true);
  return true;
}

}  // namespace pronghorn
