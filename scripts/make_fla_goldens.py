#!/usr/bin/env python3
"""Makes the goldens of flash-linear-attention's families under tests/model/golden, by its own code;
and checks the other direction, as make_model_goldens.py does for transformers.

    venv/bin/pip install torch transformers peft safetensors numpy flash-linear-attention
    venv/bin/python scripts/make_fla_goldens.py [NAME..]
    venv/bin/python scripts/make_fla_goldens.py --check DIR --tokens "1 2 3" --logits F.npy

Its kernels are for GPUs. Here Triton's interpreter runs them on the processor, which takes seconds
for each model of this size.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"

from triton.runtime.autotuner import Autotuner


def run_first(self, *arguments, **options):
    """In place of the tuner, which wants a GPU's clock: the first configuration."""
    first = self.configs[0].all_kwargs()
    for key in ("num_warps", "num_stages", "num_ctas", "maxnreg"):
        first.pop(key, None)
    return self.fn.run(*arguments, **options, **first)


Autotuner.run = run_first

from fla.models import (DeltaNetConfig, DeltaNetForCausalLM, GatedDeltaNetConfig,
                        GatedDeltaNetForCausalLM, GLAConfig, GLAForCausalLM, HGRN2Config,
                        HGRN2ForCausalLM, HGRNConfig, HGRNForCausalLM, KDAConfig, KDAForCausalLM,
                        RetNetConfig, RetNetForCausalLM, RWKV6Config, RWKV6ForCausalLM)

import make_model_goldens


def models():
    """Name, configuration and class of each golden."""
    common = {"vocab_size": make_model_goldens.VOCABULARY, "hidden_size": 32,
              "intermediate_size": 40, "fuse_swiglu": False,
              "fuse_cross_entropy": False,
              "attn_mode": "fused_recurrent"}  # the chunked kernels do not run there
    yield "gla", GLAConfig(**common, num_hidden_layers=2, num_heads=2), GLAForCausalLM
    yield "gla_conv", GLAConfig(
        **common, num_hidden_layers=2, num_heads=2, expand_k=1.0,
        use_short_conv=True, conv_size=3, tie_word_embeddings=True), GLAForCausalLM
    yield "retnet", RetNetConfig(**common, num_hidden_layers=2, num_heads=2), RetNetForCausalLM
    yield "retnet_relu", RetNetConfig(
        **common, num_hidden_layers=1, num_heads=4, expand_k=0.5, expand_v=1.0,
        feature_map="relu", use_output_gate=False), RetNetForCausalLM
    yield "hgrn2", HGRN2Config(**common, num_hidden_layers=3, expand_ratio=16), HGRN2ForCausalLM
    yield "hgrn2_free", HGRN2Config(
        **common, num_hidden_layers=2, expand_ratio=8, use_lower_bound=False), HGRN2ForCausalLM
    yield "hgrn", HGRNConfig(**common, num_hidden_layers=3), HGRNForCausalLM
    yield "hgrn_wide", HGRNConfig(**common, num_hidden_layers=2, expand_ratio=2,
                                  use_lower_bound=False, tie_word_embeddings=True), HGRNForCausalLM
    yield "delta_net", DeltaNetConfig(**common, num_hidden_layers=2, num_heads=2), \
        DeltaNetForCausalLM
    yield "delta_net_gate", DeltaNetConfig(
        **common, num_hidden_layers=2, num_heads=2, expand_k=0.5, use_gate=True,
        qk_activation="elu", allow_neg_eigval=True, use_short_conv=False), DeltaNetForCausalLM
    yield "gated_deltanet", GatedDeltaNetConfig(
        **common, num_hidden_layers=2, num_heads=2, head_dim=12, num_v_heads=4,
        expand_v=1.5), GatedDeltaNetForCausalLM
    yield "kda", KDAConfig(**common, num_hidden_layers=2, num_heads=2, head_dim=16), \
        KDAForCausalLM
    yield "kda_grouped", KDAConfig(
        **common, num_hidden_layers=2, num_heads=2, num_v_heads=4, head_dim=8, expand_v=1.5,
        allow_neg_eigval=True, use_short_conv=False, safe_gate=True, lower_bound=-5.0), \
        KDAForCausalLM
    rwkv = {key: value for key, value in common.items() if key != "fuse_swiglu"}
    yield "rwkv6", RWKV6Config(**rwkv, num_hidden_layers=2, num_heads=2, proj_low_rank_dim=4,
                               gate_low_rank_dim=6), RWKV6ForCausalLM
    yield "rwkv6_plain", RWKV6Config(
        **dict(rwkv, intermediate_size=None), num_hidden_layers=2, num_heads=4, expand_k=1.0,
        expand_v=1.5, proj_low_rank_dim=3, gate_low_rank_dim=5, hidden_ratio=1.5,
        norm_first=False, norm_bias=False, norm_eps=1e-3, tie_word_embeddings=True), \
        RWKV6ForCausalLM


if __name__ == "__main__":
    make_model_goldens.models = models
    make_model_goldens.main()
