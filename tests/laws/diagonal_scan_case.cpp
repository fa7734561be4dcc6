#include "ops/diagonal_scan.h"

#include <cmath>

#include "laws/operator_case.h"

namespace pronghorn::laws {
namespace {

// h_t = a_t h_{t-1} + x_t, arXiv 2402.19427, equation 4 with the gates applied.
std::vector<double> diagonal_scan_reference(int64_t channels, bool constant, const Values& inputs,
                                            size_t tokens) {
  const auto width = static_cast<size_t>(channels);
  const std::vector<double>&x = inputs[0], &log_a = inputs[1];
  std::vector<double> h(tokens * width);
  for (size_t i = 0; i < h.size(); ++i) {
    const double a = std::exp(log_a[constant ? i % width : i]);
    h[i] = (i < width ? 0 : a * h[i - width]) + x[i];
  }
  return h;
}

OperatorCase diagonal_scan_case(std::string name, int64_t channels, bool constant) {
  OperatorCase row;
  row.name = std::move(name);
  // Decays from 0.05 to 1.
  row.inputs = {{"x", channels, {}, -1, 1}, {"log_a", channels, {}, -3, 0}};
  if (constant) row.inputs[1] = {"log_a", 0, {channels}, -3, -0.01};
  row.output_width = channels;
  row.journals = {diagonal_scan_journal(channels, constant)};
  row.forward = [](const Context& context, const std::vector<Tensor>& in,
                   const CheckedBatch& batch) {
    return diagonal_scan(context, in[1], in[0], batch, JournalSlot{0, 0});
  };
  row.reference = [=](const Values& inputs, const std::vector<int32_t>& positions) {
    return diagonal_scan_reference(channels, constant, inputs, positions.size());
  };
  return row;
}

// Sums, less whole periods if there is one: arXiv 2603.15569, the angles of Mamba-3.
OperatorCase running_sum_case(std::string name, int64_t channels, double period) {
  OperatorCase row;
  row.name = std::move(name);
  // Sums that rise past half a period several times. A sum within a rounding of that would differ
  // from the reference by a whole period; few sums come near with so long a period.
  row.inputs = {{"x", channels, {}, 0.2, 1}};
  row.output_width = channels;
  row.journals = {running_sum_journal(channels)};
  row.forward = [=](const Context& context, const std::vector<Tensor>& in,
                    const CheckedBatch& batch) {
    return running_sum(context, in[0], static_cast<float>(period), batch, JournalSlot{0, 0});
  };
  row.reference = [=](const Values& inputs, const std::vector<int32_t>& positions) {
    std::vector<double> h = inputs[0];
    const auto width = static_cast<size_t>(channels);
    for (size_t i = width; i < positions.size() * width; ++i) {
      h[i] += h[i - width];
      if (period > 0) h[i] -= period * std::round(h[i] / period);
    }
    return h;
  };
  return row;
}

}  // namespace

std::vector<OperatorCase> diagonal_scan_cases() {
  return {diagonal_scan_case("diagonal_scan", 64, false),
          // Partial vectors; more than one group of channels; a decay that tokens share.
          diagonal_scan_case("diagonal_scan_ragged", 83, false),
          diagonal_scan_case("diagonal_scan_constant", 70, true),
          running_sum_case("running_sum", 70, 0), running_sum_case("running_sum_period", 37, 64)};
}

}  // namespace pronghorn::laws
