// Checks an operator on every instruction set: its results against a naive float64 form, its
// gradients against central differences of that form, strided inputs, and that the number of
// threads changes no bit.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "backend/cpu/cpu_features.h"
#include "base/random.h"
#include "base/threads.h"
#include "tensor/tape.h"
#include "tensor/tensor.h"

namespace pronghorn::check {

using Values = std::vector<std::vector<double>>;

struct Input {
  Shape shape;  // a shape of one dimension is a parameter: never strided
  double low = -2, high = 2;
};

struct OperatorCheck {
  std::string name;
  // For a number of rows.
  std::function<std::vector<Input>(int64_t rows)> inputs;
  std::function<std::vector<Tensor>(const Context&, const std::vector<Tensor>&)> forward;
  // Inputs flattened in row-major order; one vector an output, likewise.
  std::function<Values(const Values&, int64_t rows)> reference;
  // Relative to the largest value. The default is 30 roundings of f32: a row of a few dozen
  // elements is summed and a handful of operations follow.
  double tolerance = 2e-6;
  // The same for gradients, whose terms cancel more.
  double gradient_tolerance = 1e-5;
};

inline Values draw(const std::vector<Input>& inputs, uint64_t seed) {
  Values values;
  Random random(seed, "operator check");
  for (const Input& input : inputs) {
    int64_t count = 1;
    for (const int64_t extent : input.shape) count *= extent;
    std::vector<double> flat;
    // Rounded to f32, so that the reference sees the same numbers.
    for (int64_t i = 0; i < count; ++i) {
      flat.push_back(
          static_cast<double>(static_cast<float>(random.uniform(input.low, input.high))));
    }
    values.push_back(std::move(flat));
  }
  return values;
}

// Weights of the outputs in the scalar whose gradient is taken.
inline Values draw_weights(const Values& outputs) {
  std::vector<Input> inputs;
  for (const auto& output : outputs) {
    inputs.push_back({{static_cast<int64_t>(output.size())}, -1, 1});
  }
  return draw(inputs, 99);
}

inline Tensor tensor_of(const std::vector<double>& values, const Shape& shape) {
  std::vector<float> floats(values.begin(), values.end());
  return Tensor::from(floats, shape);
}

inline std::vector<double> flatten(const Tensor& tensor) {
  std::vector<double> values;
  for (int64_t row = 0; row < tensor.rows(); ++row) {
    const float* from = tensor.row(row);
    values.insert(values.end(), from, from + tensor.columns());
  }
  return values;
}

struct Result {
  Values outputs, gradients;
};

// Runs forward and backward. strided: matrices are column slices of wider tensors, surrounded by
// NaN, which spread to the result if they are touched. accumulate: the backward runs over gradients
// that already hold 1, which are taken off again.
inline Result run(const OperatorCheck& check, const Values& values, int64_t rows, bool strided,
                  bool accumulate) {
  const std::vector<Input> inputs = check.inputs(rows);
  std::vector<Tensor> tensors, bases;
  for (size_t i = 0; i < inputs.size(); ++i) {
    Tensor tensor = tensor_of(values[i], inputs[i].shape), base = tensor;
    if (strided && inputs[i].shape.size() == 2) {
      base = Tensor::full({tensor.rows(), tensor.columns() + 5},
                          std::numeric_limits<float>::quiet_NaN());
      const Tensor slice = base.column_slice(3, tensor.columns());
      slice.copy_from(tensor);
      tensor = slice;
    }
    base.set_requires_grad(true);
    if (accumulate) base.give_grad(Tensor::full(base.shape(), 1.0f));
    tensors.push_back(tensor);
    bases.push_back(base);
  }
  Tape tape;
  const std::vector<Tensor> outputs = check.forward({&tape, Precision::f32}, tensors);
  Result result;
  for (const Tensor& output : outputs) result.outputs.push_back(flatten(output));
  const Values weights = draw_weights(result.outputs);
  for (size_t i = 0; i < outputs.size(); ++i) {
    outputs[i].give_grad(tensor_of(weights[i], outputs[i].shape()));
  }
  tape.run_backward();
  for (size_t i = 0; i < tensors.size(); ++i) {
    std::vector<double> gradient = flatten(tensors[i].grad());
    if (accumulate) {
      for (double& g : gradient) g -= 1;
    }
    result.gradients.push_back(std::move(gradient));
    const double total_outside = [&] {
      double sum = 0;
      const Tensor whole = bases[i].grad();
      for (const double g : flatten(whole)) sum += std::abs(g - (accumulate ? 1 : 0));
      for (const double g : result.gradients.back()) sum -= std::abs(g);
      return sum;
    }();
    EXPECT_NEAR(total_outside, 0, 1e-6 * static_cast<double>(bases[i].size()))
        << check.name << ": gradient outside the slice of input " << i;
  }
  return result;
}

inline Values central_differences(const OperatorCheck& check, const Values& values, int64_t rows) {
  // The error of the difference is about step^2 plus 1e-16 / step: below 1e-9 of the values.
  constexpr double kStep = 1e-5;
  const Values weights = draw_weights(check.reference(values, rows));
  const auto scalar = [&](const Values& at) {
    const Values outputs = check.reference(at, rows);
    double sum = 0;
    for (size_t i = 0; i < outputs.size(); ++i) {
      for (size_t j = 0; j < outputs[i].size(); ++j) sum += outputs[i][j] * weights[i][j];
    }
    return sum;
  };
  Values gradients;
  Values moved = values;
  for (size_t i = 0; i < values.size(); ++i) {
    std::vector<double> gradient;
    for (size_t j = 0; j < values[i].size(); ++j) {
      moved[i][j] = values[i][j] + kStep;
      const double up = scalar(moved);
      moved[i][j] = values[i][j] - kStep;
      const double down = scalar(moved);
      moved[i][j] = values[i][j];
      gradient.push_back((up - down) / (2 * kStep));
    }
    gradients.push_back(std::move(gradient));
  }
  return gradients;
}

inline void expect_near(const Values& actual, const Values& expected, double tolerance,
                        const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i].size(), expected[i].size()) << what << " " << i;
    double largest = 0, error = 0;
    for (size_t j = 0; j < actual[i].size(); ++j) {
      largest = std::max(largest, std::abs(expected[i][j]));
      const double difference = std::abs(actual[i][j] - expected[i][j]);
      if (!(difference <= error)) {
        error = std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
      }
    }
    EXPECT_LE(error, tolerance * std::max(largest, 1.0)) << what << " " << i;
  }
}

