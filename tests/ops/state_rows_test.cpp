#include "ops/state_rows.h"

#include <numbers>

#include "ops/operator_check.h"

namespace pronghorn {
namespace {

using check::check_operator;
using check::OperatorCheck;
using check::Values;
using Row = std::vector<double>;

constexpr int64_t kHeads = 3, kKeyDim = 11, kValueDim = 19, kKeys = kHeads * kKeyDim,
                  kValues = kHeads * kValueDim;

size_t at(int64_t index) { return static_cast<size_t>(index); }

// in: y, v, q, k and, if there are more, strength, weight and skip.
Values own_read_reference(const Values& in, int64_t rows) {
  const bool all = in.size() > 4;
  Row out = in[0];
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t head = 0; head < kHeads; ++head) {
      double sum = 0;
      for (int64_t i = 0; i < kKeyDim; ++i) {
        const int64_t column = head * kKeyDim + i;
        const double weight = all ? in[5][at(column)] : 1;
        sum += in[2][at(row * kKeys + column)] * in[3][at(row * kKeys + column)] * weight;
      }
      if (all) sum = in[4][at(row * kHeads + head)] * sum + in[6][at(head)];
      for (int64_t i = 0; i < kValueDim; ++i) {
        const size_t place = at(row * kValues + head * kValueDim + i);
        out[place] += sum * in[1][place];
      }
    }
  }
  return {out};
}

TEST(StateRows, OwnRead) {
  OperatorCheck check;
  check.name = "own_read";
  check.inputs = [](int64_t rows) {
    return std::vector<check::Input>{{{rows, kValues}}, {{rows, kValues}}, {{rows, kKeys}},
                                     {{rows, kKeys}},   {{rows, kHeads}},  {{kKeys}},
                                     {{kHeads}}};
  };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{
        own_read(context, {in[0], in[1], in[2], in[3], in[4], in[5], in[6]}, kHeads)};
  };
  check.reference = own_read_reference;
  check_operator(check);

  check.name = "own_read, plain";
  check.inputs = [](int64_t rows) {
    return std::vector<check::Input>{
        {{rows, kValues}}, {{rows, kValues}}, {{rows, kKeys}}, {{rows, kKeys}}};
  };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{own_read(context, {in[0], in[1], in[2], in[3], {}, {}, {}}, kHeads)};
  };
  check_operator(check);
}

TEST(StateRows, TurnedHeads) {
  constexpr int64_t kGroups = 2, kTurned = 4, kWidth = 13, kPairs = 5;
  OperatorCheck check;
  check.name = "turned_heads";
  check.inputs = [](int64_t rows) {
    return std::vector<check::Input>{
        {{rows, kGroups * kWidth}}, {{kTurned * kWidth}}, {{rows, kTurned * kPairs}, -3.2, 3.2}};
  };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    const Tensor bias = in[1].reshape({kTurned, kWidth});
    return std::vector<Tensor>{turned_heads(context, in[0], bias, in[2], kGroups)};
  };
  check.reference = [](const Values& in, int64_t rows) {
    Row y;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t head = 0; head < kTurned; ++head) {
        Row own;
        for (int64_t i = 0; i < kWidth; ++i) {
          own.push_back(in[0][at(row * kGroups * kWidth + head / 2 * kWidth + i)] +
                        in[1][at(head * kWidth + i)]);
        }
        for (int64_t i = 0; i < kPairs; ++i) {
          const double angle = in[2][at((row * kTurned + head) * kPairs + i)];
          const double first = own[at(2 * i)], second = own[at(2 * i + 1)];
          own[at(2 * i)] = first * std::cos(angle) - second * std::sin(angle);
          own[at(2 * i + 1)] = first * std::sin(angle) + second * std::cos(angle);
        }
        y.insert(y.end(), own.begin(), own.end());
      }
    }
    return Values{y};
  };
  check_operator(check);
}

TEST(StateRows, AngleSteps) {
  constexpr int64_t kPairs = 9;
  OperatorCheck check;
  check.name = "angle_steps";
  check.inputs = [](int64_t rows) {
    return std::vector<check::Input>{{{rows, kHeads}, 0.01, 1}, {{rows, kPairs}}};
  };
  check.forward = [](const Context& context, const std::vector<Tensor>& in) {
    return std::vector<Tensor>{angle_steps(context, in[0], in[1])};
  };
  check.reference = [](const Values& in, int64_t rows) {
    Row y;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t head = 0; head < kHeads; ++head) {
        for (int64_t i = 0; i < kPairs; ++i) {
          y.push_back(std::numbers::pi * in[0][at(row * kHeads + head)] *
                      std::tanh(in[1][at(row * kPairs + i)]));
        }
      }
    }
    return Values{y};
  };
  check_operator(check);
}

}  // namespace
}  // namespace pronghorn
