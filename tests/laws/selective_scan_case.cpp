#include "ops/selective_scan.h"

#include <cmath>

#include "laws/operator_case.h"

namespace pronghorn::laws {
namespace {

double softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }

// Mamba, arXiv 2312.00752, algorithm 2 with the discretisation of section 3.6 (zero-order hold for
// A, Euler for B). Inputs in the order of the operator's.
std::vector<double> selective_scan_reference(int64_t channels, int64_t states, const Values& inputs,
                                             size_t tokens) {
  const auto &x = inputs[0], &dt_raw = inputs[1], &dt_bias = inputs[2], &A_log = inputs[3],
             &B = inputs[4], &C = inputs[5], &D = inputs[6];
  const auto width = static_cast<size_t>(channels), size = static_cast<size_t>(states);
  std::vector<double> y(tokens * width), h(width * size, 0.0);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t c = 0; c < width; ++c) {
      const double dt = softplus(dt_raw[t * width + c] + dt_bias[c]);
      const double input = x[t * width + c];
      double sum = D[c] * input;
      for (size_t n = 0; n < size; ++n) {
        const double A = -std::exp(A_log[c * size + n]);
        double& state = h[c * size + n];
        state = std::exp(dt * A) * state + dt * B[t * size + n] * input;
        sum += C[t * size + n] * state;
      }
      y[t * width + c] = sum;
    }
  }
  return y;
}

OperatorCase selective_scan_case(std::string name, int64_t channels, int64_t states) {
  OperatorCase row;
  row.name = std::move(name);
  row.inputs = {{"x", channels, {}, -1, 1},
                {"dt_raw", channels, {}, -3, 2},
                {"dt_bias", 0, {channels}, -1, 0.5},
                {"A_log", 0, {channels, states}, -1.5, 1.5},
                {"B", states, {}, -1, 1},
                {"C", states, {}, -1, 1},
                {"D", 0, {channels}, -1, 1}};
  row.output_width = channels;
  row.journals = {selective_scan_journal(channels, states)};
  row.forward = [](const Context& context, const std::vector<Tensor>& in,
                   const CheckedBatch& batch) {
    return selective_scan(context, in[0], in[1], in[2], in[3], in[4], in[5], in[6], batch,
                          JournalSlot{0, 0});
  };
  row.reference = [channels, states](const Values& inputs, const std::vector<int32_t>& positions) {
    return selective_scan_reference(channels, states, inputs, positions.size());
  };
  return row;
}

}  // namespace

std::vector<OperatorCase> selective_scan_cases() {
  return {selective_scan_case("selective_scan", 32, 16),
          // Partial vectors; fewer states; more than one group of channels; states in no block.
          selective_scan_case("selective_scan_ragged", 19, 16),
          selective_scan_case("selective_scan_8_states", 72, 8),
          selective_scan_case("selective_scan_5_states", 8, 5)};
}

}  // namespace pronghorn::laws
