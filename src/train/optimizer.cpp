#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "base/error.h"
#include "ops/optimizer_kernels.h"

namespace pronghorn {
namespace {

// Name of the first parameter whose gradient is not finite on any rank, for the message of a failed
// step.
std::string first_bad_gradient(const Model& model, const GradientSum& gradients, Ranks& ranks) {
  const auto count = static_cast<int64_t>(model.trained().size());
  int64_t bad = 0;
  while (bad < count && std::isfinite(sum_of_squares(gradients.part(static_cast<size_t>(bad))))) {
    ++bad;
  }
  bad = std::ranges::min(gather<int64_t>(ranks, std::span<const int64_t>(&bad, 1)));
  return bad == count ? "none" : model.trained()[static_cast<size_t>(bad)].name;
}

// A step of an averaged parameter: an exponential mean over about the last twentieth of the run.
// Single sequences differ far more from each other than what they have in common moves in that many
// steps.
void follow(std::span<float> values, std::span<const float> gradient, int64_t step,
            int64_t sequences) {
  const double observed = 1 / (5 + static_cast<double>(step) / 20) / static_cast<double>(sequences);
  for (size_t i = 0; i < gradient.size(); ++i) {
    values[i] -= static_cast<float>(observed) * gradient[i];
  }
}

// A step of a parameter that counts.
void step_against_sign(std::span<float> values, std::span<const float> gradient, double step) {
  for (size_t i = 0; i < gradient.size(); ++i) {
    const double sign = gradient[i] > 0 ? 1 : gradient[i] < 0 ? -1 : 0;
    values[i] -= static_cast<float>(step * sign);
  }
}

}  // namespace

double optimizer_step(const Model& model, const TrainConfig& config, TrainingState& state,
                      const GradientSum& gradients, const OptimizerStep& step) {
  std::vector<bool> by_loss;
  for (const Parameter& parameter : model.trained()) {
    by_loss.push_back(parameter.learning == Learning::loss);
  }
  const double squares = gradients.sum_of_squares(by_loss);
  const auto clear_gradients = [&] {
    for (const Parameter& parameter : model.trained()) parameter.value.clear_grad();
  };
  if (!std::isfinite(step.loss) || !std::isfinite(squares)) {
    const std::string name = first_bad_gradient(model, gradients, state.ranks);
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
    const std::span<const float> gradient = gradients.part(i);
    if (gradient.empty()) continue;
    const std::span<float> values =
        parameter.value.values().subspan(static_cast<size_t>(state.own(i).begin), gradient.size());
    if (parameter.learning == Learning::average) {
      follow(values, gradient, state.step, step.sequences);
      continue;
    }
    if (parameter.learning == Learning::sign) {
      step_against_sign(values, gradient, parameter.learning_rate_scale);
      continue;
    }
    settings.weight_decay = parameter.decay ? config.weight_decay : 0;
    settings.learning_rate = step.learning_rate * parameter.learning_rate_scale;
    adamw_update(values, gradient, state.m[i].values(), state.v[i].values(), settings);
  }
  gradients.share_parameters();
  clear_gradients();
  state.step += 1;
  return norm;
}

}  // namespace pronghorn
