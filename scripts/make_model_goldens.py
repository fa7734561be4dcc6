#!/usr/bin/env python3
"""Makes tests/model/golden: tiny models of published families and the scores that the
`transformers` library computes with them; and checks the other direction.

Setting up, once:

    python3 -m venv venv
    venv/bin/pip install torch transformers peft safetensors numpy

Making the goldens again (the same bytes, as long as these packages draw and add up alike):

    venv/bin/python scripts/make_model_goldens.py [NAME..]

Checking that transformers reads a checkpoint that this engine wrote and computes the same:

    build/pronghorn logits DIR --tokens "1 2 3" --out F.npy
    venv/bin/python scripts/make_model_goldens.py --check DIR --tokens "1 2 3" --logits F.npy

With --adapter ADAPTER the PEFT library puts an adapter of this engine on top first (the scores are
those of `pronghorn logits --adapter`).

Everything runs on the processor, in float32, in the plain PyTorch form of each model.
"""

import argparse
import json
import os
import math
import pathlib
import shutil
import sys

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # BitNet's rounding is else compiled, by a C++ compiler

import numpy as np
import safetensors.torch
import peft
import torch
from transformers import (AutoModelForCausalLM, BitNetConfig, BitNetForCausalLM, Gemma2Config,
                          Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config,
                          GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, GraniteConfig,
                          GptOssConfig, GptOssForCausalLM, GraniteForCausalLM, GraniteMoeConfig,
                          GraniteMoeForCausalLM, LlamaConfig, LlamaForCausalLM, Mamba2Config,
                          Mamba2ForCausalLM, MambaConfig, MambaForCausalLM, MistralConfig,
                          MistralForCausalLM, MixtralConfig, MixtralForCausalLM, Olmo2Config,
                          Olmo2ForCausalLM, OlmoeConfig, OlmoeForCausalLM, Phi3Config,
                          Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig,
                          Qwen2MoeForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig,
                          Qwen3MoeForCausalLM, SmolLM3Config, SmolLM3ForCausalLM)
from transformers import (BambaConfig, BambaForCausalLM, FalconH1Config, FalconH1ForCausalLM,
                          FalconMambaConfig, FalconMambaForCausalLM, GraniteMoeHybridConfig,
                          GraniteMoeHybridForCausalLM, JambaConfig, JambaForCausalLM, Lfm2Config,
                          Lfm2ForCausalLM, Lfm2MoeConfig, Lfm2MoeForCausalLM, MiniCPM3Config,
                          MiniCPM3ForCausalLM, NemotronHConfig, NemotronHForCausalLM,
                          OlmoHybridConfig, OlmoHybridForCausalLM, Zamba2Config, Zamba2ForCausalLM)
from transformers import (DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3Config,
                          DeepseekV3ForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM,
                          Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM)
from transformers import DeepseekV32Config, DeepseekV32ForCausalLM
from transformers import (KimiLinearConfig, KimiLinearForCausalLM, xLSTMConfig,
                          xLSTMForCausalLM)
from transformers import MiniMaxConfig, MiniMaxForCausalLM
from transformers import SarvamMLAConfig, YoutuConfig, YoutuForCausalLM
from transformers import (Qwen3_5ForCausalLM, Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig,
                          Qwen3_5TextConfig, Qwen3NextConfig, Qwen3NextForCausalLM)
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from transformers import BitNetQuantConfig
from transformers.integrations.bitnet import (AutoBitLinear, pack_weights,
                                              replace_with_bitnet_linear)

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "model" / "golden"
TOKENS = 70  # past a chunk of 64 tokens, with a remainder that no block of 16 divides
VOCABULARY = 96
# Two float32 programs that add up in different orders differ by a few 1e-6 after three layers; a
# wrong formula shows at 1e-2 and more.
TOLERANCE = 2e-4


def models():
    """Name, configuration and class of each golden."""
    common = {"vocab_size": VOCABULARY, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1,
              "eos_token_id": 2}
    llama = dict(common, intermediate_size=56, max_position_embeddings=256)
    yield "llama", LlamaConfig(**llama, num_hidden_layers=2, num_attention_heads=4,
                               num_key_value_heads=2), LlamaForCausalLM
    yield "llama_tied", LlamaConfig(**llama, num_hidden_layers=3, num_attention_heads=4,
                                    num_key_value_heads=1, tie_word_embeddings=True,
                                    rms_norm_eps=1e-5,
                                    rope_parameters={"rope_type": "default",
                                                     "rope_theta": 500.0}), LlamaForCausalLM
    # Windows are shorter than the text, and no multiple of a tile of 16 or a page of 64.
    yield "mistral", MistralConfig(**llama, num_hidden_layers=2, num_attention_heads=4,
                                   num_key_value_heads=2, head_dim=6,
                                   sliding_window=23), MistralForCausalLM
    qwen = dict(llama, num_attention_heads=4, num_key_value_heads=2)
    yield "qwen2", Qwen2Config(**qwen, num_hidden_layers=3, use_sliding_window=True,
                               sliding_window=19, max_window_layers=1,
                               rope_parameters={"rope_type": "default",
                                                "rope_theta": 1000000.0}), Qwen2ForCausalLM
    yield "qwen2_tied", Qwen2Config(**qwen, num_hidden_layers=2,
                                    tie_word_embeddings=True), Qwen2ForCausalLM
    # Windows in an order that only layer_types can say.
    yield "qwen3", Qwen3Config(**qwen, num_hidden_layers=3, head_dim=12, use_sliding_window=True,
                               sliding_window=37, layer_types=["sliding_attention",
                                                               "full_attention",
                                                               "sliding_attention"],
                               tie_word_embeddings=True), Qwen3ForCausalLM
    yield "mamba", MambaConfig(**common, num_hidden_layers=3, state_size=8,
                               use_mambapy=False), MambaForCausalLM
    yield "mamba_bias", MambaConfig(**common, num_hidden_layers=2, state_size=16, expand=1,
                                    conv_kernel=3, time_step_rank=5, use_bias=True,
                                    use_mambapy=False), MambaForCausalLM
    mamba2 = dict(common, num_hidden_layers=2, num_heads=4, head_dim=16, state_size=16,
                  chunk_size=16)
    yield "mamba2", Mamba2Config(**mamba2, n_groups=1), Mamba2ForCausalLM
    yield "mamba2_groups", Mamba2Config(**mamba2, n_groups=2, use_bias=True,
                                        tie_word_embeddings=True), Mamba2ForCausalLM
    yield from small_models()
    yield from mixtures()


