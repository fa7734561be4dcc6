// Parameters: the named trainable tensors of a model, created by its layers.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/random.h"
#include "tensor/encoding.h"
#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace pronghorn {

// What a model is made for. Inference keeps matrices as they are stored and has no gradients.
enum class Purpose : bool { training, inference };

// What a step of training does to a parameter.
enum class Learning {
  loss,     // descends the gradient of the loss
  average,  // follows an average: its gradient is the sum, over the sequences of a step, of how far
            // it is above what each would have it be
  sign      // moves by learning_rate_scale against the sign of each element of its gradient
};

struct Parameter {
  std::string name;  // dotted path, for example "layers.3.mixer.in_proj.weight"
  Shape shape;
  // The numbers in f32, to be trained or, in inference, of what is not a matrix. Undefined for a
  // matrix in inference.
  Tensor value;
  Weight matrix;  // undefined for what is not a matrix
  // What a read-only `value` was stored in.
  const Encoding* encoding = &encodings::f32;
  bool decay = true;  // takes part in weight decay
  double learning_rate_scale = 1;
  Learning learning = Learning::loss;
  // Of a matrix: the share of tokens that are multiplied with it, on average.
  double share = 1;

  int64_t size() const;
  // The numbers as they are stored or, where only a packed copy is left, as they were. Throws Error
  // if there are none.
  Stored stored() const;
};

// Draws the value of element `index` of a parameter.
using Initializer = std::function<float(Random& random, int64_t index)>;

namespace initializers {
Initializer constant(float value);
Initializer normal(double deviation);
Initializer uniform(double low, double high);
// bias such that softplus(bias) is log-uniform in [minimum, maximum], at least `floor`: the step
// sizes of Mamba (arXiv 2312.00752, section 3.6).
Initializer inverse_softplus_log_uniform(double minimum, double maximum, double floor);
}  // namespace initializers

enum class Decay : bool { no, yes };

// What layers register their parameters with. Each parameter's values are drawn from its own stream
// of random numbers, named after it, so they do not depend on the order of creation.
class ParameterStore {
 public:
  // initialize: false leaves the values undefined, for a model about to be loaded.
  ParameterStore(uint64_t seed, bool initialize, Purpose purpose = Purpose::training)
      : seed_(seed), initialize_(initialize), purpose_(purpose) {}

  // In training all require gradients; in inference a matrix has no numbers until assign(). Throws
  // Error if the name is taken, or before allocating anything if all parameters together would not
  // fit into this machine's memory.
  Tensor tensor(std::string name, Shape shape, const Initializer& initializer, Decay decay,
                double learning_rate_scale = 1);
  // share: see Parameter.
  Weight matrix(std::string name, int64_t out, int64_t in, const Initializer& initializer,
                double share = 1);
  // A parameter that is averaged, from 0 on.
  Tensor average(std::string name, Shape shape);
  // One that moves by `step` against the sign of its gradient, from 0 on.
  Tensor counter(std::string name, Shape shape, double step);

  // One that is registered, for one more place that uses it: a matrix counts there as well. Throws
  // Error if there is none of this name or its shape is another.
  const Parameter& again(const std::string& name, const Shape& shape);

  bool contains(const std::string& name) const { return names_.count(name) > 0; }

  // Gives the parameter at `index` of all() its numbers. Throws Error if they are too few or too
  // many.
  void assign(size_t index, Stored stored);

  // Ends training: no gradients from here on, and matrices are read only.
  void freeze();

  const std::vector<Parameter>& all() const { return parameters_; }
  // Numbers of matrices that a token is multiplied with: it costs twice that.
  double matrix_size() const { return matrix_size_; }
  // Bytes that all need at least: 4 per number, half a byte where the encoding is not known yet.
  int64_t bytes_needed() const { return bytes_needed_; }

  // Throws what tensor() throws if that many bytes are more than this machine's memory.
  static void require_memory(int64_t bytes);

 private:
  Parameter& add(std::string name, Shape shape, bool allocate);
  void initialize(const Parameter& parameter, const Initializer& initializer);

  uint64_t seed_;
  bool initialize_;
  Purpose purpose_;
  int64_t bytes_needed_ = 0;
  double matrix_size_ = 0;
  std::vector<Parameter> parameters_;
  std::unordered_map<std::string, size_t> names_;  // places in parameters_
};

// A store and the path under which a layer registers; or the path of another layer, the parameters
// of which it is given in place of its own.
class ParameterScope {
 public:
  ParameterScope(ParameterStore& store, std::string prefix)
      : store_(&store), prefix_(std::move(prefix)) {}

  const ParameterStore& store() const { return *store_; }
  ParameterScope child(std::string_view name) const;
  // This scope with the parameters that `owner` has registered, but for what goes to own().
  ParameterScope sharing(const ParameterScope& owner) const;
  ParameterScope own() const { return {*store_, prefix_}; }
  Tensor tensor(std::string_view name, Shape shape, const Initializer& initializer,
                Decay decay = Decay::no, double learning_rate_scale = 1) const {
    if (owner_) return shared(name, shape).value;
    return store_->tensor(path(name), std::move(shape), initializer, decay, learning_rate_scale);
  }
  Weight matrix(std::string_view name, int64_t out, int64_t in, const Initializer& initializer,
                double share = 1) const {
    if (owner_) return shared(name, {out, in}).matrix;
    return store_->matrix(path(name), out, in, initializer, share);
  }
  // One of the whole model's, under `name` alone: made by the first layer that asks for it and
  // shared with those after it. Throws Error if it is there with another shape.
  Tensor common(std::string_view name, Shape shape, const Initializer& initializer) const;
  Tensor average(std::string_view name, Shape shape) const {
    if (owner_) return shared(name, shape).value;
    return store_->average(path(name), std::move(shape));
  }
  Tensor counter(std::string_view name, Shape shape, double step) const {
    if (owner_) return shared(name, shape).value;
    return store_->counter(path(name), std::move(shape), step);
  }

 private:
  std::string path(std::string_view name) const;
  const Parameter& shared(std::string_view name, const Shape& shape) const;

  ParameterStore* store_;
  std::string prefix_;
  std::optional<std::string> owner_;  // the path of the layer whose parameters these are
};

}  // namespace pronghorn
