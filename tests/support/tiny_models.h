// Tiny models: of each kind of configuration, for tests of laws that hold for all of them, and some
// that are quick to train.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "model/config.h"
#include "support/test_layers.h"

namespace pronghorn::testing_support {

// `configs`, and one of the example of each registered type that none of them uses.
inline std::vector<std::pair<std::string, std::string>> with_examples(
    std::vector<std::pair<std::string, std::string>> configs) {
  std::string all;
  for (const auto& [name, body] : configs) all += body;
  const auto add = [&](const auto& types, const std::string& before, const std::string& after) {
    for (const auto& type : types) {
      if (all.find('"' + type.name + '"') != std::string::npos) continue;
      configs.emplace_back(type.name,
                           R"("pattern": "2b", "blocks": {"b": {)" + before + type.example + after);
    }
  };
  add(mixer_types(), R"("mixer": )", "}}");
  add(feed_forward_types(), R"("mixer": {"type": "attention", "heads": 2}, "ffn": )", "}}");
  return configs;
}

// Attention whose heads are whole blocks of numbers, for caches that hold these.
inline const std::vector<std::pair<std::string, std::string>>& whole_block_configs() {
  static const std::string ffn = R"("ffn": {"type": "swiglu", "size": 40})";
  static const std::vector<std::pair<std::string, std::string>> all = {
      {"whole_blocks", R"("pattern": "3a", "blocks": {"a": {"mixer": {"type": "attention",
                          "heads": 4, "kv_heads": 2, "head_dim": 32, "rope": {}}, )" +
                           ffn + "}}"},
      {"mla_whole_blocks", R"("pattern": "2a", "blocks": {"a": {"mixer": {"type": "mla",
                              "heads": 2, "latent": 32, "head_dim": 8, "rope_dim": 32,
                              "value_dim": 8, "rope": {}}, )" +
                               ffn + "}}"},
      {"dsa_whole_blocks", R"("pattern": "2a", "blocks": {"a": {"mixer": {"type": "dsa",
                              "heads": 2, "latent": 32, "head_dim": 8, "rope_dim": 32,
                              "value_dim": 8, "top": 20, "rope": {}}, )" +
                               ffn + "}}"}};
  return all;
}