def small_models():
    """The families whose variants are many: narrower, so that their files stay small."""
    common = {"vocab_size": 48, "hidden_size": 16, "pad_token_id": 0, "bos_token_id": 1,
              "eos_token_id": 2}
    decoder = dict(common, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=2, head_dim=8, max_position_embeddings=256)
    tied, untied = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}

    def rope(kind, theta=10000.0, **rest):
        return {"rope_type": kind, "rope_theta": theta, **rest}

    # Scaled positions, with biases everywhere. The text is longer than the context of the training
    # where the kind of scaling does not depend on the text's length.
    yield "llama_linear", LlamaConfig(**decoder, attention_bias=True, mlp_bias=True,
                                      rope_parameters=rope("linear", factor=2.5)), LlamaForCausalLM
    wide = dict(decoder, head_dim=16)
    yield "llama_dynamic", LlamaConfig(**decoder, **tied,
                                       rope_parameters=rope("dynamic", factor=4.0)), LlamaForCausalLM
    yield "llama_yarn", LlamaConfig(**wide, **tied, rope_parameters=rope(
        "yarn", factor=4.0, original_max_position_embeddings=64)), LlamaForCausalLM
    yield "llama_yarn_factors", LlamaConfig(**wide, **tied, rope_parameters=rope(
        "yarn", theta=1000.0, factor=16.0, original_max_position_embeddings=16, beta_fast=8.0,
        beta_slow=0.5, mscale=1.2, mscale_all_dim=0.7, truncate=False)), LlamaForCausalLM
    yield "llama_3", LlamaConfig(**wide, **tied, rope_parameters=rope(
        "llama3", theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32)), LlamaForCausalLM
    yield "qwen3_bias", Qwen3Config(**decoder, attention_bias=True), Qwen3ForCausalLM

    # Layers without positions; some with a window.
    yield "smollm3", SmolLM3Config(**dict(decoder, num_hidden_layers=4)), SmolLM3ForCausalLM
    yield "smollm3_window", SmolLM3Config(**decoder, **untied, no_rope_layers=[0, 1],
                                          use_sliding_window=True, sliding_window=19,
                                          attention_bias=True, mlp_bias=True), SmolLM3ForCausalLM

    # Caps that are reached, windows shorter than the text, angles for each kind of layer.
    gemma = dict(decoder, num_hidden_layers=3, query_pre_attn_scalar=24)
    yield "gemma2", Gemma2Config(**gemma, sliding_window=21, attn_logit_softcapping=1.5,
                                 final_logit_softcapping=15.0), Gemma2ForCausalLM
    yield "gemma2_layers", Gemma2Config(**dict(gemma, num_hidden_layers=2), sliding_window=9,
                                        layer_types=["full_attention", "sliding_attention"],
                                        attn_logit_softcapping=None, final_logit_softcapping=None,
                                        attention_bias=True), Gemma2ForCausalLM
    yield "gemma3_text", Gemma3TextConfig(
        **gemma, sliding_window=17,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": rope("linear", theta=100000.0, factor=8.0),
                         "sliding_attention": rope("default", theta=50.0)}), Gemma3ForCausalLM
    yield "gemma3_text_pattern", Gemma3TextConfig(
        **dict(gemma, num_hidden_layers=2), sliding_window=33, sliding_window_pattern=2,
        final_logit_softcapping=12.0), Gemma3ForCausalLM

    # A cap that is reached, a window shorter than the text, gates of several blocks; layers whose
    # order the default cannot say, channels that are more than the model's.
    griffin = dict(common, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2)
    yield "recurrent_gemma", RecurrentGemmaConfig(
        **griffin, num_key_value_heads=1, attention_window_size=21,
        logits_soft_cap=12.0), RecurrentGemmaForCausalLM
    yield "recurrent_gemma_blocks", RecurrentGemmaConfig(
        **griffin, lru_width=24, conv1d_width=3, attention_window_size=9, attention_bias=True,
        block_types=["attention", "recurrent"], tie_word_embeddings=False,
        hidden_activation="gelu", rope_parameters=rope("default", theta=500.0,
                                                       partial_rotary_factor=0.25)), \
        RecurrentGemmaForCausalLM

    # Projections in one piece. The longest text is within the context of the training, or the
    # context that we read it with is beyond.
    phi = dict(common, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
               num_attention_heads=2, num_key_value_heads=1)
    short, long = [1.0, 1.1, 1.3, 1.7], [1.2, 2.5, 6.0, 11.0]
    yield "phi3", Phi3Config(**phi, max_position_embeddings=512,
                             original_max_position_embeddings=128, rope_parameters=rope(
        "longrope", short_factor=short, long_factor=long, partial_rotary_factor=0.5,
        original_max_position_embeddings=128)), Phi3ForCausalLM
    yield "phi3_long", Phi3Config(**phi, max_position_embeddings=96,
                                  original_max_position_embeddings=16, rope_parameters=rope(
        "longrope", short_factor=short, long_factor=long, partial_rotary_factor=0.5,
        original_max_position_embeddings=16, context=96)), Phi3ForCausalLM
    yield "phi3_window", Phi3Config(**dict(phi, num_hidden_layers=1), sliding_window=23,
                                    max_position_embeddings=256), Phi3ForCausalLM

    yield "olmo2", Olmo2Config(**decoder, rope_parameters=rope("default", theta=500000.0)), \
        Olmo2ForCausalLM
    yield "olmo2_yarn", Olmo2Config(**wide, **tied, attention_bias=True, rope_parameters=rope(
        "yarn", factor=8.0, original_max_position_embeddings=32, attention_factor=1.3)), \
        Olmo2ForCausalLM
    yield "granite", GraniteConfig(**decoder, **tied, embedding_multiplier=12.0,
                                   attention_multiplier=0.2, residual_multiplier=0.22,
                                   logits_scaling=7.0), GraniteForCausalLM
    yield "granite_bias", GraniteConfig(**decoder, attention_bias=True, mlp_bias=True,
                                        attention_multiplier=0.4), GraniteForCausalLM

    gpt2 = {"vocab_size": 48, "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 80,
            "bos_token_id": 1, "eos_token_id": 2}
    yield "gpt2", GPT2Config(**gpt2), GPT2LMHeadModel
    yield "gpt2_variants", GPT2Config(**gpt2, **untied, n_inner=20, activation_function="relu",
                                      scale_attn_by_inverse_layer_idx=True), GPT2LMHeadModel
    neox = dict(common, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=256)
    yield "gpt_neox", GPTNeoXConfig(**neox, rotary_pct=0.5), GPTNeoXForCausalLM
    yield "gpt_neox_sequential", GPTNeoXConfig(**neox, **tied, use_parallel_residual=False,
                                               attention_bias=False, hidden_act="gelu_new",
                                               rotary_emb_base=500), GPTNeoXForCausalLM
    bitnet = dict(decoder, num_attention_heads=2, num_key_value_heads=1)
    yield "bitnet", BitNetConfig(**bitnet), BitNetForCausalLM
    # Ternary matrices and inputs of 8 bits: as they are trained, and four numbers a byte.
    for mode in ("online", "offline"):
        quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear",
                        "quantization_mode": mode}
        yield f"bitnet_{mode}", BitNetConfig(**bitnet, **tied,
                                             quantization_config=quantization), BitNetForCausalLM
    yield from hybrids(common)
    yield from hybrid_mixtures()


