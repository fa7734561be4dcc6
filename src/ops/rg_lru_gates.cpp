#include "ops/rg_lru_gates.h"

#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "rg_lru_gates";

// Adjacent channels: those of one tensor of each gate.
struct Block {
  Tensor u, recurrent, input, parameter, log_a, x;

  RgLruGates gates(const int32_t* positions) const {
    return {u.rows(),
            u.columns(),
            input_matrix(u),
            input_matrix(recurrent),
            input_matrix(input),
            parameter.data(),
            positions};
  }
};

}  // namespace

RgLruDecay rg_lru_gates(const Context& context, const Tensor& u, std::span<const Tensor> recurrent,
                        std::span<const Tensor> input, const Tensor& parameter,
                        std::span<const int32_t> positions) {
  const int64_t rows = u.rows();
  require(parameter.size() == u.columns(), kWhere, "{} parameters for {} channels",
          parameter.size(), u.columns());
  require(static_cast<int64_t>(positions.size()) == rows, kWhere, "{} positions for {} rows",
          positions.size(), rows);
  require(recurrent.size() == input.size(), kWhere, "{} recurrent and {} input gates",
          recurrent.size(), input.size());
  const RgLruDecay out = {Tensor::empty(u.shape()), Tensor::empty(u.shape())};
  bool record = context.tape != nullptr && (u.requires_grad() || parameter.requires_grad());
  std::vector<Block> blocks;
  int64_t first = 0;
  for (size_t i = 0; i < recurrent.size(); ++i) {
    const int64_t width = recurrent[i].columns();
    require(recurrent[i].rows() == rows && input[i].rows() == rows && input[i].columns() == width &&
                first + width <= u.columns(),
            kWhere, "gates {} and {} do not fit {} rows of {} channels", recurrent[i].shape(),
            input[i].shape(), rows, u.columns());
    blocks.push_back({u.column_slice(first, width), recurrent[i], input[i],
                      parameter.reshape({1, parameter.size()}).column_slice(first, width),
                      out.log_a.column_slice(first, width), out.x.column_slice(first, width)});
    record |= context.tape != nullptr && (recurrent[i].requires_grad() || input[i].requires_grad());
    first += width;
  }
  require(first == u.columns(), kWhere, "gates of {} channels for {}", first, u.columns());
  for (const Block& block : blocks) {
    backend().diagonal_scan().rg_lru_gates(block.gates(positions.data()),
                                           output_matrix(block.log_a), output_matrix(block.x));
  }
  if (!record) return out;
  out.log_a.set_requires_grad(true);
  out.x.set_requires_grad(true);
  context.tape->record([blocks, out,
                        kept = std::vector<int32_t>(positions.begin(), positions.end())] {
    if (!out.log_a.has_grad() && !out.x.has_grad()) return;
    const Tensor d_log_a = out.log_a.has_grad() ? out.log_a.grad() : Tensor();
    const Tensor d_x = out.x.has_grad() ? out.x.grad() : Tensor();
    int64_t column = 0;
    const auto slice = [&](const Tensor& gradient, int64_t width) {
      return gradient.defined() ? gradient.column_slice(column, width) : Tensor();
    };
    for (const Block& block : blocks) {
      const int64_t width = block.u.columns();
      const RgLruGateGradients gradients = {
          input_gradient(block.u), input_gradient(block.recurrent), input_gradient(block.input),
          vector_gradient(block.parameter)};
      backend().diagonal_scan().rg_lru_gates_backward(block.gates(kept.data()),
                                                      input_matrix(slice(d_log_a, width)),
                                                      input_matrix(slice(d_x, width)), gradients);
      column += width;
    }
  });
  return out;
}

}  // namespace pronghorn
