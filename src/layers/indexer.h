// The indexer of a layer of DeepSeek sparse attention (arXiv 2512.02556, section 2.1): its
// settings, parameters, journal and loss. Parameter names are those of the published checkpoints.
#pragma once

#include <cstdint>

#include "layers/fields.h"
#include "layers/layer.h"
#include "layers/rope_config.h"
#include "ops/indexer.h"

namespace pronghorn {

struct IndexerConfig {
  int64_t heads = 0, head_dim = 0, top = 0, warmup = 0;
  bool interleaved = false;
  double loss = 0;

  // rope: of the layer, whose angles its first channels have too; null: no positions.
  void fields(ConfigFields& f, const RopeConfig* rope);
};

class Indexer {
 public:
  Indexer() = default;
  // query_size: width of what its queries come from.
  Indexer(const IndexerConfig& config, int64_t query_size, const RopeConfig* rope,
          const LayerContext& context, const ParameterScope& scope, const StateScope& states);

  // In a training step of the warm-up attention sees all keys.
  bool chooses(const Context& context) const;

  // Its view of a batch: of x [rows, hidden_size] and of what its queries come from. The layer
  // learns nothing from it.
  IndexerInputs project(const LayerInput& input, const Tensor& x, const Tensor& from) const;
  BlockLists choose(const LayerInput& input, const IndexerInputs& inputs) const {
    return choose_keys(inputs, options_, input.batch, keys_);
  }
  // Asks the trainer to teach it, if there is one.
  void learn(const LayerInput& input, const IndexerInputs& inputs,
             const IndexerTeacher& teacher) const;

  const IndexerOptions& options() const { return options_; }
  // Scores of all keys.
  double sequence_cost(double context) const {
    return 2 * context * static_cast<double>(options_.heads * (options_.head_dim + 1));
  }

 private:
  IndexerOptions options_;
  int64_t warmup_ = 0;
  double loss_ = 0;
  SharedAngles angles_;
  JournalSlot keys_;
  Weight wq_b_, wk_, weights_proj_;
  Tensor k_norm_, k_norm_bias_;
};

}  // namespace pronghorn