def hybrids(common):
    """Attention beside recurrences and convolutions, in other layers or in the same."""
    common = dict(common, num_attention_heads=4, num_key_value_heads=2,
                  max_position_embeddings=256)
    tied, untied = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}

    def rope(**rest):  # anew each time: some configurations change what they are given
        return {"rope_type": "default", "rope_theta": 500.0, **rest}

    lfm2 = dict(common, intermediate_size=36, num_hidden_layers=3)
    yield "lfm2", Lfm2Config(**lfm2, block_multiple_of=8, block_ffn_dim_multiplier=0.9,
                             layer_types=["conv", "full_attention", "conv"],
                             rope_parameters=rope()), Lfm2ForCausalLM
    yield "lfm2_bias", Lfm2Config(**dict(lfm2, num_hidden_layers=2, num_key_value_heads=1),
                                  **untied, block_auto_adjust_ff_dim=False, conv_bias=True,
                                  conv_L_cache=5, full_attn_idxs=[0]), Lfm2ForCausalLM

    # Value heads that share a key head, heads of keys and values of other widths.
    qwen = dict(common, intermediate_size=24, head_dim=8, linear_num_key_heads=2,
                linear_num_value_heads=6, linear_key_head_dim=6, linear_value_head_dim=5)
    yield "qwen3_5_text", Qwen3_5TextConfig(**qwen, num_hidden_layers=4, **tied), \
        Qwen3_5ForCausalLM
    yield "qwen3_5_text_bias", Qwen3_5TextConfig(
        **dict(qwen, linear_num_value_heads=2), num_hidden_layers=3, attention_bias=True,
        linear_conv_kernel_dim=3, layer_types=["full_attention", "linear_attention",
                                               "full_attention"],
        rope_parameters=rope(partial_rotary_factor=0.5)), Qwen3_5ForCausalLM
    # With a head for multi-token prediction (make_predictor: the last layer is the head's).
    yield "qwen3_5_text_mtp", Qwen3_5TextConfig(
        **qwen, num_hidden_layers=3, **tied, layer_types=["linear_attention", "full_attention",
                                                          "full_attention"]), Qwen3_5ForCausalLM
    # Projections key head by key head.
    yield "qwen3_next", Qwen3NextConfig(**qwen, **tied, num_hidden_layers=2, mlp_only_layers=[0, 1],
                                        layer_types=["linear_attention", "full_attention"]), \
        Qwen3NextForCausalLM
    # As it is published beside a tower for images.
    yield "qwen3_5", Qwen3_5TextConfig(**qwen, num_hidden_layers=2, **tied, layer_types=[
        "linear_attention", "full_attention"]), Qwen3_5ForCausalLM

    kimi = dict(common, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2,
                intermediate_size=40, moe_intermediate_size=20, kv_lora_rank=12,
                qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, num_local_experts=4,
                num_experts_per_tok=2, linear_num_heads=2)
    yield "kimi_linear", KimiLinearConfig(
        **kimi, linear_head_dim=8, layer_types=["linear_attention"] * 3 + ["full_attention"]), \
        KimiLinearForCausalLM
    yield "kimi_linear_groups", KimiLinearConfig(
        **dict(kimi, num_hidden_layers=3, num_local_experts=8), linear_head_dim=12,
        linear_conv_kernel_dim=3, q_lora_rank=None, n_group=4, topk_group=2,
        norm_topk_prob=False, routed_scaling_factor=1.5, mlp_layer_types=["sparse"] * 3,
        layer_types=["full_attention", "linear_attention", "linear_attention"]), \
        KimiLinearForCausalLM

    yield "xlstm", xLSTMConfig(**common, num_hidden_layers=2, num_heads=2,
                               ffn_round_up_to_multiple_of=8), xLSTMForCausalLM
    yield "xlstm_caps", xLSTMConfig(
        **common, num_hidden_layers=1, num_heads=4, qk_dim_factor=1.0, gate_soft_cap=8.0,
        output_logit_soft_cap=3.0, ffn_round_up_to_multiple_of=8, norm_eps=1e-4,
        chunk_size=16), xLSTMForCausalLM

    olmo = dict(common, intermediate_size=24, linear_num_key_heads=2, linear_num_value_heads=4,
                linear_key_head_dim=6, linear_value_head_dim=3)
    yield "olmo_hybrid", OlmoHybridConfig(**olmo, num_hidden_layers=4, rope_parameters=rope(
        rope_theta=None)), OlmoHybridForCausalLM
    yield "olmo_hybrid_rope", OlmoHybridConfig(
        **olmo, num_hidden_layers=2, attention_bias=True, linear_allow_neg_eigval=False,
        rope_parameters=rope()), OlmoHybridForCausalLM

    mamba2 = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 6, "mamba_chunk_size": 16}
    granite = dict(common, **mamba2, num_local_experts=0, shared_intermediate_size=20,
                   embedding_multiplier=6.0, attention_multiplier=0.3, residual_multiplier=0.4,
                   logits_scaling=3.0)
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    yield "granitemoehybrid", GraniteMoeHybridConfig(
        **granite, **tied, num_hidden_layers=3, mamba_n_groups=2, layer_types=kinds), \
        GraniteMoeHybridForCausalLM
    yield "granitemoehybrid_rope", GraniteMoeHybridConfig(
        **granite, num_hidden_layers=2, layer_types=kinds[1:], position_embedding_type="rope",
        rope_parameters=rope(), attention_bias=True, mamba_proj_bias=True, mamba_conv_bias=False,
        mamba_d_conv=3, time_step_limit=(0.05, 0.4)), GraniteMoeHybridForCausalLM

    bamba = dict(common, **mamba2, intermediate_size=24, num_hidden_layers=3)
    yield "bamba", BambaConfig(**bamba, attn_layer_indices=[1], mamba_n_groups=2,
                               rope_parameters=rope()), BambaForCausalLM
    yield "bamba_bias", BambaConfig(
        **dict(bamba, num_hidden_layers=2, num_key_value_heads=1), **tied, attn_layer_indices=[0],
        attention_bias=True, mlp_bias=True, mamba_proj_bias=True, time_step_limit=(0.01, 0.3)), \
        BambaForCausalLM

    # Both in each layer, and factors on everything.
    falcon = dict(common, **mamba2, intermediate_size=24, num_hidden_layers=2, mamba_d_ssm=32,
                  embedding_multiplier=3.0, lm_head_multiplier=0.6, key_multiplier=0.7,
                  attention_in_multiplier=1.3, attention_out_multiplier=0.8,
                  ssm_in_multiplier=1.2, ssm_out_multiplier=0.9, mlp_multipliers=[0.8, 1.4],
                  ssm_multipliers=[0.9, 1.2, 0.7, 1.4, 1.1])
    yield "falcon_h1", FalconH1Config(**falcon, mamba_n_groups=2, rope_parameters=rope(
        rope_theta=1e11)), FalconH1ForCausalLM
    yield "falcon_h1_norm", FalconH1Config(
        **falcon, **tied, mamba_rms_norm=True, mamba_norm_before_gate=True, mamba_n_groups=2,
        attention_bias=True, mlp_bias=True, mamba_proj_bias=True), FalconH1ForCausalLM
    yield "falcon_h1_gate", FalconH1Config(
        **dict(falcon, mamba_d_ssm=24, mamba_d_head=6, num_hidden_layers=1), mamba_rms_norm=True,
        mamba_norm_before_gate=False, projectors_bias=True, mamba_conv_bias=False), \
        FalconH1ForCausalLM

    # A part a layer.
    nemotron = dict(common, head_dim=6, intermediate_size=24, mamba_num_heads=4, mamba_head_dim=8,
                    ssm_state_size=6, chunk_size=16)
    yield "nemotron_h", NemotronHConfig(**nemotron, n_groups=2, layers_block_type=[
        "mlp", "linear_attention", "full_attention", "mlp", "linear_attention"]), \
        NemotronHForCausalLM
    yield "nemotron_h_bias", NemotronHConfig(
        **nemotron, n_groups=1, use_bias=True, mlp_bias=True, use_conv_bias=False, conv_kernel=3,
        mlp_hidden_act="silu", time_step_min=0.02, layers_block_type=[
            "linear_attention", "mlp", "full_attention"]), NemotronHForCausalLM

    # Experts without a gate; in groups and on a narrower vector in the second.
    nemotron_moe = dict(nemotron, n_routed_experts=6, num_experts_per_tok=2,
                        moe_intermediate_size=12, moe_shared_expert_intermediate_size=14)
    yield "nemotron_h_moe", NemotronHConfig(**nemotron_moe, n_groups=2, layers_block_type=[
        "linear_attention", "moe", "full_attention", "mlp", "moe"],
        routed_scaling_factor=2.5), NemotronHForCausalLM
    yield "nemotron_h_moe_latent", NemotronHConfig(**dict(
        nemotron_moe, num_attention_heads=3, num_key_value_heads=1, n_routed_experts=8,
        num_experts_per_tok=3), n_groups=1, n_group=4, topk_group=2, norm_topk_prob=False,
        moe_latent_size=8, mlp_hidden_act="silu", layers_block_type=[
            "full_attention", "moe", "linear_attention"]), NemotronHForCausalLM

    # Blocks of attention that several layers share: two used in turn, with changes of low rank; one,
    # with an odd number of heads.
    zamba = {"vocab_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
             "max_position_embeddings": 256, "mamba_d_state": 6, "chunk_size": 16}
    yield "zamba2", Zamba2Config(
        **zamba, hidden_size=16, num_attention_heads=4, intermediate_size=20, n_mamba_heads=4,
        mamba_ngroups=2, num_mem_blocks=2, use_shared_attention_adapter=True, adapter_rank=3,
        num_hidden_layers=4, layers_block_type=["hybrid", "linear_attention", "hybrid",
                                                "hybrid"]), Zamba2ForCausalLM
    yield "zamba2_rope", Zamba2Config(
        **zamba, hidden_size=12, num_attention_heads=3, num_key_value_heads=1,
        n_mamba_heads=3, mamba_d_conv=3, add_bias_linear=True, use_mem_rope=True, adapter_rank=4,
        hidden_act="gelu_pytorch_tanh", time_step_min=0.02, rope_parameters=rope(
            rope_type="default", rope_theta=500.0),
        num_hidden_layers=3, layers_block_type=["linear_attention", "hybrid", "hybrid"]), \
        Zamba2ForCausalLM

    falcon_mamba = {key: value for key, value in common.items() if "heads" not in key}
    yield "falcon_mamba", FalconMambaConfig(**falcon_mamba, num_hidden_layers=2, state_size=5), \
        FalconMambaForCausalLM
    yield "falcon_mamba_bias", FalconMambaConfig(
        **falcon_mamba, **untied, num_hidden_layers=2, state_size=4, use_bias=True,
        conv_kernel=3, time_step_rank=3, mixer_rms_eps=1e-3), FalconMambaForCausalLM

    jamba = dict(common, intermediate_size=24, num_experts=1, mamba_d_state=5)
    yield "jamba", JambaConfig(**jamba, num_hidden_layers=4, attn_layer_period=3,
                               attn_layer_offset=1), JambaForCausalLM
    yield "jamba_bias", JambaConfig(**jamba, **tied, num_hidden_layers=2, attn_layer_period=2,
                                    attn_layer_offset=0, mamba_proj_bias=True,
                                    mamba_conv_bias=False, mamba_expand=1, mamba_dt_rank=3), \
        JambaForCausalLM

    # Keys and values from one latent vector a token.
    mla = dict(common, num_key_value_heads=4, intermediate_size=24, num_hidden_layers=2,
               kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5,
               scale_emb=3.0, scale_depth=1.1, dim_model_base=8)
    yield "minicpm3", MiniCPM3Config(**mla, q_lora_rank=7), MiniCPM3ForCausalLM
    yield "minicpm3_plain", MiniCPM3Config(
        **dict(mla, num_attention_heads=2, num_key_value_heads=2), **untied, q_lora_rank=None,
        attention_bias=True, mlp_bias=True, rope_parameters=rope(
            rope_type="yarn", factor=8.0, original_max_position_embeddings=32,
            mscale=1.0, mscale_all_dim=0.7)), MiniCPM3ForCausalLM