// 24 wide and 61 tokens: multiples of no vector length, so that the remainders of kernels are used.
inline const std::vector<std::pair<std::string, std::string>>& model_configs() {
  register_test_layers();
  static const std::string attention =
      R"({"type": "attention", "heads": 4, "kv_heads": 2, "head_dim": 6, "rope": {}})";
  static const std::string mamba2 = R"({"type": "mamba2", "heads": 4, "state": 10, "groups": 2})";
  static const std::string ffn = R"("ffn": {"type": "swiglu", "size": 40})";
  static const std::string deltanet =
      R"({"type": "gated_deltanet", "heads": 2, "value_heads": 4, "head_dim": 8,
          "value_head_dim": 6})";
  static const std::string side =
      R"("side": {"shared": 1, "mixer": {"type": "attention", "heads": 3, "head_dim": 10,
          "scale": 0.1, "adapter_rank": 3, "rope": {}}, "ffn": {"type": "glu", "size": 30,
          "activation": "gelu", "adapter_rank": 4, "output_scale": 0.1}})";
  static const std::vector<std::pair<std::string, std::string>> all = with_examples({
      {"transformer", R"("pattern": "2a", "tie_embeddings": false, "blocks": {"a": {"mixer": )" +
                          attention + ", " + ffn + "}}"},
      {"window", R"("pattern": "2a", "blocks": {"a": {"mixer": {"type": "attention", "heads": 3,
                     "window": 20, "rope": {"rotary_dim": 4, "theta": 100}}, )" +
                     ffn + "}}"},
      {"mamba", R"("pattern": "2m", "blocks": {"m": {"mixer": {"type": "mamba", "state": 5,
                    "time_step_rank": 3, "bias": true}}})"},
      {"mamba2", R"("pattern": "2m", "blocks": {"m": {"mixer": )" + mamba2 + "}}"},
      {"gated_deltanet",
       R"("pattern": "2g", "blocks": {"g": {"mixer": )" + deltanet + ", " + ffn + "}}"},
      {"hybrid", R"("pattern": "3m a", "blocks": {"m": {"mixer": )" + mamba2 +
                     R"(}, "a": {"mixer": )" + attention + ", " + ffn + "}}"},
      {"side_by_side", R"("pattern": "2b", "blocks": {"b": {"mixers": [)" + attention + ", " +
                           mamba2 + ", " + deltanet + "], " + ffn + "}}"},
      {"ttt_linear", R"("pattern": "2t", "blocks": {"t": {"mixer": {"type": "ttt_linear",
                        "heads": 2, "head_dim": 8, "base_learning_rate": 0.5}, )" +
                         ffn + "}}"},
      {"ttt_mlp", R"("pattern": "2t", "blocks": {"t": {"mixer": {"type": "ttt_mlp", "heads": 3,
                     "share_qk": false, "use_gate": false}, )" +
                      ffn + "}}"},
      {"titans_memory", R"("pattern": "2m", "blocks": {"m": {"mixer": {"type": "titans_memory",
                           "rule": "online", "heads": 2, "head_dim": 10, "expansion": 2}, )" +
                            ffn + "}}"},
      {"titans_mac",
       R"("pattern": "2m", "blocks": {"m": {"mixer": {"type": "titans_mac", "rule": "online", "heads": 2,
                        "head_dim": 8, "segment": 32, "persistent": 2, "expansion": 2}, )" +
           ffn + "}}"},
      {"titans_mag",
       R"("pattern": "2m", "blocks": {"m": {"mixer": {"type": "titans_mag", "rule": "online", "heads": 3,
                        "window": 20, "persistent": 3, "depth": 1}, )" +
           ffn + "}}"},
      {"titans_mal",
       R"("pattern": "2m", "blocks": {"m": {"mixer": {"type": "titans_mal", "rule": "online", "heads": 2,
                        "head_dim": 6, "window": 9, "persistent": 2, "conv_kernel": 0,
                        "momentum": false, "expansion": 3}, )" +
           ffn + "}}"},
      {"layer_norm_gelu",
       R"("pattern": "2a", "norm": {"type": "layer_norm", "bias": true},
          "blocks": {"a": {"mixer": {"type": "attention", "heads": 2, "bias": true,
          "qk_norm": true}, "ffn": {"type": "gelu", "size": 36, "bias": true,
          "approximate": "tanh"}}})"},
      // Attention's and blocks' published variants, each as some family has it.
      {"gemma",
       R"("pattern": "ba", "embedding_scale": 4.9, "logit_soft_cap": 3, "blocks": {
          "a": {"norms": "both", "mixer": {"type": "attention", "heads": 4, "kv_heads": 2,
          "head_dim": 6, "rope": {"theta": 1000, "scaling": {"type": "linear", "factor": 8}},
          "qk_norm": true, "scale": 0.3, "soft_cap": 2}, "ffn": {"type": "glu", "size": 40,
          "activation": "gelu_tanh"}},
          "b": {"norms": "both", "mixer": {"type": "attention", "heads": 4, "kv_heads": 2,
          "head_dim": 6, "window": 11, "rope": {"theta": 100}}, "ffn": {"type": "glu",
          "size": 40, "activation": "gelu", "bias": true}}})"},
      {"post_norms",
       R"("pattern": "2a", "blocks": {"a": {"norms": "after", "mixer": {"type": "attention",
          "heads": 4, "kv_heads": 2, "qk_norm": true, "qk_norm_over": "projection", "rope":
          {"interleaved": true, "scaling": {"type": "yarn", "factor": 4, "original_context":
          32}}}, "ffn": {"type": "swiglu", "size": 40}}})"},
      {"parallel",
       R"("pattern": "ab", "norm": {"type": "layer_norm", "bias": true}, "blocks": {
          "a": {"residual": "parallel", "mixer": {"type": "attention", "heads": 2, "bias": true,
          "output_bias": true, "rope": {"rotary_dim": 4, "scaling": {"type": "llama3", "factor":
          8, "original_context": 32}}}, "ffn": {"type": "gelu", "size": 36, "bias": true}},
          "b": {"residual": "shared", "residual_multiplier": 0.7, "mixer": {"type": "attention",
          "heads": 2, "gate": true, "sinks": true, "rope": {}}, "ffn": {"type": "mlp", "size":
          36, "activation": "silu"}}})"},
      {"learned_positions",
       R"("pattern": "2a", "learned_positions": 512, "norm": {"type": "layer_norm"},
          "logit_scale": 0.5, "blocks": {"a": {"residual_multiplier": 0.4, "mixer": {"type":
          "attention", "heads": 2, "scale": 0.2}, "ffn": {"type": "glu", "size": 36,
          "activation": "relu2", "norm": true, "bias": true}}})"},
      {"sub_norms",
       R"("pattern": "2a", "blocks": {"a": {"mixer": {"type": "attention", "heads": 2,
          "output_norm": true, "rope": {"scaling": {"type": "longrope", "factor": 4,
          "original_context": 512, "short_factors": [1, 1.2, 1.5, 2, 3, 4],
          "long_factors": [1, 2, 3, 5, 8, 13]}}}, "ffn": {"type": "mlp", "size": 40,
          "activation": "relu2", "norm": true}}})"},
      {"subsampled_attention", R"("pattern": "a(2a(a)a)a", "subsample": {"keep": [0.6, 0.5]},
          "blocks": {"a": {"mixer": )" +
                                   attention + ", " + ffn + "}}"},
      {"subsampled_mamba", R"("pattern": "m(m)m", "subsample": {"keep": 0.5}, "blocks": {"m":
          {"mixer": {"type": "mamba", "state": 5, "time_step_rank": 3}}})"},
      {"subsampled_hybrid",
       R"("pattern": "(g((m)a))g",
          "subsample": {"keep": 0.7, "score_norm": true, "score_bias": true},
          "blocks": {"g": {"mixer": )" +
           deltanet + R"(}, "m": {"mixer": )" + mamba2 + R"(}, "a": {"mixer": )" + attention +
           ", " + ffn + "}}"},
      // Rates: stacks one after another and within each other, around any mixer.
      {"zipformer_attention", R"("pattern": "a(a)(2a(a))a", "subsample": {"type": "zipformer",
          "rate": [2, 3, 2]}, "blocks": {"a": {"mixer": )" +
                                  attention + ", " + ffn + "}}"},
      {"zipformer_hybrid",
       R"("pattern": "((m)a)g", "subsample": {"type": "zipformer", "rate": [2, 4]},
          "blocks": {"g": {"mixer": )" +
           deltanet + R"(}, "m": {"mixer": )" + mamba2 + R"(}, "a": {"mixer": )" + attention +
           ", " + ffn + "}}"},
      // Widths of their own, narrower and wider than around them, with Zipformer's norm,
      // activations and bypasses.
      {"zipformer_widths",
       R"("pattern": "a(b)(c(d))a", "norm": {"type": "bias_norm"}, "subsample": {"type": "zipformer",
          "rate": [1, 2, 2], "width": [12, 30, 18]}, "blocks": {
          "a": {"mixer": )" +
           attention + R"(, "ffn": {"type": "mlp", "size": 40, "activation": "swoosh_l"},
            "bypass": {"steps": 5}},
          "b": {"mixer": {"type": "attention", "heads": 2, "rope": {}},
            "ffn": {"type": "glu", "size": 20, "activation": "swoosh_r"}, "bypass": {}},
          "c": {"mixer": )" +
           deltanet + R"(}, "d": {"mixer": {"type": "mamba", "state": 4, "time_step_rank": 2}}})"},
      // Mixtures of depths: the router itself or a classifier decides in inference; around any
      // mixer, nested, and with experts inside.
      {"depths_attention",
       R"("pattern": "2[a(a)]", "subsample": {"type": "mixture_of_depths", "keep": 0.25,
          "score_norm": true, "predictor": "router"}, "blocks": {"a": {"mixer": )" +
           attention + ", " + ffn + "}}"},
      {"depths_hybrid",
       R"("pattern": "m(m(a)m) ", "subsample": {"type": "mixture_of_depths", "keep": [0.5, 0.6],
          "predictor_size": 7}, "blocks": {"m": {"mixer": )" +
           mamba2 + R"(}, "a": {"mixer": )" + attention + ", " + ffn + "}}"},
      {"depths_moe",
       R"("pattern": "(e)m", "subsample": {"type": "mixture_of_depths", "keep": 0.5,
          "score_norm": true}, "blocks": {"m": {"mixer": )" +
           mamba2 + R"(}, "e": {"mixer": )" + attention +
           R"(, "ffn": {"type": "moe", "experts": 3, "top_k": 3, "size": 20}}})"},
      // The linear family's options.
      {"linear_family",
       R"("pattern": "kldh", "blocks": {"k": {"mixer": {"type": "kda", "heads": 2, "value_heads": 4,
          "head_dim": 6, "value_head_dim": 5, "conv_kernel": 0, "lower_bound": -5,
          "negative_eigenvalues": true, "gate_bias": false}},
          "l": {"mixer": {"type": "linear_attention", "heads": 3, "value_head_dim": 7,
          "feature_map": "exp", "normalizer": true, "output_norm": "identity"}},
          "d": {"mixer": {"type": "delta_net", "heads": 2, "head_dim": 10, "value_head_dim": 6,
          "conv_kernel": 0, "activation": "elu", "gate": true, "negative_eigenvalues": true}},
          "h": {"mixer": {"type": "hgrn2", "heads": 2, "head_dim": 7, "lower_bound": false}, )" +
           ffn + "}}"},
      {"linear_rows",
       R"("pattern": "hrm", "blocks": {"h": {"mixer": {"type": "hgrn", "width": 29,
          "lower_bound": false}}, "r": {"mixer": {"type": "rwkv6", "heads": 3, "head_dim": 5,
          "value_head_dim": 10, "mix_low_rank_dim": 3, "decay_low_rank_dim": 4},
          "ffn": {"type": "channel_mix", "size": 40, "receptance": true}},
          "m": {"mixer": {"type": "mamba3", "heads": 4, "head_dim": 7, "state": 10, "groups": 2,
          "bias": true, "output_norm": true, "rope_fraction": 1, "least_rate": 0.5}}})"},
      // Several inputs and outputs of a head.
      {"mamba3_mimo",
       R"("pattern": "mn", "blocks": {"m": {"mixer": {"type": "mamba3", "heads": 4, "head_dim": 7,
          "state": 10, "groups": 2, "rank": 3}}, "n": {"mixer": {"type": "mamba3", "heads": 2,
          "state": 6, "rank": 2, "output_norm": true, "bias": true}}})"},
      // MEGA as its paper has the blocks, and Megalodon.
      {"mega",
       R"("pattern": "2g", "blocks": {"g": {"norm_residual": {}, "mixer": {"type": "mega",
          "z_dim": 6, "value_dim": 29, "ndim": 3, "chunk_size": 16, "rope": {}}, )" +
           ffn + "}}"},
      {"megalodon",
       R"("pattern": "2g", "blocks": {"g": {"norms": "ffn", "residual": "two_hop",
          "mixer": {"type": "megalodon", "heads": 2, "z_dim": 12, "value_dim": 34, "cema_ndim": 3,
          "norm_num_groups": 4, "chunk_size": 32, "rope": {}}, )" +
           ffn + "}}"},
      {"norm_residual",
       R"("pattern": "2l a", "blocks": {"l": {"norm_residual": {"mixer_stream": 1.3,
          "mixer_part": 0.8, "ffn_stream": 0.9, "ffn_part": 1.2}, "mixer": {"type": "lightning",
          "heads": 2}, )" +
           ffn + R"(}, "a": {"norm_residual": {"mixer_stream": 1.1}, "mixer": )" + attention +
           ", " + ffn + "}}"},
      // The hybrids' variants.
      {"short_conv", R"("pattern": "2s a", "blocks": {"s": {"mixer": {"type": "short_conv",
          "conv_kernel": 4, "bias": true}, )" +
                         ffn + R"(}, "a": {"mixer": )" + attention + ", " + ffn + "}}"},
      {"gated_hybrid",
       R"("pattern": "2g a", "blocks": {"g": {"mixer": {"type": "gated_deltanet", "heads": 2,
          "value_heads": 6, "head_dim": 6, "value_head_dim": 5, "negative_eigenvalues": true,
          "norm_epsilon": 1e-3}, )" +
           ffn + R"(}, "a": {"norms": "after", "mixer": {"type": "attention", "heads": 4,
          "kv_heads": 2, "gate": true, "bias": true, "qk_norm": true,
          "rope": {"rotary_dim": 2}}, )" +
           ffn + "}}"},
      {"parallel_heads",
       R"("pattern": "2b", "embedding_scale": 2, "blocks": {"b": {"merge": "sum", "mixers": [
          {"type": "mamba2", "heads": 4, "state": 10, "groups": 2, "norm": "none",
          "input_scale": 1.2, "output_scale": 0.8, "bias": true, "output_bias": false,
          "projection_scales": [0.9, 1.2, 0.7, 1.4, 1.1]}, {"type": "attention", "heads": 3,
          "input_scale": 0.9, "key_scale": 0.6, "output_scale": 1.3, "rope": {}}],
          "ffn": {"type": "glu", "size": 40, "activation": "silu", "gate_scale": 0.8,
          "output_scale": 1.2}}})"},
      {"single_parts",
       R"("pattern": "f m f a", "blocks": {"f": {"ffn": {"type": "mlp", "size": 36, "activation":
          "relu2"}}, "m": {"mixer": {"type": "mamba2", "heads": 4, "state": 6, "groups": 4,
          "norm": "norm_then_gate", "time_step_limit": [0.01, 0.5], "conv_bias": false}},
          "a": {"mixer": )" +
           attention + "}}"},
      {"griffin",
       R"("pattern": "2r a", "embedding_scale": 4, "blocks": {"r": {"mixer": {"type": "rg_lru",
          "width": 30, "gate_blocks": 3, "conv_kernel": 3}, "ffn": {"type": "glu", "size": 36,
          "activation": "gelu_tanh", "bias": true}}, "a": {"mixer": {"type": "attention",
          "heads": 2, "kv_heads": 1, "window": 20, "rope": {"rotary_dim": 6}}, "ffn": {"type":
          "glu", "size": 36, "activation": "gelu_tanh", "bias": true}}})"},
      {"s4d", R"("pattern": "abc", "blocks": {"a": {"mixer": {"type": "s4d", "state": 10}, )" +
                  ffn +
                  R"(}, "b": {"mixer": {"type": "s4d", "state": 6, "init": "inv",
          "discretisation": "bilinear"}, )" +
                  ffn + R"(}, "c": {"mixer": {"type": "s4d", "state": 8, "init": "legs"}}})"},
      {"mamba_norms", R"("pattern": "mn", "blocks": {"m": {"mixer": {"type": "mamba", "state": 5,
          "inner_norms": "learned"}}, "n": {"mixer": {"type": "mamba", "state": 3,
          "inner_norms": "plain", "inner_norm_epsilon": 1e-3}}})"},
      {"mla",
       R"("pattern": "ab", "blocks": {"a": {"mixer": {"type": "mla", "heads": 3, "head_dim": 5,
          "rope_dim": 4, "value_dim": 7, "latent": 10, "query_rank": 9, "bias": true,
          "rope": {"interleaved": true}}, )" +
           ffn + R"(}, "b": {"mixer": {"type": "mla", "heads": 2, "head_dim": 8, "rope_dim": 2,
          "latent": 12, "scale": 0.4}, )" +
           ffn + "}}"},
      {"moe", R"("pattern": "2a", "blocks": {"a": {"mixer": )" + attention +
                  R"(, "ffn": {"type": "moe", "experts": 3, "top_k": 3, "size": 20,
          "shared_size": 12, "shared_gate": true, "balance_loss": 0.1, "z_loss": 0.1}}})"},
      // A dense layer first; groups, sigmoid scores and their correction; in a span, too.
      {"moe_sigmoid",
       R"("pattern": "a(e)e", "subsample": {"keep": 0.6}, "blocks": {"a": {"mixer": )" + attention +
           ", " + ffn + R"(}, "e": {"mixer": )" + attention +
           R"(, "ffn": {"type": "moe", "experts": 8, "top_k": 3, "size": 18,
          "scores": "sigmoid", "scale": 1.5, "groups": 4, "top_groups": 2, "correction": true,
          "shared_size": 10, "balance_loss": 0.1}}})"},
      {"moe_clamped", R"("pattern": "2e", "blocks": {"e": {"mixer": )" + mamba2 +
                          R"(, "ffn": {"type": "moe", "experts": 4, "top_k": 3, "size": 18,
          "normalize": false, "activation": "clamped_swiglu", "clamp": 0.9, "bias": true,
          "router_bias": true}}})"},
      // Experts without a gate, on a narrower vector.
      {"moe_plain",
       R"("pattern": "2f", "blocks": {"f": {"mixer": )" + attention +
           R"(, "ffn": {"type": "moe", "experts": 4, "top_k": 4, "size": 14, "gated": false,
          "activation": "gelu", "bias": true, "latent_size": 10, "shared_size": 12,
          "shared_gate": true}}})"},
      {"moe_plain_sigmoid",
       R"("pattern": "m(e)e", "subsample": {"keep": 0.6}, "blocks": {"m": {"mixer": )" + mamba2 +
           R"(}, "e": {"ffn": {"type": "moe", "experts": 6, "top_k": 2, "size": 18,
          "gated": false, "activation": "relu2", "scores": "sigmoid", "shared_size": 10}}})"},
      // Experts that choose; all take all rows in the first, whose loss has no jumps.
      {"moe_expert_choice",
       R"("pattern": "2e", "blocks": {"e": {"mixer": )" + attention +
           R"(, "ffn": {"type": "moe", "experts": 3, "top_k": 3, "size": 14, "choice": "expert",
          "shared_size": 12, "z_loss": 0.1}}})"},
      {"moe_expert_choice_few",
       R"("pattern": "m(e)e", "subsample": {"keep": 0.6}, "blocks": {"m": {"mixer": )" + mamba2 +
           R"(}, "e": {"mixer": )" + attention +
           R"(, "ffn": {"type": "moe", "experts": 5, "top_k": 2, "size": 14, "scores": "sigmoid",
          "choice": "expert"}}})"},
      // Attention beside the stream, at two places with the same weights and with changes of low
      // rank, and with weights of its own; in a span, too.
      {"sides", R"("pattern": "stu", "embedding_scale": 2, "blocks": {"s": {"mixer": )" + mamba2 +
                    ", " + side + R"(}, "t": {"mixer": )" + attention + ", " + ffn + ", " + side +
                    R"(}, "u": {"norms": "after", "mixer": )" + attention +
                    R"(, "side": {"mixer": {"type": "attention", "heads": 2, "window": 20,
          "scale": 0.1}, "ffn": {"type": "glu", "size": 20, "activation": "silu",
          "output_scale": 0.1}}}})"},
      {"subsampled_sides",
       R"("pattern": "s(s)m", "subsample": {"keep": 0.6}, "blocks": {"s": {"mixer": )" + attention +
           ", " + side + R"(}, "m": {"mixer": )" + mamba2 + "}}"},
      // Keys and values of earlier layers: of the nearest of several, of a window, in a span.
      {"shared_keys",
       R"("pattern": "abcbd", "blocks": {
          "a": {"mixer": {"type": "attention", "heads": 4, "kv_heads": 2, "head_dim": 6,
          "rope": {}, "qk_norm": true, "bias": true, "keys_to": 1}},
          "b": {"mixer": {"type": "attention", "heads": 3, "kv_heads": 1, "window": 20,
          "rope": {"theta": 100}, "keys_to": 2}, )" +
           ffn + R"(},
          "c": {"mixer": {"type": "attention", "heads": 2, "kv_heads": 1, "head_dim": 8,
          "window": 20, "rope": {"theta": 100}, "adapter_rank": 3, "keys_from": 2}},
          "d": {"mixer": {"type": "attention", "heads": 2, "kv_heads": 2, "head_dim": 6,
          "rope": {}, "qk_norm": true, "bias": true, "gate": true, "keys_from": 1}, )" +
           ffn + "}}"},
      // As YOCO has it: the upper half reads the keys and values of one layer.
      {"yoco", R"("pattern": "2g w 3c", "blocks": {"g": {"mixer": )" + deltanet +
                   R"(}, "w": {"mixer": {"type": "attention", "heads": 4, "kv_heads": 2,
          "head_dim": 6, "rope": {}, "keys_to": 1}, )" +
                   ffn + R"(}, "c": {"mixer": {"type": "attention", "heads": 4, "kv_heads": 2,
          "head_dim": 6, "rope": {}, "keys_from": 1}, )" +
                   ffn + "}}"},
      {"subsampled_shared_keys",
       R"("pattern": "l(lb)b", "subsample": {"keep": 0.6}, "blocks": {"l": {"mixer": {"type":
          "attention", "heads": 2, "window": 20, "rope": {}, "keys_to": 1}}, "b": {"mixer": {"type":
          "attention", "heads": 2, "window": 20, "rope": {}, "keys_from": 1}, )" +
           ffn + "}}"},
      // Rows before every sequence: in recurrences, and in windows that keep them.
      {"prefix", R"("pattern": "mngw", "prefix_tokens": 5, "embedding_scale": 2, "blocks": {
          "m": {"mixer": {"type": "mamba", "state": 5}}, "n": {"mixer": )" +
                     mamba2 + R"(}, "g": {"mixer": )" + deltanet +
                     R"(}, "w": {"mixer": {"type": "attention", "heads": 3, "window": 20, "rope":
          {}}, )" + ffn +
                     "}}"},
      {"long_prefix", R"("pattern": "lba", "prefix_tokens": 70, "blocks": {"l": {"mixer": {"type":
          "attention", "heads": 2, "window": 9, "rope": {}, "keys_to": 1}}, "b": {"mixer": {"type":
          "attention", "heads": 2, "window": 9, "rope": {}, "keys_from": 1}}, "a": {"mixer": )" +
                          attention + ", " + ffn + "}}"},
      // Hymba: windows that keep the prefix, keys shared by three layers, an odd number of heads.
      {"hymba", R"("pattern": "glbblbf", "prefix_tokens": 3, "blocks": {
          "g": {"mixer": {"type": "hymba", "heads": 3, "kv_heads": 1, "value_dim": 10, "rope": {},
          "state": 5, "inner_norms": "learned"}, )" +
                    ffn + R"(},
          "l": {"mixer": {"type": "hymba", "heads": 3, "kv_heads": 1, "value_dim": 10, "rope": {},
          "state": 5, "window": 20, "bias": true, "keys_to": 1}},
          "b": {"mixer": {"type": "hymba", "heads": 3, "kv_heads": 1, "value_dim": 10, "rope": {},
          "state": 5, "window": 20, "keys_from": 1}},
          "f": {"mixer": {"type": "hymba", "heads": 2, "head_dim": 5, "conv_bias": false,
          "time_step_rank": 3, "state": 3}}})"},
      // Heads that look at some blocks of keys, and at all of them by the same way.
      {"moba", R"("pattern": "2a", "blocks": {"a": {"mixer": {"type": "moba", "heads": 4,
          "kv_heads": 2, "head_dim": 6, "rope": {}, "block": 64, "top": 2}, )" +
                   ffn + "}}"},
      {"nsa", R"("pattern": "2a", "blocks": {"a": {"mixer": {"type": "nsa", "heads": 4,
          "kv_heads": 2, "head_dim": 6, "rope": {}, "compress_block": 8, "compress_stride": 4,
          "select_block": 16, "select_top": 4, "window": 20}, )" +
                  ffn + "}}"},
      {"nsa_all", R"("pattern": "2a", "blocks": {"a": {"mixer": {"type": "nsa", "heads": 3,
          "kv_heads": 1, "head_dim": 8, "compress_block": 16, "compress_stride": 16,
          "compress_size": 5, "select_block": 64, "select_top": 8, "window": 9}, )" +
                      ffn + "}}"},
      {"rwkv7",
       R"("pattern": "3r", "embedding_norm": true, "tie_embeddings": false, "logit_scale": 2, "norm": {"type": "layer_norm", "bias":
          true}, "blocks": {"r": {"mixer": {"type": "rwkv7", "heads": 3, "head_dim": 10,
          "decay_low_rank_dim": 5, "a_low_rank_dim": 4, "v_low_rank_dim": 3,
          "gate_low_rank_dim": 6}, "ffn": {"type": "channel_mix", "size": 40}}})"},
      {"rwkv7_negative", R"("pattern": "2r", "blocks": {"r": {"mixer": {"type": "rwkv7", "heads": 2,
          "head_dim": 12, "decay_low_rank_dim": 5, "a_low_rank_dim": 4, "v_low_rank_dim": 3,
          "gate_low_rank_dim": 6, "negative_eigenvalues": true}, )" +
                             ffn + "}}"},
      // States of a Fenwick tree, in buckets of one token and of three.
      {"log_linear", R"("pattern": "gm", "blocks": {
          "g": {"mixer": {"type": "gated_deltanet", "heads": 2, "head_dim": 8, "levels": 4}, )" +
                         ffn + R"(},
          "m": {"mixer": {"type": "mamba2", "heads": 2, "state": 8, "levels": 3, "bucket": 3}}})"},
      {"carried", R"("pattern": "4t", "blocks": {"t": {"mixer": )" + attention +
                      R"(, "ffn": {"type": "test_shift", "size": 20}}})"},
  });
  return all;
}

