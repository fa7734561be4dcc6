// The seams of a block: Mixer (carries information along a sequence), FeedForward (works on each
// token), and the norm in front of them.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "layers/carry.h"
#include "layers/parameters.h"
#include "layers/states.h"
#include "tensor/batch.h"
#include "tensor/tape.h"

namespace pronghorn {

class ConfigReader;
struct FieldDescription;

// Work of one token in a layer, in floating-point operations (a multiply-add counts as two).
struct TokenCost {
  double matmul = 0;    // products with weights
  double sequence = 0;  // the sequence operator itself, at a given context
};

// What a layer is given in a forward besides its input.
struct LayerInput {
  const Context& context;
  const CheckedBatch& batch;  // its segments lead to the states of the sequences
  Carry& carry;
};

// A sequence mixer, written once: the same forward trains, takes prompts, decodes, batches and
// verifies, because the operators it is made of do.
class Mixer {
 public:
  virtual ~Mixer() = default;

  // x [rows, hidden_size], already normalised; returns the same shape.
  virtual Tensor forward(const LayerInput& input, const Tensor& x) const = 0;

  // Forward work of one token whose context is `context` tokens long, apart from products with
  // registered matrices: floating-point operations of the sequence operator.
  virtual double sequence_cost(double context) const = 0;

  // Positions that it can do with are below it.
  virtual int64_t context_limit() const { return std::numeric_limits<int64_t>::max(); }
};

// What follows a mixer in a block. It may keep a state, as a mixer does.
class FeedForward {
 public:
  virtual ~FeedForward() = default;

  // As Mixer::forward().
  virtual Tensor forward(const LayerInput& input, const Tensor& x) const = 0;

  // As Mixer::sequence_cost().
  virtual double sequence_cost(double) const { return 0; }
};

// The norm before a mixer or feed-forward, fused with the residual addition in front of it, or
// after one.
class Norm {
 public:
  enum class Kind { rms_norm, layer_norm, bias_norm };

  // How norms are made.
  struct Style {
    Kind kind = Kind::rms_norm;
    float epsilon = 1e-5f;
    bool bias = false;  // layer_norm only
  };

  Norm() = default;
  // factor: on what it returns.
  Norm(const ParameterScope& scope, const Style& style, int64_t width, float factor = 1);

  bool defined() const { return weight_.defined() || log_scale_.defined(); }
  Tensor forward(const Context& context, const Tensor& x) const;
  // {x + delta, norm(x + delta)}
  std::pair<Tensor, Tensor> add_forward(const Context& context, const Tensor& x,
                                        const Tensor& delta) const;

 private:
  Tensor times_factor(const Context& context, Tensor normalised) const;

  Style style_;
  float factor_ = 1;
  Tensor weight_, bias_;
  Tensor log_scale_;  // of bias_norm, in place of the weight
};

// The orders in which a layer that sees earlier rows only goes over the rows of an image, one after
// another, with the sum of what they give (layers/scans.h). none: the model is of texts, and rows
// come one after another.
enum class Scan : uint8_t {
  none,
  raster,  // as they are: along the rows of the image, from its first
  both,    // and from its last
  cross    // and along the columns, both ways
};

// What a layer may need to know of its surroundings when it is built.
struct LayerContext {
  int64_t hidden_size = 0;
  int64_t input_size = 0;  // width of what a mixer is given; 0: hidden_size
  double initializer_range = 0.02;
  // Factor on the initial deviation of projections back into the residual stream, 1/sqrt(number of
  // residual additions), so that the stream's variance does not grow with depth (GPT-2).
  double residual_scale = 1;
  float norm_epsilon = 1e-5f;
  // Index of its block in the model; in a head for multi-token prediction: depth.
  int64_t layer = 0;
  int64_t depth = 1;  // blocks of the model
  // Rows before the first token of every sequence, which windows keep in sight.
  int64_t prefix = 0;
  Scan scan = Scan::none;

  int64_t input_width() const { return input_size > 0 ? input_size : hidden_size; }
};

// A kind of mixer or feed-forward: its configuration from JSON (unknown keys are errors) and back
// (with every default spelled out), and its construction. Registered by type name in registry.cpp;
// layers.h makes one from a class.
template <typename Layer>
struct LayerType {
  std::string name;         // "mamba2"
  std::string description;  // for `pronghorn list`
  std::string paper;        // "arXiv 2405.21060"
  // The smallest configuration that a hidden_size of 24 or 512 allows: JSON. Tests and
  // `pronghorn list` build it.
  std::string example;
  // Checks and completes a configuration: returns it with all defaults.
  nlohmann::json (*complete)(ConfigReader reader, const LayerContext& context) = nullptr;
  // config: as returned by complete().
  std::unique_ptr<Layer> (*create)(const nlohmann::json& config, const LayerContext& context,
                                   const ParameterScope& scope, const StateScope& states) = nullptr;
  // The settings of a configuration, which may be incomplete.
  std::vector<FieldDescription> (*describe)(ConfigReader reader,
                                            const LayerContext& context) = nullptr;
  std::string kind = "other";  // "delta rule": the mixers that it is listed with
};
using MixerType = LayerType<Mixer>;
using FeedForwardType = LayerType<FeedForward>;

const std::vector<MixerType>& mixer_types();
const std::vector<FeedForwardType>& feed_forward_types();

// Adds a type that is not of this library, before a configuration that names it is read. Not
// thread-safe. Throws Error if the name is taken.
void register_mixer_type(MixerType type);
void register_feed_forward_type(FeedForwardType type);

// By name; throws Error naming `where` and the types there are.
const MixerType& find_mixer_type(std::string_view name, std::string_view where);
const FeedForwardType& find_feed_forward_type(std::string_view name, std::string_view where);

// The settings of a type, as its example has them.
std::vector<FieldDescription> describe(const MixerType& type);
std::vector<FieldDescription> describe(const FeedForwardType& type);

}  // namespace pronghorn
