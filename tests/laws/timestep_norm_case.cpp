#include <cmath>

#include "laws/operator_case.h"
#include "ops/timestep_norm.h"

namespace pronghorn::laws {
namespace {

constexpr float kEpsilon = 1e-3f;

// arXiv 2404.08801, section 3.2: mean and variance of everything in the group up to the row.
std::vector<double> timestep_norm_reference(int64_t columns, int64_t groups, const Values& inputs,
                                            size_t tokens) {
  const auto width = static_cast<size_t>(columns), count = static_cast<size_t>(groups);
  const size_t group = width / count;
  const std::vector<double>&x = inputs[0], &weight = inputs[1], &bias = inputs[2];
  std::vector<double> y(tokens * width);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t g = 0; g < count; ++g) {
      const auto seen = static_cast<double>((t + 1) * group);
      double mean = 0, variance = 0;
      for (size_t s = 0; s <= t; ++s) {
        for (size_t i = 0; i < group; ++i) mean += x[s * width + g * group + i] / seen;
      }
      for (size_t s = 0; s <= t; ++s) {
        for (size_t i = 0; i < group; ++i) {
          const double away = x[s * width + g * group + i] - mean;
          variance += away * away / seen;
        }
      }
      const double deviation = std::sqrt(variance + static_cast<double>(kEpsilon));
      for (size_t i = 0; i < group; ++i) {
        const size_t column = g * group + i, place = t * width + column;
        y[place] = (x[place] - mean) / deviation * weight[column] + bias[column];
      }
    }
  }
  return y;
}

OperatorCase timestep_norm_case(std::string name, int64_t columns, int64_t groups) {
  OperatorCase row;
  row.name = std::move(name);
  // Off from 0, so that means count.
  row.inputs = {{"x", columns, {}, -1, 2}, {"weight", 0, {columns}, -1, 1}, {"bias", 0, {columns}}};
  row.output_width = columns;
  row.journals = {timestep_norm_journal(groups), timestep_norm_journal(groups)};
  row.forward = [=](const Context& context, const std::vector<Tensor>& in,
                    const CheckedBatch& batch) {
    return timestep_norm(context, in[0], in[1], in[2], groups, kEpsilon, batch,
                         {JournalSlot{0, 0}, JournalSlot{0, 1}});
  };
  row.reference = [=](const Values& inputs, const std::vector<int32_t>& positions) {
    return timestep_norm_reference(columns, groups, inputs, positions.size());
  };
  return row;
}

}  // namespace

std::vector<OperatorCase> timestep_norm_cases() {
  return {timestep_norm_case("timestep_norm", 64, 4),
          timestep_norm_case("timestep_norm_ragged", 38, 2)};
}

}  // namespace pronghorn::laws
