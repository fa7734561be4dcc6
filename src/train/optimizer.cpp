#include "train/optimizer.h"

#include <cmath>
#include <string>

#include "base/error.h"
#include "ops/optimizer_kernels.h"

namespace pronghorn {
namespace {

// Name of the first parameter whose gradient is not finite, for the message of a failed step.
std::string first_bad_gradient(const Model& model) {
  for (const Parameter& parameter : model.trained()) {
    if (!parameter.value.has_grad()) continue;
    if (!std::isfinite(sum_of_squares(parameter.value.grad().values()))) return parameter.name;
  }
  return "none";
}

// A step of an averaged parameter: an exponential mean over about the last twentieth of the run.
// Single sequences differ far more from each other than what they have in common moves in so many
// steps.
void follow(const Tensor& value, int64_t step, int64_t sequences) {
  const double observed = 1 / (5 + static_cast<double>(step) / 20) / static_cast<double>(sequences);
  const std::span<const float> gradient = value.grad().values();
  for (size_t i = 0; i < gradient.size(); ++i) {
    value.data()[i] -= static_cast<float>(observed) * gradient[i];
  }
  value.bump_version();
}

// A step of a parameter that counts.
void step_against_sign(const Tensor& value, double step) {
  const std::span<const float> gradient = value.grad().values();
  for (size_t i = 0; i < gradient.size(); ++i) {
    const double sign = gradient[i] > 0 ? 1 : gradient[i] < 0 ? -1 : 0;
    value.data()[i] -= static_cast<float>(step * sign);
  }
  value.bump_version();
}

}  // namespace

double optimizer_step(const Model& model, const TrainConfig& config, TrainingState& state,
                      const OptimizerStep& step) {
  double squares = 0;
  for (const Parameter& parameter : model.trained()) {
    if (!parameter.value.has_grad() || parameter.learning != Learning::loss) continue;
    squares += sum_of_squares(parameter.value.grad().values());
  }
  const auto clear_gradients = [&] {
    for (const Parameter& parameter : model.trained()) parameter.value.clear_grad();
  };
  if (!std::isfinite(step.loss) || !std::isfinite(squares)) {
    const std::string name = first_bad_gradient(model);
    clear_gradients();
    throw Error(fmt::format("training step {}", state.step + 1),
                fmt::format("the {} is not finite (loss {}, first bad gradient: {})",
                            std::isfinite(step.loss) ? "gradient" : "loss", step.loss, name),
                "lower the learning rate; the last good state is kept");
  }
  const double norm = std::sqrt(squares);
  AdamW settings;
  settings.beta1 = config.beta1;
  settings.beta2 = config.beta2;
  settings.epsilon = config.epsilon;
  settings.step = state.step + 1;
  settings.gradient_scale = config.clip > 0 && norm > config.clip ? config.clip / norm : 1;
  for (size_t i = 0; i < model.trained().size(); ++i) {
    const Parameter& parameter = model.trained()[i];
    if (!parameter.value.has_grad()) continue;
    if (parameter.learning == Learning::average) {
      follow(parameter.value, state.step, step.sequences);
      continue;
    }
    if (parameter.learning == Learning::sign) {
      step_against_sign(parameter.value, parameter.learning_rate_scale);
      continue;
    }
    settings.weight_decay = parameter.decay ? config.weight_decay : 0;
    settings.learning_rate = step.learning_rate * parameter.learning_rate_scale;
    adamw_update(parameter.value.values(), parameter.value.grad().values(), state.m[i].values(),
                 state.v[i].values(), settings);
    parameter.value.bump_version();
  }
  clear_gradients();
  state.step += 1;
  return norm;
}

}  // namespace pronghorn