def less_one(golden, tensor):
    """Whether the reference adds 1 to this tensor."""
    if "norm" not in tensor or tensor.endswith("linear_attn.norm.weight"):
        return False
    return golden.startswith(("gemma", "qwen3_5", "qwen3_next", "recurrent_gemma"))


def mixtures():
    """The families with experts."""
    common = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 20, "pad_token_id": 0,
              "bos_token_id": 1, "eos_token_id": 2, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    odd = dict(common, num_attention_heads=3, num_key_value_heads=1, head_dim=6)
    tied = {"tie_word_embeddings": True}

    yield "mixtral", MixtralConfig(**common, num_local_experts=4, num_experts_per_tok=2,
                                   sliding_window=19), MixtralForCausalLM
    yield "mixtral_odd", MixtralConfig(**odd, **tied, num_local_experts=5,
                                       num_experts_per_tok=1), MixtralForCausalLM
    factors = {"full_attn_alpha_factor": 1.4, "full_attn_beta_factor": 0.9,
               "linear_attn_alpha_factor": 1.7, "linear_attn_beta_factor": 0.8,
               "mlp_alpha_factor": 1.3, "mlp_beta_factor": 1.1}
    yield "minimax", MiniMaxConfig(
        **dict(common, num_hidden_layers=3), **factors, num_local_experts=4, num_experts_per_tok=2,
        layer_types=["linear_attention", "linear_attention", "full_attention"],
        block_size=16), MiniMaxForCausalLM
    yield "minimax_odd", MiniMaxConfig(
        **odd, **tied, num_local_experts=3, num_experts_per_tok=1, sliding_window=19,
        block_size=48, rope_parameters={"rope_type": "default", "rope_theta": 500.0}), \
        MiniMaxForCausalLM

    qwen = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    shared = dict(common, **qwen, shared_expert_intermediate_size=14)
    yield "qwen2_moe", Qwen2MoeConfig(**dict(shared, num_hidden_layers=3),
                                      mlp_only_layers=[1]), Qwen2MoeForCausalLM
    yield "qwen2_moe_window", Qwen2MoeConfig(**dict(shared, num_experts_per_tok=1), **tied,
                                             norm_topk_prob=True, qkv_bias=False,
                                             decoder_sparse_step=2, use_sliding_window=True,
                                             sliding_window=21), Qwen2MoeForCausalLM
    yield "qwen2_moe_plain", Qwen2MoeConfig(**shared), Qwen2MoeForCausalLM
    yield "qwen3_moe", Qwen3MoeConfig(**common, **dict(qwen, num_experts=7, num_experts_per_tok=3),
                                      head_dim=8, norm_topk_prob=True), Qwen3MoeForCausalLM
    # All experts for every token.
    yield "qwen3_moe_all", Qwen3MoeConfig(**odd, **tied, **dict(qwen, num_experts_per_tok=5),
                                          attention_bias=True, use_sliding_window=True,
                                          sliding_window=17), Qwen3MoeForCausalLM

    yield "olmoe", OlmoeConfig(**common, num_experts=8, num_experts_per_tok=4), OlmoeForCausalLM
    yield "olmoe_normalized", OlmoeConfig(**dict(common, num_key_value_heads=1), **tied,
                                          num_experts=3, num_experts_per_tok=2,
                                          norm_topk_prob=True,
                                          attention_bias=True), OlmoeForCausalLM

    yield "granitemoe", GraniteMoeConfig(**common, **tied, num_local_experts=6,
                                         num_experts_per_tok=3, embedding_multiplier=12.0,
                                         attention_multiplier=0.2, residual_multiplier=0.22,
                                         logits_scaling=6.0), GraniteMoeForCausalLM
    yield "granitemoe_bias", GraniteMoeConfig(**common, num_local_experts=5, num_experts_per_tok=1,
                                              attention_bias=True,
                                              attention_multiplier=0.4), GraniteMoeForCausalLM

    gpt = {"num_local_experts": 5, "num_experts_per_tok": 3}
    yield "gpt_oss", GptOssConfig(**dict(common, num_hidden_layers=3), **gpt, head_dim=8,
                                  sliding_window=23, rope_parameters={
        "rope_type": "yarn", "rope_theta": 150000.0, "factor": 8.0, "beta_fast": 32.0,
        "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 32}), GptOssForCausalLM
    # The clamp is reached, and windows are in the other layers.
    yield "gpt_oss_plain", GptOssConfig(**odd, **tied, **gpt, sliding_window=9, swiglu_limit=0.8,
                                        attention_bias=False,
                                        layer_types=["full_attention", "sliding_attention"],
                                        rope_parameters={"rope_type": "default",
                                                         "rope_theta": 5000.0}), GptOssForCausalLM
    yield from deepseek(common, tied)


def deepseek(common, tied):
    """DeepSeek's families, and those that took their experts over."""

    def yarn(**rest):
        return {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0,
                "original_max_position_embeddings": 32, **rest}

    experts = {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    groups = dict(experts, n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2)
    mla = dict(common, num_key_value_heads=4, kv_lora_rank=10, qk_nope_head_dim=6,
               qk_rope_head_dim=4, v_head_dim=5)
    odd = dict(mla, num_attention_heads=3, num_key_value_heads=3)

    # The reference has heads divide the width, which does not depend on them.
    yield "deepseek_v2", DeepseekV2Config(**dict(odd, hidden_size=12), **experts, q_lora_rank=7,
                                          first_k_dense_replace=1,
                                          attention_bias=True), DeepseekV2ForCausalLM
    yield "deepseek_v2_groups", DeepseekV2Config(
        **mla, **tied, **groups, q_lora_rank=None, topk_method="group_limited_greedy",
        routed_scaling_factor=3.0, n_shared_experts=1, rope_parameters=yarn(
            mscale=0.7, mscale_all_dim=0.7, beta_fast=16.0)), DeepseekV2ForCausalLM

    yield "deepseek_v3", DeepseekV3Config(
        **odd, **groups, q_lora_rank=7, first_k_dense_replace=1, rope_parameters=yarn(
            mscale=1.0, mscale_all_dim=0.6)), DeepseekV3ForCausalLM
    yield "deepseek_v3_plain", DeepseekV3Config(
        **mla, **tied, **experts, q_lora_rank=None, n_group=1, topk_group=1,
        first_k_dense_replace=0, n_shared_experts=2, norm_topk_prob=False,
        routed_scaling_factor=1.5, rope_interleave=False,
        attention_bias=True), DeepseekV3ForCausalLM

    # Fewer tokens are chosen than there are, and channels of the indexer without positions.
    yield "deepseek_v32", DeepseekV32Config(
        **odd, **groups, q_lora_rank=7, first_k_dense_replace=1, index_topk=24, index_n_heads=8,
        index_head_dim=6, rope_parameters=yarn(mscale=1.0, mscale_all_dim=1.0)), \
        DeepseekV32ForCausalLM
    yield "deepseek_v32_layers", DeepseekV32Config(
        **dict(mla, num_hidden_layers=3), **tied, **experts, n_group=1, topk_group=1,
        q_lora_rank=9, attention_bias=True, n_shared_experts=2, norm_topk_prob=False,
        mlp_layer_types=["sparse", "dense", "sparse"], index_topk=9, index_n_heads=8,
        index_head_dim=4), DeepseekV32ForCausalLM

    # The name that make() gives it; positions scaled as those models are.
    yield "kimi_k2", DeepseekV3Config(
        **mla, **experts, q_lora_rank=7, n_group=1, topk_group=1, first_k_dense_replace=1,
        n_shared_experts=1, routed_scaling_factor=2.827, rope_parameters=dict(yarn(
            mscale=1.0, mscale_all_dim=1.0, beta_fast=1.0, beta_slow=1.0), rope_theta=50000.0)), \
        DeepseekV3ForCausalLM

    yield "kimi_k25", DeepseekV3Config(
        **odd, **experts, q_lora_rank=5, n_group=1, topk_group=1, first_k_dense_replace=1,
        n_shared_experts=1, routed_scaling_factor=2.827, rope_parameters=dict(yarn(
            mscale=1.0, mscale_all_dim=1.0, beta_fast=1.0, beta_slow=1.0), rope_theta=50000.0)), \
        DeepseekV3ForCausalLM

    yield "sarvam_mla", SarvamMLAConfig(
        **odd, **groups, **tied, q_lora_rank=None, first_k_dense_replace=1, n_shared_experts=2,
        routed_scaling_factor=2.0, rope_parameters=yarn(mscale=1.0, mscale_all_dim=0.8)), \
        DeepseekV3ForCausalLM
    yield "youtu", YoutuConfig(**odd, q_lora_rank=7, attention_bias=True,
                               rope_interleave=False), YoutuForCausalLM

    yield "glm4_moe", Glm4MoeConfig(**dict(common, num_hidden_layers=3), **experts, head_dim=8,
                                    use_qk_norm=True, routed_scaling_factor=2.5), \
        Glm4MoeForCausalLM
    yield "glm4_moe_bias", Glm4MoeConfig(
        **dict(common, num_attention_heads=3, num_key_value_heads=1), **tied, **groups, head_dim=6,
        attention_bias=True, first_k_dense_replace=0, n_shared_experts=2, norm_topk_prob=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0,
                         "partial_rotary_factor": 0.67}), Glm4MoeForCausalLM

    # With a head for multi-token prediction (make_predictor: the last layer is the head's).
    yield "deepseek_v3_mtp", DeepseekV3Config(
        **dict(mla, num_hidden_layers=3), **experts, q_lora_rank=7, n_group=1, topk_group=1,
        first_k_dense_replace=1), DeepseekV3ForCausalLM

    yield "glm4_moe_lite", Glm4MoeLiteConfig(**odd, **experts, q_lora_rank=7), \
        Glm4MoeLiteForCausalLM
    # The order of dense layers and others is free.
    yield "glm4_moe_lite_layers", Glm4MoeLiteConfig(
        **dict(mla, num_hidden_layers=3), **tied, **groups, q_lora_rank=None, attention_bias=True,
        rope_interleave=False, mlp_layer_types=["sparse", "dense", "sparse"],
        rope_parameters=yarn()), Glm4MoeLiteForCausalLM


def hybrid_mixtures():
    """The hybrids whose feed-forwards are experts, in all layers or some."""
    common = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 20, "pad_token_id": 0,
              "bos_token_id": 1, "eos_token_id": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "max_position_embeddings": 256}
    tied, untied = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
    qwen = dict(common, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
                linear_key_head_dim=6, linear_value_head_dim=5, num_experts=5,
                num_experts_per_tok=2, moe_intermediate_size=12,
                shared_expert_intermediate_size=14)
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    yield "qwen3_next_moe", Qwen3NextConfig(**qwen, num_hidden_layers=2, layer_types=kinds[:2]), \
        Qwen3NextForCausalLM
    # Layers without experts among those with some, and weights as softmax gives them.
    yield "qwen3_next_moe_step", Qwen3NextConfig(
        **dict(qwen, num_experts=7, num_experts_per_tok=1), **tied, num_hidden_layers=4,
        full_attention_interval=2, decoder_sparse_step=2, mlp_only_layers=[3],
        norm_topk_prob=False), Qwen3NextForCausalLM
    del qwen["intermediate_size"]
    yield "qwen3_5_moe_text", Qwen3_5MoeTextConfig(**qwen, num_hidden_layers=3,
                                                   layer_types=kinds), Qwen3_5MoeForCausalLM
    # All experts for every token, and an odd number of heads.
    yield "qwen3_5_moe_text_all", Qwen3_5MoeTextConfig(
        **dict(qwen, num_attention_heads=3, num_key_value_heads=1, num_experts=3,
               num_experts_per_tok=3), **tied, num_hidden_layers=2, layer_types=kinds[:2],
        attention_bias=True), Qwen3_5MoeForCausalLM
    # As it is published beside a tower for images.
    yield "qwen3_5_moe", Qwen3_5MoeTextConfig(**qwen, num_hidden_layers=2,
                                              layer_types=kinds[:2]), Qwen3_5MoeForCausalLM

    granite = dict(common, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=6, mamba_chunk_size=16,
                   shared_intermediate_size=14, attention_multiplier=0.3)
    yield "granitemoehybrid_moe", GraniteMoeHybridConfig(
        **granite, **tied, num_hidden_layers=3, layer_types=kinds, num_local_experts=6,
        num_experts_per_tok=3, embedding_multiplier=6.0, residual_multiplier=0.4,
        logits_scaling=3.0), GraniteMoeHybridForCausalLM
    yield "granitemoehybrid_moe_rope", GraniteMoeHybridConfig(
        **granite, num_hidden_layers=2, layer_types=kinds[:2], num_local_experts=5,
        num_experts_per_tok=1, position_embedding_type="rope"), GraniteMoeHybridForCausalLM

    lfm2 = dict(common, moe_intermediate_size=12, num_experts=6, num_experts_per_tok=2,
                num_hidden_layers=3)
    yield "lfm2_moe", Lfm2MoeConfig(**lfm2, num_dense_layers=1, routed_scaling_factor=1.6,
                                    layer_types=["conv", "full_attention", "conv"]), \
        Lfm2MoeForCausalLM
    yield "lfm2_moe_plain", Lfm2MoeConfig(
        **dict(lfm2, num_hidden_layers=2, num_experts=5), **untied, num_dense_layers=0,
        use_expert_bias=False, norm_topk_prob=False, conv_bias=True,
        layer_types=["full_attention", "conv"]), Lfm2MoeForCausalLM

    jamba = dict(common, mamba_d_state=5)
    yield "jamba_moe", JambaConfig(**jamba, num_hidden_layers=4, attn_layer_period=3,
                                   attn_layer_offset=1, num_experts=5, num_experts_per_tok=2,
                                   expert_layer_period=2, expert_layer_offset=1), JambaForCausalLM
    yield "jamba_moe_all", JambaConfig(**jamba, **tied, num_hidden_layers=2, attn_layer_period=2,
                                       attn_layer_offset=0, num_experts=3, num_experts_per_tok=1,
                                       expert_layer_period=1, expert_layer_offset=0), \
        JambaForCausalLM


def draw(name, parameter, generator, less_one=False):
    """Values for a parameter: none constant, so that a tensor swapped or ignored shows."""

    def uniform(low, high):
        return low + (high - low) * torch.rand(parameter.shape, generator=generator)

    if name.endswith("A_log"):
        return uniform(-1.0, 2.5)
    if name.endswith("recurrent_param"):
        return uniform(-6.0, 0.0)
    if name.endswith(("dt_bias", "dt_proj.bias", "w_proj.linear.lora.2.bias")):
        return uniform(-4.0, 0.5)
    if less_one:
        return uniform(-0.6, 0.6)
    if ("ln_" in name or "layernorm" in name) and name.endswith(".bias"):
        return uniform(-0.6, 0.6)
    if name.endswith("router.bias"):  # one expert for every token, and one for none
        return torch.tensor([2.5, -30.0] + [0.1] * (parameter.shape[0] - 2))
    if name.endswith((".D", "norm.weight", "norm_f.weight")) or "layernorm" in name or \
            "ln_" in name:
        return uniform(0.4, 1.6)
    if name.endswith("bias") or "conv1d" in name:
        return uniform(-0.6, 0.6)
    deviation = 1.0 if "embed" in name else 1 / math.sqrt(parameter.shape[-1])
    return deviation * torch.randn(parameter.shape, generator=generator)


def scores(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].float()


def make_ternary(model, quantization):
    """The model's projections as the reference has them in a published BitNet."""
    replace_with_bitnet_linear(model, ["lm_head"], BitNetQuantConfig(
        linear_class=quantization["linear_class"],
        quantization_mode=quantization["quantization_mode"]))


def round_ternary(model, generator):
    """Weights of -1, 0 and 1, and factors."""
    for module in model.modules():
        if isinstance(module, AutoBitLinear):
            module.weight.copy_(torch.randint(-1, 2, module.weight.shape, generator=generator))
            module.weight_scale.copy_(0.15 + 0.3 * torch.rand(1, generator=generator))


def least_margin(model, tokens):
    """How far the nearest number is from where it would be rounded otherwise, in steps: nearer than
    the error of float32, two programs may round it differently."""
    margins = []

    def look(module, inputs):
        def note(scaled):
            away = (scaled - torch.floor(scaled) - 0.5).abs()
            margins.append(away.min().item())

        x = inputs[0].double()
        note(x * 127 / x.abs().amax(-1, keepdim=True))
        if module.online_quant:
            note(module.weight.double() / module.weight.double().abs().mean())

    hooks = [module.register_forward_pre_hook(look) for module in model.modules()
             if isinstance(module, AutoBitLinear)]
    scores(model, tokens)
    for hook in hooks:
        hook.remove()
    return min(margins)


def make_bitnet(name, config, cls):
    """The first seed whose numbers are clear of the places where rounding changes."""
    quantization = config.quantization_config
    for seed in range(1, 200):
        model = cls(config)
        make_ternary(model, quantization)
        model = model.eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in sorted(model.named_parameters()):
                parameter.copy_(draw(key, parameter, generator))
            if quantization["quantization_mode"] == "offline":
                round_ternary(model, generator)
        tokens = torch.randint(0, config.vocab_size, (TOKENS,), generator=generator).tolist()
        if least_margin(model, tokens) > 1.5e-4:
            return model, tokens
    sys.exit(f"{name}: no seed is clear of rounding")


def save_bitnet(folder, model):
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()
               if key != "lm_head.weight"}
    if model.config.quantization_config["quantization_mode"] == "offline":
        for key in [key for key in tensors if key.endswith("_scale")]:
            weight = key.removesuffix("_scale")
            tensors[weight] = pack_weights(tensors[weight].clone())
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(
        model.config.to_dict(), architectures=["BitNetForCausalLM"]), indent=2) + "\n")