// Whether the model gives a token to some of its experts only: what a step of a difference, or a
// sum that is rounded otherwise, can change.
inline bool chooses_experts(const ModelConfig& config) {
  for (const auto& [name, block] : config.blocks) {
    const nlohmann::json& ffn = block.feed_forward;
    if (!ffn.is_null() && ffn.at("type") == "moe" && ffn.at("top_k") < ffn.at("experts")) {
      return true;
    }
  }
  return false;
}

// Whether heads look at some of the keys of a text of `tokens` only, by a choice of their own.
inline bool chooses_keys(const ModelConfig& config, int64_t tokens) {
  // MoBA has one block before a token's own, or none, in the first two.
  constexpr int64_t kFree = 2;
  for (const auto& [name, block] : config.blocks) {
    for (const nlohmann::json& mixer : block.mixers) {
      if (mixer.at("type") == "nsa") {
        const int64_t block_tokens = mixer.at("select_block");
        if (block_tokens * mixer.at("select_top").get<int64_t>() < tokens) return true;
      } else if (mixer.at("type") == "moba") {
        if (kFree * mixer.at("block").get<int64_t>() < tokens) return true;
      } else if (mixer.at("type") == "dsa") {
        if (mixer.at("top").get<int64_t>() < tokens) return true;
      }
    }
  }
  return false;
}

