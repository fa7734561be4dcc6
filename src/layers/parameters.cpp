#include "layers/parameters.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"

namespace pronghorn {

namespace initializers {

Initializer constant(float value) {
  return [value](Random&, int64_t) { return value; };
}

Initializer normal(double deviation) {
  return [deviation](Random& random, int64_t) {
    return static_cast<float>(deviation * random.normal());
  };
}

Initializer uniform(double low, double high) {
  return [low, high](Random& random, int64_t) {
    return static_cast<float>(random.uniform(low, high));
  };
}

Initializer inverse_softplus_log_uniform(double minimum, double maximum, double floor) {
  return [=](Random& random, int64_t) {
    const double drawn = std::exp(random.uniform(std::log(minimum), std::log(maximum)));
    const double dt = std::max(drawn, floor);
    return static_cast<float>(dt + std::log(-std::expm1(-dt)));
  };
}

}  // namespace initializers

Tensor ParameterStore::tensor(std::string name, Shape shape, const Initializer& initializer,
                              Decay decay) {
  for (const Parameter& parameter : parameters_) {
    require(parameter.name != name, "parameters", "'{}' is registered twice", name);
  }
  const Tensor value = Tensor::empty(std::move(shape));
  value.set_requires_grad(true);
  if (initialize_) {
    Random random(seed_, name);
    float* to = value.data();
    for (int64_t i = 0; i < value.size(); ++i) to[i] = initializer(random, i);
  }
  parameters_.push_back({std::move(name), value, decay == Decay::yes});
  return value;
}

Weight ParameterStore::matrix(std::string name, int64_t out, int64_t in,
                              const Initializer& initializer) {
  return Weight(tensor(std::move(name), {out, in}, initializer, Decay::yes));
}

}  // namespace pronghorn