def least_gap(model, tokens):
    """How far the last key that an indexer takes is from the next: of equal ones programs may take
    different ones, and of near ones by rounding."""
    gaps, topk = [], torch.Tensor.topk

    def watch(scores, k, *rest, **named):
        if scores.dim() == 3 and k < scores.shape[-1]:
            best = topk(scores, k + 1, dim=-1).values
            gap = best[..., k - 1] - best[..., k]
            gaps.extend(gap[best[..., k] > -1e30].tolist())  # those below are masked
        return topk(scores, k, *rest, **named)

    torch.Tensor.topk = watch
    model(torch.tensor([tokens]), use_cache=False)
    torch.Tensor.topk = topk
    return min(gaps)


def make_indexed(config, cls):
    """The first seed whose choices of keys are clear."""
    for seed in range(1, 400):
        model = cls(config).eval()
        model.set_attn_implementation("eager")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in sorted(model.named_parameters()):
                parameter.copy_(draw(key, parameter, generator))
            for key, buffer in sorted(model.named_buffers()):
                if key.endswith("e_score_correction_bias"):
                    buffer.copy_(draw(key, buffer, generator))
            tokens = torch.randint(0, config.vocab_size, (TOKENS,), generator=generator).tolist()
            if least_gap(model, tokens) > 1e-4:
                return model, tokens
    sys.exit("no seed chooses keys clearly")


