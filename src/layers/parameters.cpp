#include "layers/parameters.h"

#include <unistd.h>

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

void ParameterStore::require_room(int64_t size) {
  const int64_t memory = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  require(size <= memory / static_cast<int64_t>(sizeof(float)), "parameters",
          "{} numbers in f32 do not fit into the {} MiB of memory of this machine", size,
          memory >> 20);
}

Tensor ParameterStore::tensor(std::string name, Shape shape, const Initializer& initializer,
                              Decay decay, double learning_rate_scale) {
  require(names_.insert(name).second, "parameters", "'{}' is registered twice", name);
  int64_t size = 1;
  for (const int64_t extent : shape) {
    require(extent >= 0 && !__builtin_mul_overflow(size, extent, &size), name,
            "shape {} is too large", shape_string(shape));
  }
  require_room(size);
  total_size_ += size;
  require_room(total_size_);
  const Tensor value = Tensor::empty(std::move(shape));
  value.set_requires_grad(true);
  if (initialize_) {
    Random random(seed_, name);
    float* to = value.data();
    for (int64_t i = 0; i < value.size(); ++i) to[i] = initializer(random, i);
  }
  parameters_.push_back({std::move(name), value, decay == Decay::yes, learning_rate_scale});
  return value;
}

Weight ParameterStore::matrix(std::string name, int64_t out, int64_t in,
                              const Initializer& initializer) {
  const Tensor value = tensor(std::move(name), {out, in}, initializer, Decay::yes);
  matrix_size_ += value.size();
  return Weight(value);
}

Tensor ParameterStore::average(std::string name, Shape shape) {
  const Tensor value =
      tensor(std::move(name), std::move(shape), initializers::constant(0), Decay::no);
  parameters_.back().averaged = true;
  return value;
}

}  // namespace pronghorn
