#include <complex>

#include "laws/operator_case.h"
#include "ops/diagonal_scan.h"

namespace pronghorn::laws {
namespace {

// S4D, arXiv 2206.11893, section 3, in its recurrent form with the factor of the input in C.
std::vector<double> diagonal_ssm_reference(int64_t channels, int64_t modes, const Values& inputs,
                                           size_t tokens) {
  const auto width = static_cast<size_t>(channels), count = static_cast<size_t>(modes);
  const std::vector<double>&u = inputs[0], &poles = inputs[1], &reads = inputs[2], &D = inputs[3];
  std::vector<double> y(tokens * width);
  for (size_t c = 0; c < width; ++c) {
    std::vector<std::complex<double>> h(count);
    for (size_t t = 0; t < tokens; ++t) {
      std::complex<double> sum;
      for (size_t n = 0; n < count; ++n) {
        const size_t re = 2 * n * width + c, im = re + width;
        h[n] = std::complex(poles[re], poles[im]) * h[n] + u[t * width + c];
        sum += std::complex(reads[re], reads[im]) * h[n];
      }
      y[t * width + c] = 2 * sum.real() + D[c] * u[t * width + c];
    }
  }
  return y;
}

OperatorCase diagonal_ssm_case(std::string name, int64_t channels, int64_t modes) {
  OperatorCase row;
  row.name = std::move(name);
  // Poles up to 0.99 from 0, in all directions.
  row.inputs = {{"u", channels, {}, -1, 1},
                {"poles", 0, {2 * modes, channels}, -0.7, 0.7},
                {"reads", 0, {2 * modes, channels}, -1, 1},
                {"D", 0, {channels}, -1, 1}};
  row.output_width = channels;
  row.journals = {diagonal_ssm_journal(channels, modes)};
  row.forward = [](const Context& context, const std::vector<Tensor>& in,
                   const CheckedBatch& batch) {
    return diagonal_ssm(context, in[0], in[1], in[2], in[3], batch, JournalSlot{0, 0});
  };
  row.reference = [=](const Values& inputs, const std::vector<int32_t>& positions) {
    return diagonal_ssm_reference(channels, modes, inputs, positions.size());
  };
  return row;
}

}  // namespace

std::vector<OperatorCase> diagonal_ssm_cases() {
  return {diagonal_ssm_case("diagonal_ssm", 64, 4),
          // Partial vectors and modes in no block; more than one group of channels.
          diagonal_ssm_case("diagonal_ssm_ragged", 19, 7),
          diagonal_ssm_case("diagonal_ssm_1_mode", 72, 1)};
}

}  // namespace pronghorn::laws
