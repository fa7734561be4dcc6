#include "ops/short_convolution.h"

#include <cmath>

#include "laws/operator_case.h"

namespace pronghorn::laws {
namespace {

// A causal depthwise convolution, as torch.nn.Conv1d(groups=channels, padding=taps - 1) cut to the
// first tokens, and silu after it.
std::vector<double> short_convolution_reference(int64_t channels, int64_t conv_kernel, bool bias,
                                                bool silu, const Values& inputs, size_t tokens) {
  const auto width = static_cast<size_t>(channels), taps = static_cast<size_t>(conv_kernel);
  const auto &x = inputs[0], &weight = inputs[1];
  std::vector<double> y(tokens * width);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t c = 0; c < width; ++c) {
      double sum = bias ? inputs[2][c] : 0.0;
      for (size_t back = 0; back < taps && back <= t; ++back) {
        sum += weight[c * taps + taps - 1 - back] * x[(t - back) * width + c];
      }
      y[t * width + c] = silu ? sum / (1 + std::exp(-sum)) : sum;
    }
  }
  return y;
}

OperatorCase short_convolution_case(std::string name, int64_t channels, int64_t taps, bool bias,
                                    bool silu) {
  OperatorCase row;
  row.name = std::move(name);
  row.inputs = {{"x", channels, {}, -1, 1}, {"weight", 0, {channels, taps}, -1, 1}};
  if (bias) row.inputs.push_back({"bias", 0, {channels}, -1, 1});
  row.output_width = channels;
  row.journals = {short_convolution_journal(channels, taps)};
  row.forward = [bias, silu](const Context& context, const std::vector<Tensor>& in,
                             const CheckedBatch& batch) {
    return short_convolution(context, in[0], in[1], bias ? in[2] : Tensor(), silu, batch,
                             JournalSlot{0, 0});
  };
  row.reference = [=](const Values& inputs, const std::vector<int32_t>& positions) {
    return short_convolution_reference(channels, taps, bias, silu, inputs, positions.size());
  };
  return row;
}

}  // namespace

std::vector<OperatorCase> short_convolution_cases() {
  return {short_convolution_case("short_convolution", 24, 4, true, true),
          short_convolution_case("short_convolution_linear", 32, 4, false, false),
          short_convolution_case("short_convolution_2_taps", 19, 2, true, false),
          short_convolution_case("short_convolution_wide", 200, 3, false, true)};
}

}  // namespace pronghorn::laws
