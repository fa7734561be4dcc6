// The neural memory of Titans (Behrouz, Zhong and Mirrokni, arXiv 2501.00663, section 3.1): the
// part that its layers share. Keys, values and queries through short convolutions and SiLU, unit
// keys and queries, gates, and a network per head that learns from them at test time.
#pragma once

#include <string>
#include <vector>

#include "layers/layer.h"
#include "layers/learning_memory.h"
#include "layers/toolbox.h"
#include "ops/fast_weight_memory.h"

namespace pronghorn {

// The settings of a neural memory; what they mean is in docs/architectures/titans.md.
struct NeuralMemoryConfig {
  HeadsConfig heads;
  int64_t depth = 0, expansion = 0, conv_kernel = 0, mini_batch = 0;
  bool momentum = false, forgetting = false;
  std::string rule;
  bool online_errors = false, average_momentum = false;
  std::string forget_to;
  double hidden_learning_rate = 0, error_limit = 0;
  double max_learning_rate = 0, start_learning_rate = 0;

  void fields(ConfigFields& f, const LayerContext& context);
  // Whether the rule or a part of it is the online one.
  bool online() const { return rule == "online" || online_errors; }
};

class NeuralMemory {
 public:
  // Registers the journals of its convolutions; that of the memory is the caller's, who knows in
  // which order it learns and is asked.
  NeuralMemory(const NeuralMemoryConfig& config, const LayerContext& context,
               const ParameterScope& scope, const StateScope& states);

  // What the memory kept in `slot` answers each row's query with, once it has learned the row:
  // [rows, heads head_dim].
  Tensor forward(const LayerInput& input, const Tensor& x, JournalSlot slot) const;

  // The first half of forward(), what learns: query, key, value and gates of each row.
  FastWeightMemoryInputs features(const LayerInput& input, const Tensor& x) const;
  // Unit queries of another projection of the memory's width.
  Tensor unit(const Context& context, const Tensor& projected) const;
  const FastWeightMemoryOptions& options() const { return options_; }

  int64_t head_dim() const { return options_.head_dim; }
  int64_t width() const { return options_.heads * options_.head_dim; }

 private:
  struct Gate {
    Weight weight;
    Tensor bias;
  };
  Tensor gate(const Context& context, const Tensor& x, const Gate& gate) const;

  TitansRule rule_;
  FastWeightMemoryOptions options_;
  int64_t conv_kernel_ = 0;
  bool average_momentum_ = false;
  float max_learning_rate_ = 0;
  JournalSlot q_rows_, k_rows_, v_rows_;  // of the convolutions
  Weight q_proj_, k_proj_, v_proj_;
  Tensor q_conv_, k_conv_, v_conv_;
  Gate theta_, eta_, alpha_;
  std::vector<Tensor> weights_;
};

// How attention's answer y and a memory's answer m are made one, where the memory is a gate (MAG)
// and where it is context (MAC): o = W_o ((norm(y) + b_y) silu(norm(m) + b_m)), norms with weights.
// The paper has no biases b_y and b_m.
class GatedAnswer {
 public:
  // Parameters attention_norm.weight, memory_norm.weight, o_proj.weight and, with `bias`,
  // attention_norm.bias and memory_norm.bias; y and m are [rows, width].
  GatedAnswer(int64_t width, bool bias, const LayerContext& context, const ParameterScope& scope);

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

// answer_bias, whose default is that of the memory's rule.
void read_answer_bias(ConfigFields& f, const NeuralMemoryConfig& memory, bool& answer_bias);

}  // namespace pronghorn