def make(name, config, cls):
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    if name.startswith("bitnet_"):
        model, tokens = make_bitnet(name, config, cls)
        folder.mkdir(parents=True)
        save_bitnet(folder, model)
        finish(name, folder, model, tokens)
        return
    if name.startswith("deepseek_v32"):
        model, tokens = make_indexed(config, cls)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        finish(name, folder, model, tokens)
        return
    model = cls(config).eval()
    if hasattr(config, "num_attention_heads") and config.vocab_size != VOCABULARY:
        model.set_attn_implementation("eager")  # the only one that knows caps
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            parameter.copy_(draw(key, parameter, generator, less_one(name, key)))
        for key, buffer in sorted(model.named_buffers()):
            if key.endswith(("expert_bias", "e_score_correction_bias")):
                buffer.copy_(draw(key, buffer, generator))
    tokens = torch.randint(0, config.vocab_size, (TOKENS,), generator=generator).tolist()
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if name in ("qwen3_5", "qwen3_5_moe"):
        nest(name, folder)
    if name.startswith("kimi_linear"):
        name_dense_layers(folder)
    if name == "kimi_k25":
        nest_kimi(folder)
    if name == "minimax_odd":
        drop_decays(folder)
    if name in ALIASES:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(
            dict(config, model_type=name), indent=2) + "\n")
    heads = {}
    if name.endswith("_mtp"):
        heads["mtp"] = make_predictor(name, folder, model, tokens).contiguous()
    finish(name, folder, model, tokens, heads)