inline void check_operator(const OperatorCheck& check) {
  constexpr int64_t kFewRows = 5, kManyRows = 1100;  // many: enough for several tasks
  const Values few = draw(check.inputs(kFewRows), 1);
  const Values many = draw(check.inputs(kManyRows), 2);
  const Values expected = check.reference(few, kFewRows);
  const Values expected_gradients = central_differences(check, few, kFewRows);
  const Values expected_many = check.reference(many, kManyRows);
  const int threads = thread_count();
  for (const std::string& set : cpu_instruction_sets()) {
    SCOPED_TRACE(check.name + " on " + set);
    set_cpu_instruction_set(set);
    for (const bool strided : {false, true}) {
      for (const bool accumulate : {false, true}) {
        SCOPED_TRACE(strided ? "strided" : "contiguous");
        const Result result = run(check, few, kFewRows, strided, accumulate);
        expect_near(result.outputs, expected, check.tolerance, "output");
        expect_near(result.gradients, expected_gradients, check.gradient_tolerance, "gradient");
      }
    }
    set_thread_count(1);
    const Result serial = run(check, many, kManyRows, false, false);
    const Result serial_strided = run(check, many, kManyRows, true, false);
    set_thread_count(4);
    const Result parallel = run(check, many, kManyRows, false, false);
    const Result parallel_strided = run(check, many, kManyRows, true, false);
    expect_near(serial.outputs, expected_many, check.tolerance, "output of many rows");
    EXPECT_EQ(serial.outputs, serial_strided.outputs);
    EXPECT_EQ(serial.outputs, parallel.outputs);
    EXPECT_EQ(serial_strided.outputs, parallel_strided.outputs);
    EXPECT_EQ(serial.gradients, parallel.gradients);
    EXPECT_EQ(serial_strided.gradients, parallel_strided.gradients);
    set_thread_count(threads);
  }
  set_cpu_instruction_set(cpu_instruction_sets().back());
}

}  // namespace pronghorn::check
