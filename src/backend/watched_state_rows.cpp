// Watched kernels of single rows around an outer-product state.
#include "backend/watched_kernels.h"

namespace pronghorn {
namespace {

class WatchedStateRows final : public StateRowKernels {
 public:
  WatchedStateRows(StateRowKernels& kernels, KernelWatcher& watcher)
      : kernels_(kernels), watcher_(watcher) {}

  void own_read(const OwnRead& read, const Matrix& out) override {
    const Watched watched(watcher_, call("own_read", numbers(read)));
    kernels_.own_read(read, out);
  }
  void own_read_backward(const OwnRead& read, const ConstMatrix& dout,
                         const OwnReadGradients& to) override {
    const Watched watched(watcher_, call("own_read_backward", 2 * numbers(read)));
    kernels_.own_read_backward(read, dout, to);
  }
  void turned_heads(const TurnedHeads& turn, const Matrix& y) override {
    const Watched watched(watcher_, call("turned_heads", numbers(turn)));
    kernels_.turned_heads(turn, y);
  }
  void turned_heads_backward(const TurnedHeads& turn, const ConstMatrix& dy,
                             const TurnedHeadsGradients& to) override {
    const Watched watched(watcher_, call("turned_heads_backward", 2 * numbers(turn)));
    kernels_.turned_heads_backward(turn, dy, to);
  }
  void angle_steps(const AngleSteps& steps, const Matrix& y) override {
    const Watched watched(watcher_, call("angle_steps", numbers(steps)));
    kernels_.angle_steps(steps, y);
  }
  void angle_steps_backward(const AngleSteps& steps, const ConstMatrix& dy,
                            const AngleStepsGradients& to) override {
    const Watched watched(watcher_, call("angle_steps_backward", 2 * numbers(steps)));
    kernels_.angle_steps_backward(steps, dy, to);
  }

 private:
  // Numbers that a forward pass reads and writes.
  static int64_t numbers(const OwnRead& read) {
    return read.rows * read.heads * (2 * read.key_dim + 3 * read.value_dim);
  }
  static int64_t numbers(const TurnedHeads& turn) {
    return turn.rows * ((turn.groups + turn.heads) * turn.width + turn.heads * turn.pairs);
  }
  static int64_t numbers(const AngleSteps& steps) {
    return steps.rows * (steps.heads + 1) * (steps.pairs + 1);
  }
  static KernelCall call(const char* kernel, int64_t numbers) {
    return {.kernel = kernel, .kind = "element-wise", .bytes = kNumber * as_double(numbers)};
  }

  StateRowKernels& kernels_;
  KernelWatcher& watcher_;
};

}  // namespace

std::unique_ptr<StateRowKernels> make_watched_state_rows(StateRowKernels& kernels,
                                                         KernelWatcher& watcher) {
  return std::make_unique<WatchedStateRows>(kernels, watcher);
}

}  // namespace pronghorn