def drop_decays(folder):
    """A file without the tables that the library writes beside the weights and makes by itself."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    for key in list(tensors):
        if key.endswith(("slope_rate", "_decay")):
            tensors.pop(key)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def name_dense_layers(folder):
    """Feed-forwards without experts under their published name; the library writes the experts'."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    for key in list(tensors):
        if key.endswith(("gate_proj.weight", "up_proj.weight", "down_proj.weight")) and \
                "shared_experts" not in key:
            tensors[key.replace("block_sparse_moe", "mlp")] = tensors.pop(key)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


# Tensors of a head: in DeepSeek's files and in Qwen's.
PREDICTOR = {"enorm": "pre_fc_norm_embedding", "hnorm": "pre_fc_norm_hidden", "eh_proj": "fc",
             "shared_head.norm": "norm"}


def make_predictor(name, folder, model, tokens):
    """The model's last layer becomes the block of a head for multi-token prediction, whose scores
    stand beside the model's. The reference leaves such heads out of its own forward: they are
    computed here from its layer, its norm and its embedding (arXiv 2412.19437, section 2.2)."""
    qwen = name.startswith("qwen")
    trunk, config = model.model, model.config
    block, last = trunk.layers[-1], len(trunk.layers) - 1
    trunk.layers = trunk.layers[:-1]
    config.num_hidden_layers = last
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:last]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        def norm(width):
            result = type(trunk.norm)(width)
            result.weight.copy_(draw("norm.weight", result.weight, generator, qwen))
            return result

        width = config.hidden_size
        norms = {key: norm(width) for key in ("enorm", "hnorm", "shared_head.norm")}
        projection = torch.randn((width, 2 * width), generator=generator) / math.sqrt(2 * width)
        ids = torch.tensor([tokens])
        hidden = trunk(ids, use_cache=False).last_hidden_state[:, :-1]
        embeddings = trunk.embed_tokens(ids[:, 1:])
        x = torch.cat([norms["enorm"](embeddings), norms["hnorm"](hidden)], -1) @ projection.T
        positions = torch.arange(x.shape[1])[None]
        causal = torch.full((x.shape[1], x.shape[1]), -math.inf).triu(1)[None, None]
        x = block(x, position_embeddings=trunk.rotary_emb(x, positions), attention_mask=causal,
                  position_ids=positions)
        x = x[0] if isinstance(x, tuple) else x
        logits = model.lm_head(norms["shared_head.norm"](x))[0].float()

    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    ours = {**{key: module.weight.data for key, module in norms.items()}, "eh_proj": projection}
    layer = f"model.layers.{last}."
    if qwen:
        tensors = {key.replace(layer, "mtp.layers.0."): value for key, value in tensors.items()}
    for key, value in ours.items():
        tensors[(f"mtp.{PREDICTOR[key]}" if qwen else layer + key) + ".weight"] = value
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    published = dict(json.loads((folder / "config.json").read_text()), num_hidden_layers=last)
    published["mtp_num_hidden_layers" if qwen else "num_nextn_predict_layers"] = 1
    if "layer_types" in published:
        published["layer_types"] = published["layer_types"][:last]
    (folder / "config.json").write_text(json.dumps(published, indent=2) + "\n")
    return logits


