// The neural memory of Titans (Behrouz, Zhong and Mirrokni, arXiv 2501.00663, section 3.1): the
// part that its layers share. Keys, values and queries through short convolutions and SiLU, unit
// keys and queries, gates, and a network a head that learns from them at test time.
#pragma once

#include <vector>

#include "layers/layer.h"
#include "ops/fast_weight_memory.h"

namespace pronghorn {

class NeuralMemory {
 public:
  // config: as completed by complete_neural_memory().
  NeuralMemory(const nlohmann::json& config, const LayerContext& context,
               const ParameterScope& scope);

  // What the memory answers each row's query with, once it has learned the row:
  // [rows, heads head_dim].
  Tensor forward(const Context& context, const Tensor& x, const CheckedBatch& batch,
                 JournalSlot slot) const;

  // The two halves of forward(). What learns: query, key, value and gates of each row; moves `slot`
  // on behind the journals of its convolutions.
  FastWeightMemoryInputs features(const Context& context, const Tensor& x,
                                  const CheckedBatch& batch, JournalSlot& slot) const;
  // Unit queries of another projection of the memory's width.
  Tensor unit(const Context& context, const Tensor& projected) const;
  const FastWeightMemoryOptions& options() const { return options_; }

  std::vector<JournalShape> journals() const;
  LearningMemory memory(JournalSlot slot) const;
  TokenCost cost() const;
  int64_t head_dim() const { return options_.head_dim; }
  int64_t width() const { return options_.heads * options_.head_dim; }

 private:
  struct Gate {
    Weight weight;
    Tensor bias;
  };
  Tensor gate(const Context& context, const Tensor& x, const Gate& gate) const;

  FastWeightMemoryOptions options_;
  int64_t conv_kernel_ = 0;
  float max_learning_rate_ = 0;
  Weight q_proj_, k_proj_, v_proj_;
  Tensor q_conv_, k_conv_, v_conv_;
  Gate theta_, eta_, alpha_;
  std::vector<Tensor> weights_;
};

// How attention's answer y and a memory's answer m are made one, where the memory is a gate (MAG)
// and where it is context (MAC): o = W_o ((norm(y) + b_y) silu(norm(m) + b_m)), norms with weights.
class GatedAnswer {
 public:
  // Parameters attention_norm.{weight,bias}, memory_norm.{weight,bias}, o_proj.weight; y and m are
  // [rows, width].
  GatedAnswer(int64_t width, const LayerContext& context, const ParameterScope& scope);

  // norm(y), with which MAC asks its memory.
  Tensor normalized(const Context& context, const Tensor& y) const;
  // o of norm(y) and m: [rows, hidden_size].
  Tensor join(const Context& context, const Tensor& normalized, const Tensor& answer) const;
  int64_t hidden_size() const { return o_proj_.out(); }
  int64_t width() const { return o_proj_.in(); }

 private:
  float norm_epsilon_;
  Tensor attention_norm_, attention_bias_, memory_norm_, memory_bias_;
  Weight o_proj_;
};

// Reads the keys of a memory (heads, head_dim, depth, expansion, conv_kernel, momentum, forgetting,
// forget_to, mini_batch, online_errors, max_learning_rate, start_learning_rate,
// hidden_learning_rate, error_limit) into `config`.
void complete_neural_memory(ConfigReader& reader, const LayerContext& context,
                            nlohmann::json& config);

// Operations of one token in a memory of these sizes, apart from projections.
double fast_weight_memory_cost(const FastWeightMemoryOptions& options);

}  // namespace pronghorn
