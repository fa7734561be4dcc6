#include "ops/token_shift.h"

#include "laws/operator_case.h"
#include "ops/pointwise.h"

namespace pronghorn::laws {
namespace {

// Three mixes side by side. in: x and the mixes.
std::vector<double> reference(size_t channels, const Values& in, size_t tokens) {
  std::vector<double> y;
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t s = 1; s < in.size(); ++s) {
      for (size_t c = 0; c < channels; ++c) {
        const double own = in[0][t * channels + c];
        const double before = t > 0 ? in[0][(t - 1) * channels + c] : 0;
        y.push_back(own + (before - own) * in[s][c]);
      }
    }
  }
  return y;
}

}  // namespace

std::vector<OperatorCase> token_shift_cases() {
  constexpr int64_t kChannels = 21;
  OperatorCase row;
  row.name = "token_shift";
  row.inputs = {{"x", kChannels, {}, -1, 1},
                {"first", 0, {kChannels}, -1, 1},
                {"second", 0, {kChannels}, -1, 1},
                {"third", 0, {kChannels}, -1, 1}};
  row.output_width = 3 * kChannels;
  row.journals = {token_shift_journal(kChannels)};
  row.forward = [](const Context& context, const std::vector<Tensor>& in,
                   const CheckedBatch& batch) {
    const auto mixed = token_shift(context, in[0], std::span(in).subspan(1), batch, {0, 0});
    return concatenate_columns(context, mixed);
  };
  row.reference = [](const Values& in, const std::vector<int32_t>& positions) {
    return reference(kChannels, in, positions.size());
  };
  return {row};
}

}  // namespace pronghorn::laws
