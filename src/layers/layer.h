// The seams of a block: Mixer (carries information along a sequence), FeedForward (works on each
// token alone), and the norm in front of them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "formats/json.h"
#include "layers/parameters.h"
#include "ops/fast_weight_memory.h"
#include "tensor/batch.h"
#include "tensor/tape.h"

namespace pronghorn {

// Work of one token in a layer, in floating-point operations (a multiply-add counts as two).
struct TokenCost {
  double matmul = 0;    // products with weights
  double sequence = 0;  // the sequence operator itself, at a given context
};

// A network in a layer that learns while a sequence is read, and the journal that it is kept in.
struct LearningMemory {
  JournalSlot slot;
  FastWeightMemoryOptions options;
};

// A sequence mixer, written once: the same forward trains, takes prompts, decodes, batches and
// verifies, because the operators it is made of do.
class Mixer {
 public:
  virtual ~Mixer() = default;

  // x [rows, hidden_size], already normalised; returns the same shape. slot: where this mixer's
  // journals begin.
  virtual Tensor forward(const Context& context, const Tensor& x, const CheckedBatch& batch,
                         JournalSlot slot) const = 0;

  // What it keeps of a sequence, in slot order.
  virtual std::vector<JournalShape> journals() const = 0;

  // Its memory that learns at test time, if it has one; slot as in forward().
  virtual std::optional<LearningMemory> memory(JournalSlot) const { return {}; }

  // Forward work of one token whose context is `context` tokens long.
  virtual TokenCost cost(double context) const = 0;
};

class FeedForward {
 public:
  virtual ~FeedForward() = default;
  virtual Tensor forward(const Context& context, const Tensor& x) const = 0;
  virtual TokenCost cost() const = 0;
};

// The norm before a mixer or feed-forward, fused with the residual addition in front of it.
class Norm {
 public:
  enum class Kind { rms_norm, layer_norm };

  Norm() = default;
  Norm(const ParameterScope& scope, Kind kind, int64_t width, float epsilon, bool bias);

  Tensor forward(const Context& context, const Tensor& x) const;
  // {x + delta, norm(x + delta)}
  std::pair<Tensor, Tensor> add_forward(const Context& context, const Tensor& x,
                                        const Tensor& delta) const;

 private:
  Kind kind_ = Kind::rms_norm;
  float epsilon_ = 1e-5f;
  Tensor weight_, bias_;
};

// What a layer may need to know of its surroundings when it is built.
struct LayerContext {
  int64_t hidden_size = 0;
  double initializer_range = 0.02;
  // Factor on the initial deviation of projections back into the residual stream, 1/sqrt(number of
  // residual additions), so that the stream's variance does not grow with depth (GPT-2).
  double residual_scale = 1;
  float norm_epsilon = 1e-5f;
};

// Each mixer and feed-forward: its configuration from JSON (unknown keys are errors) and back (with
// every default spelled out), and its construction. Registered by type name in registry.cpp.
struct MixerType {
  std::string name;         // "mamba2"
  std::string description;  // for `pronghorn list`
  std::string paper;        // "arXiv 2405.21060"
  // Checks and completes a configuration: returns it with all defaults.
  nlohmann::json (*complete)(ConfigReader reader, const LayerContext& context);
  // config: as returned by complete().
  std::unique_ptr<Mixer> (*create)(const nlohmann::json& config, const LayerContext& context,
                                   const ParameterScope& scope);
};

struct FeedForwardType {
  std::string name;
  nlohmann::json (*complete)(ConfigReader reader, const LayerContext& context);
  std::unique_ptr<FeedForward> (*create)(const nlohmann::json& config, const LayerContext& context,
                                         const ParameterScope& scope);
};

const std::vector<MixerType>& mixer_types();
const std::vector<FeedForwardType>& feed_forward_types();

// By name; throws Error naming `where` and the types there are.
const MixerType& find_mixer_type(std::string_view name, std::string_view where);
const FeedForwardType& find_feed_forward_type(std::string_view name, std::string_view where);

}  // namespace pronghorn