# Families that are published under names that the library does not know.
ALIASES = ["kimi_k2"]


def stack_experts(tensors):
    """One tensor for a matrix of all experts of a layer, the gates' rows before the others'."""
    for router in [key for key in tensors if key.endswith("mlp.gate.weight")]:
        experts = router.removesuffix("gate.weight") + "experts."

        def stack(matrix):
            count = tensors[router].shape[0]
            return torch.stack([tensors.pop(f"{experts}{e}.{matrix}.weight")
                                for e in range(count)])

        tensors[experts + "gate_up_proj"] = torch.cat([stack("gate_proj"), stack("up_proj")], 1)
        tensors[experts + "down_proj"] = stack("down_proj")


def nest(name, folder):
    """The text model as a part of one that also sees."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    stack_experts(tensors)
    safetensors.torch.save_file({key.replace("model.", "model.language_model.", 1): value
                                 for key, value in tensors.items()},
                                folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    whole = {"architectures": [config["architectures"][0].replace(
        "ForCausalLM", "ForConditionalGeneration")], "model_type": name,
             "tie_word_embeddings": config["tie_word_embeddings"], "text_config": config}
    (folder / "config.json").write_text(json.dumps(whole, indent=2) + "\n")


def nest_kimi(folder):
    """Likewise as Kimi K2.5 is published."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file({f"language_model.{key}": value for key, value in tensors.items()},
                                folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    whole = {"architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25",
             "media_placeholder_token_id": 1, "tie_word_embeddings": False,
             "text_config": dict(config, model_type="kimi_k2")}
    (folder / "config.json").write_text(json.dumps(whole, indent=2) + "\n")


def finish(name, folder, model, tokens, others={}):
    (folder / "tokens.json").write_text(json.dumps(tokens) + "\n")
    logits = scores(model, tokens)
    safetensors.torch.save_file({"logits": logits.contiguous(), **others},
                                folder / "logits.safetensors")
    if name in ADAPTERS:
        make_adapter(folder, model, ADAPTERS[name], tokens)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name}: {size} bytes, largest logit {logits.abs().max():.3f}")


# Goldens with an adapter that PEFT wrote, and the modules that it changes: matrices one by one,
# several in one, heads by heads, the other way round.
ADAPTERS = {
    "llama_linear": ["q_proj", "v_proj", "down_proj"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "gpt_neox": ["query_key_value", "dense"],
    "gpt2": ["attn.c_attn", "mlp.c_proj"],
}


def make_adapter(folder, model, modules, tokens):
    """An adapter with a rank and a factor of its own for the last of the modules."""
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=modules, task_type="CAUSAL_LM",
                             rank_pattern={modules[-1]: 2}, alpha_pattern={modules[-1]: 7},
                             fan_in_fan_out=folder.name == "gpt2")
    model = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            if "lora_" in key:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    logits = scores(model.eval(), tokens)
    safetensors.torch.save_file({"logits": logits.contiguous()},
                                folder / "adapter" / "logits.safetensors")


def check(folder, tokens, file, adapter=None):
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                         output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            sys.exit(f"{folder}: {kind}: {sorted(report[kind])}")
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    ours = torch.from_numpy(np.load(file))
    theirs = scores(model.eval(), tokens)
    if ours.shape != theirs.shape:
        sys.exit(f"{file}: shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}")
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    print(f"{folder}: {type(model).__name__}, {len(tokens)} tokens, "
          f"largest relative difference {difference:.3g}")
    if not difference <= TOLERANCE:
        sys.exit(f"{folder}: above {TOLERANCE}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="goldens to make; none: all")
    parser.add_argument("--check", metavar="DIR", help="a checkpoint that this engine wrote")
    parser.add_argument("--adapter", metavar="DIR", help="with --check: an adapter on top")
    parser.add_argument("--tokens", help="with --check: ids separated by spaces")
    parser.add_argument("--logits", metavar="F.npy", help="with --check: what this engine computed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.check is None:
        for golden in models():
            if not options.names or golden[0] in options.names:
                make(*golden)
        return
    if not options.tokens or not options.logits:
        parser.error("--check needs --tokens and --logits")
    check(options.check, [int(word) for word in options.tokens.split()], options.logits,
          options.adapter)


if __name__ == "__main__":
    main()
