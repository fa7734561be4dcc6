#include "layers/parameters.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "backend/backend.h"
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

int64_t Parameter::size() const { return matrix.defined() ? matrix.size() : value.size(); }

Stored Parameter::stored() const {
  if (matrix.defined() && !matrix.stored().bytes.empty()) return matrix.stored();
  const Encoding& in = matrix.defined() ? matrix.encoding() : *encoding;
  auto memory =
      std::make_shared<Storage>(static_cast<size_t>(std::max<int64_t>(1, in.bytes(size()))));
  if (matrix.defined()) {
    backend().matmul().read_stored(matrix, memory->data());
  } else {
    in.encode(value.data(), size(), memory->data());
  }
  return {&in, {memory->data(), static_cast<size_t>(in.bytes(size()))}, memory, nullptr};
}

void ParameterStore::require_memory(int64_t bytes) {
  const int64_t memory = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  require(bytes <= memory, "parameters",
          "at least {} MiB do not fit into the {} MiB of memory of this machine", bytes >> 20,
          memory >> 20);
}

Parameter& ParameterStore::add(std::string name, Shape shape, bool allocate) {
  require(names_.emplace(name, parameters_.size()).second, "parameters", "'{}' is registered twice",
          name);
  int64_t size = 1, bytes = 0;
  for (const int64_t extent : shape) {
    require(extent >= 0 && !__builtin_mul_overflow(size, extent, &size), name,
            "shape {} is too large", shape);
  }
  require(!__builtin_mul_overflow(size, int64_t{sizeof(float)}, &bytes), name,
          "shape {} is too large", shape);
  if (!allocate) bytes = size / 2;
  require_memory(bytes);
  bytes_needed_ += bytes;
  require_memory(bytes_needed_);
  Parameter& parameter = parameters_.emplace_back();
  parameter.name = std::move(name);
  parameter.shape = std::move(shape);
  if (allocate) {
    parameter.value = Tensor::empty(parameter.shape);
    parameter.value.set_requires_grad(purpose_ == Purpose::training);
  }
  return parameter;
}

void ParameterStore::initialize(const Parameter& parameter, const Initializer& initializer) {
  if (!initialize_ || !parameter.value.defined()) return;
  Random random(seed_, parameter.name);
  float* to = parameter.value.data();
  for (int64_t i = 0; i < parameter.value.size(); ++i) to[i] = initializer(random, i);
}

Tensor ParameterStore::tensor(std::string name, Shape shape, const Initializer& initializer,
                              Decay decay, double learning_rate_scale) {
  Parameter& parameter = add(std::move(name), std::move(shape), true);
  parameter.decay = decay == Decay::yes;
  parameter.learning_rate_scale = learning_rate_scale;
  initialize(parameter, initializer);
  return parameter.value;
}

Weight ParameterStore::matrix(std::string name, int64_t out, int64_t in,
                              const Initializer& initializer, double share) {
  const bool training = purpose_ == Purpose::training;
  Parameter& parameter = add(std::move(name), {out, in}, training);
  initialize(parameter, initializer);
  parameter.matrix = training ? Weight(parameter.value) : Weight(out, in);
  parameter.share = share;
  matrix_size_ += share * static_cast<double>(parameter.size());
  return parameter.matrix;
}

Tensor ParameterStore::average(std::string name, Shape shape) {
  const Tensor value =
      tensor(std::move(name), std::move(shape), initializers::constant(0), Decay::no);
  parameters_.back().learning = Learning::average;
  return value;
}

Tensor ParameterStore::counter(std::string name, Shape shape, double step) {
  const Tensor value =
      tensor(std::move(name), std::move(shape), initializers::constant(0), Decay::no, step);
  parameters_.back().learning = Learning::sign;
  return value;
}

const Parameter& ParameterStore::again(const std::string& name, const Shape& shape) {
  const auto found = names_.find(name);
  require(found != names_.end(), name, "is to be shared, but nobody has registered it");
  const Parameter& parameter = parameters_[found->second];
  require(parameter.shape == shape, name, "is {}, and shared as {}", parameter.shape, shape);
  if (parameter.matrix.defined()) {
    matrix_size_ += parameter.share * static_cast<double>(parameter.size());
  }
  return parameter;
}

void ParameterStore::assign(size_t index, Stored stored) {
  Parameter& parameter = parameters_.at(index);
  if (!parameter.value.defined()) {
    parameter.matrix.assign(std::move(stored));
    return;
  }
  const Encoding& in = *stored.encoding;
  require(parameter.size() % in.block == 0 &&
              stored.bytes.size() == static_cast<size_t>(in.bytes(parameter.size())),
          parameter.name, "{} bytes for {} in {}", stored.bytes.size(), parameter.shape, in.name);
  in.decode(stored.bytes.data(), parameter.size(), parameter.value.data());
  parameter.value.bump_version();
  if (purpose_ == Purpose::inference) parameter.encoding = &in;
  if (stored.file != nullptr) stored.file->release(stored.bytes);
}

void ParameterStore::freeze() {
  purpose_ = Purpose::inference;
  for (Parameter& parameter : parameters_) {
    if (!parameter.value.defined()) continue;
    parameter.value.clear_grad();
    parameter.value.set_requires_grad(false);
    if (!parameter.matrix.defined()) continue;
    parameter.matrix.freeze();
    parameter.value = Tensor();
  }
}

namespace {

std::string joined(const std::string& prefix, std::string_view name) {
  return prefix.empty() ? std::string(name) : prefix + "." + std::string(name);
}

}  // namespace

ParameterScope ParameterScope::child(std::string_view name) const {
  ParameterScope inner(*store_, path(name));
  if (owner_) inner.owner_ = joined(*owner_, name);
  return inner;
}

ParameterScope ParameterScope::sharing(const ParameterScope& owner) const {
  ParameterScope scope = *this;
  scope.owner_ = owner.prefix_;
  return scope;
}

Tensor ParameterScope::common(std::string_view name, Shape shape,
                              const Initializer& initializer) const {
  const std::string root(name);
  if (store_->contains(root)) {
    for (const Parameter& other : store_->all()) {
      require(other.name != root || other.shape == shape, path(name),
              "is one parameter of the whole model, {} for an earlier layer and {} here: layers of "
              "this kind need equal widths",
              other.shape, shape);
    }
    return store_->again(root, shape).value;
  }
  return store_->tensor(root, std::move(shape), initializer, Decay::no);
}

std::string ParameterScope::path(std::string_view name) const { return joined(prefix_, name); }

const Parameter& ParameterScope::shared(std::string_view name, const Shape& shape) const {
  return store_->again(joined(*owner_, name), shape);
}

}  // namespace pronghorn
