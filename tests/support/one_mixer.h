// One mixer with parameters of its own beside a loop in float64 of what its paper says.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "layers/fields.h"
#include "layers/layer.h"
#include "support/slopes.h"
#include "tensor/tape.h"

namespace pronghorn::testing_support {

// Of parameters and inputs, by their names.
using NumbersByName = std::map<std::string, std::vector<double>>;

struct OneMixer {
  // json: its configuration, with the key "type".
  OneMixer(const nlohmann::json& json, const LayerContext& layer) {
    const MixerType& type = find_mixer_type(json.at("type").get<std::string>(), "test");
    mixer = type.create(type.complete(ConfigReader(json, "test"), layer), layer,
                        ParameterScope(store, ""), StateScope(0, journals));
  }

  NumbersByName numbers() const {
    NumbersByName all;
    for (const Parameter& parameter : store.all()) {
      const auto numbers = parameter.value.read();
      all[parameter.name].assign(numbers.begin(), numbers.end());
    }
    return all;
  }

  ParameterStore store{5, true};
  std::vector<JournalShape> journals;
  std::unique_ptr<Mixer> mixer;
};

// f32 sums of some dozen terms of size one.
constexpr double kLayerTolerance = 5e-6;

// What the mixer makes of x [rows, width], the rows of `whole`, and the gradients of that by x and
// all parameters, are those of reference(numbers), in which "x" is the input. p: what else the
// reference reads, the parameters among them. weights: gradients of what comes out. slope_tolerance
// and stride: as in expect_slopes(). Returns what the reference gives.
template <typename Reference>
std::vector<double> expect_reference(const OneMixer& one, const Batch& whole,
                                     const std::vector<float>& numbers,
                                     const std::vector<float>& weights, NumbersByName p,
                                     const Reference& reference, double slope_tolerance,
                                     size_t stride = 1) {
  const CheckedBatch batch(whole);
  const auto rows = static_cast<int64_t>(whole.positions.size());
  const Tensor x = Tensor::from(numbers, {rows, std::ssize(numbers) / rows});
  x.set_requires_grad(true);
  p["x"].assign(numbers.begin(), numbers.end());
  const std::vector<double> expected = reference(p);
  Tape tape;
  Context context;
  context.tape = &tape;
  Carry carry(rows, {});
  const Tensor y = one.mixer->forward({context, batch, carry}, x);
  const auto values = y.read();
  EXPECT_EQ(values.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(values[i], expected[i], kLayerTolerance) << i;
  }
  y.give_grad(Tensor::from(weights, y.shape()));
  tape.run_backward();
  const auto scalar = [&] {
    const std::vector<double> moved = reference(p);
    double sum = 0;
    for (size_t i = 0; i < moved.size(); ++i) sum += moved[i] * double{weights[i]};
    return sum;
  };
  expect_slopes("x", x, p.at("x"), scalar, slope_tolerance, stride);
  for (const Parameter& parameter : one.store.all()) {
    expect_slopes(parameter.name, parameter.value, p.at(parameter.name), scalar, slope_tolerance,
                  stride);
  }
  return expected;
}

}  // namespace pronghorn::testing_support
