// What the families share whose layers are attention and a feed-forward: Llama, and those that add
// to it or change a part.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "model/families/mapping.h"
#include "model/families/rope.h"
#include "model/tensor_rules.h"

namespace pronghorn {

// What the reference takes for keys that a configuration does not have.
struct DecoderDefaults {
  int64_t kv_heads = 0;  // 0: as many as heads
  int64_t head_dim = 0;  // 0: heads share hidden_size
  int64_t size = 0;      // of a feed-forward; 0: the key must be there
  double epsilon = 1e-6;
  bool tied = false;
  std::string activation_key = "hidden_act", activation = "silu";
  RopeDefaults rope = {};
};

// A configuration as parts of ours: what its layers have in common, for a family to change before
// finish().
struct Decoder {
  nlohmann::json settings;      // of the model
  nlohmann::json mixer, block;  // attention; what a block has besides mixer and ffn
  int64_t size = 0;             // of a feed-forward
  std::string activation;       // as "glu" has it
  std::string bits;             // likewise; empty: "whole"
  bool gated = true, mlp_bias = false, ffn_norm = false;
  int64_t layers = 0;
  // The experts of a layer, which are in place of its feed-forward; null or an empty function:
  // none.
  std::function<nlohmann::json(int64_t layer)> experts;
  int64_t predictors = 0;  // heads for multi-token prediction

  // The model: each layer with its own changes to the mixer. Throws Error for keys that nothing
  // has read.
  ModelConfig finish(
      const ConfigReader& reader,
      const std::function<void(int64_t layer, nlohmann::json& mixer)>& change = {}) const;

  // The same for changes to anything in a layer: {"mixer": .., "ffn": .., ..}.
  ModelConfig finish_layers(
      const ConfigReader& reader,
      const std::function<void(int64_t layer, nlohmann::json& block)>& change) const;
};

int64_t read_layer_count(ConfigReader& reader);

// The sizes, the norm, the activation and the rotary positions.
Decoder read_decoder(ConfigReader& reader, const DecoderDefaults& defaults);

// attention_bias: on all four projections; mlp_bias.
void read_attention_bias(ConfigReader& reader, Decoder& decoder, bool fallback = false);
void read_mlp_bias(ConfigReader& reader, Decoder& decoder);

// For families without either: the keys may be there, and false.
void read_no_bias(ConfigReader& reader);

// One window for all layers, of `key`; absent: `fallback`, null: none.
void read_window(ConfigReader& reader, Decoder& decoder, int64_t fallback);

// A model whose layers are attention and a feed-forward, or a mixture of them; empty if it is of
// another kind.
std::vector<const BlockConfig*> decoder_layers(const ModelConfig& config);

// Whether a decoder may have this feed-forward.
bool is_decoder_ffn(const nlohmann::json& ffn);

// The keys that the families share, for a model that has decoder_layers(). What they do not say
// is for expresses() to find. The sizes are the first layer's.
nlohmann::json write_decoder(const ModelConfig& config, const std::string& model_type,
                             const std::string& architecture,
                             const std::string& activation_key = "hidden_act");

// The same of some of a model's layers, all attention and a feed-forward, and at least one; what
// the keys say of a layer is that of the first.
nlohmann::json write_decoder(const ModelConfig& config,
                             const std::vector<const BlockConfig*>& layers,
                             const std::string& model_type, const std::string& architecture,
                             const std::string& activation_key = "hidden_act");

TensorRules decoder_tensors(const ModelConfig& config);

// An activation by its published name, as ours, and the other way round.
std::string read_activation(ConfigReader& reader, const std::string& key,
                            const std::string& fallback);
std::string write_activation(const std::string& ours);

// A gated feed-forward, or one of two layers, in the plainest type that has it.
nlohmann::json gated_ffn(int64_t size, const std::string& activation, bool bias, bool norm);
nlohmann::json plain_ffn(int64_t size, const std::string& activation, bool bias);
// What either is made of, whatever its type.
std::string activation_of(const nlohmann::json& ffn);
bool has_bias(const nlohmann::json& ffn);

// A key's value for each layer: list[layer] if the configuration has the list, else
// fallback(layer). what: "layer_types".
std::vector<bool> read_sliding_layers(ConfigReader& reader, int64_t layers,
                                      const std::function<bool(int64_t)>& fallback);

// The windows of Qwen's layers: use_sliding_window, sliding_window, max_window_layers (layers from
// there on have the window) and layer_types, which newer files spell out.
std::vector<int64_t> read_layer_windows(ConfigReader& reader);

std::vector<int64_t> layer_windows(const ModelConfig& config);
// Their keys, if all windows are the same.
nlohmann::json write_layer_windows(const std::vector<int64_t>& windows);
// layer_types alone.
nlohmann::json write_layer_types(const std::vector<int64_t>& windows);

}  // namespace pronghorn