// initializer_range: larger than usual, so that every part of these tiny models does something.
inline ModelConfig model_config(const std::string& body, double initializer_range = 0.3) {
  register_test_layers();
  nlohmann::json json =
      parse_json(R"({"vocab_size": 61, "hidden_size": 24, )" + body + "}", "test");
  json["initializer_range"] = initializer_range;
  return read_pronghorn_config(ConfigReader(json, "test"));
}

// The configuration file of a model 32 wide, without a vocabulary: a pattern of attention (a),
// Mamba-2 (m), Mamba (s) and Gated DeltaNet (g).
inline nlohmann::json tiny_json(const std::string& pattern) {
  const nlohmann::json known = {
      {"a",
       {{"mixer",
         {{"type", "attention"}, {"heads", 2}, {"kv_heads", 1}, {"rope", {{"theta", 10000}}}}},
        {"ffn", {{"type", "swiglu"}, {"size", 48}}}}},
      {"m", {{"mixer", {{"type", "mamba2"}, {"heads", 2}, {"state", 8}}}}},
      {"s", {{"mixer", {{"type", "mamba"}, {"state", 4}}}}},
      {"g", {{"mixer", {{"type", "gated_deltanet"}, {"heads", 2}, {"head_dim", 8}}}}}};
  nlohmann::json blocks;
  for (const char c : pattern) {
    const std::string letter(1, c);
    if (known.contains(letter)) blocks[letter] = known[letter];
  }
  nlohmann::json config = {
      {"model_type", "pronghorn"}, {"hidden_size", 32}, {"pattern", pattern}, {"blocks", blocks}};
  if (pattern.find('(') != std::string::npos) {
    config["subsample"] = {{"keep", 0.64}, {"score_norm", true}, {"score_bias", true}};
  }
  return config;
}

// The same for bytes. By default a hybrid of every kind of path that training takes: attention with
// rotary positions, a scan, a feed-forward, a tied head.
inline ModelConfig tiny_config(const std::string& pattern = "a m") {
  nlohmann::json config = tiny_json(pattern);
  config["vocab_size"] = 256;
  return read_pronghorn_config(ConfigReader(config, "tiny"));
}

}  // namespace pronghorn::testing_support
