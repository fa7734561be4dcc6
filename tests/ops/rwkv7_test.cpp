#include "ops/rwkv7.h"

#include "ops/operator_check.h"

namespace pronghorn {
namespace {

using check::check_operator;
using check::OperatorCheck;
using check::Values;
using Row = std::vector<double>;

constexpr int64_t kHeads = 3, kHeadDim = 19, kColumns = kHeads * kHeadDim;

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }

TEST(Rwkv7, Keys) {
  OperatorCheck check;
  check.name = "rwkv7_keys";
  check.inputs = [](int64_t rows) {
    return std::vector<check::Input>{{{rows, kColumns}, -4, 4},
                                     {{rows, kColumns}, -4, 4},
                                     {{rows, kColumns}},
                                     {{kColumns}},
                                     {{kColumns}}};
  };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    const Rwkv7KeyRows rows = rwkv7_keys(context, in[0], in[1], in[2], in[3], in[4], kHeadDim);
    return std::vector<Tensor>{rows.log_decay, rows.key, rows.remove, rows.replace};
  };
  check.reference = [](const Values& in, int64_t rows) {
    Values out(4);
    for (int64_t head = 0; head < rows * kHeads; ++head) {
      const int64_t column = head % kHeads * kHeadDim;
      double squares = 0;
      for (int64_t i = 0; i < kHeadDim; ++i) {
        const double u = in[2][static_cast<size_t>(head * kHeadDim + i)] *
                         in[3][static_cast<size_t>(column + i)];
        squares += u * u;
      }
      for (int64_t i = 0; i < kHeadDim; ++i) {
        const auto at = static_cast<size_t>(head * kHeadDim + i);
        const auto c = static_cast<size_t>(column + i);
        const double s = sigmoid_of(in[1][at]), k = in[2][at];
        const double unit = k * in[3][c] / std::sqrt(squares);
        out[0].push_back(-std::exp(-0.5) * sigmoid_of(in[0][at]));
        out[1].push_back(k * (1 + (s - 1) * in[4][c]));
        out[2].push_back(-unit);
        out[3].push_back(unit * s);
      }
    }
    return out;
  };
  check_operator(check);
}

TEST(Rwkv7, Output) {
  constexpr double kEpsilon = 19e-5;
  OperatorCheck check;
  check.name = "rwkv7_output";
  check.inputs = [](int64_t rows) {
    std::vector<check::Input> inputs(5, {{rows, kColumns}});
    inputs.insert(inputs.end(), 3, {{kColumns}});
    return inputs;
  };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{
        rwkv7_output(context, {in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7]}, kHeadDim,
                     static_cast<float>(kEpsilon))};
  };
  check.reference = [](const Values& in, int64_t rows) {
    Row y;
    for (int64_t head = 0; head < rows * kHeads; ++head) {
      const auto first = static_cast<size_t>(head * kHeadDim);
      const auto column = static_cast<size_t>(head % kHeads * kHeadDim);
      double mean = 0, variance = 0, bonus = 0;
      for (size_t i = 0; i < kHeadDim; ++i) {
        mean += in[0][first + i] / kHeadDim;
        bonus += in[1][first + i] * in[2][first + i] * in[7][column + i];
      }
      for (size_t i = 0; i < kHeadDim; ++i) {
        variance += std::pow(in[0][first + i] - mean, 2) / kHeadDim;
      }
      for (size_t i = 0; i < kHeadDim; ++i) {
        const double n = (in[0][first + i] - mean) / std::sqrt(variance + kEpsilon);
        const double value = n * in[5][column + i] + in[6][column + i] + bonus * in[3][first + i];
        y.push_back(value * in[4][first + i]);
      }
    }
    return Values{y};
  };
  check_operator(check);

  // RWKV-6's: no bonus behind the norm.
  check.name = "rwkv7_output, without a bonus";
  check.inputs = [](int64_t rows) {
    return std::vector<check::Input>{
        {{rows, kColumns}}, {{rows, kColumns}}, {{kColumns}}, {{kColumns}}};
  };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{rwkv7_output(context, {in[0], {}, {}, {}, in[1], in[2], in[3], {}},
                                            kHeadDim, static_cast<float>(kEpsilon))};
  };
  const auto with_bonus = check.reference;
  check.reference = [with_bonus](const Values& in, int64_t rows) {
    const Row none(in[0].size()), no_weight(static_cast<size_t>(kColumns));
    return with_bonus({in[0], none, none, none, in[1], in[2], in[3], no_weight}, rows);
  };
  check_operator(check);
}

TEST(Rwkv7, Interpolate) {
  OperatorCheck check;
  check.name = "interpolate";
  check.inputs = [](int64_t rows) { return std::vector<check::Input>(3, {{rows, kColumns}}); };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{interpolate(context, in[0], in[1], in[2])};
  };
  check.reference = [](const Values& in, int64_t) {
    Row y;
    for (size_t i = 0; i < in[0].size(); ++i) {
      y.push_back(in[0][i] + (in[1][i] - in[0][i]) * sigmoid_of(in[2][i]));
    }
    return Values{y};
  };
  check_operator(check);
}

}  // namespace
}  // namespace pronghorn
