#!/usr/bin/env python3
"""Makes tests/model/golden: tiny models of published families and the scores that the
`transformers` library computes with them; and checks the other direction.

Setting up, once:

    python3 -m venv venv
    venv/bin/pip install torch transformers safetensors numpy

Making the goldens again (the same bytes, as long as these packages draw and add up alike):

    venv/bin/python scripts/make_model_goldens.py [NAME..]

Checking that transformers reads a checkpoint that this engine wrote and computes the same:

    build/pronghorn logits DIR --tokens "1 2 3" --out F.npy
    venv/bin/python scripts/make_model_goldens.py --check DIR --tokens "1 2 3" --logits F.npy

Everything runs on the processor, in float32, in the plain PyTorch form of each model.
"""

import argparse
import json
import math
import pathlib
import shutil
import sys

import numpy as np
import safetensors.torch
import torch
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Mamba2Config,
                          Mamba2ForCausalLM, MambaConfig, MambaForCausalLM, MistralConfig,
                          MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM)

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


def draw(name, parameter, generator):
    """Values for a parameter: none constant, so that a tensor swapped or ignored shows."""

    def uniform(low, high):
        return low + (high - low) * torch.rand(parameter.shape, generator=generator)

    if name.endswith("A_log"):
        return uniform(-1.0, 2.5)
    if name.endswith(("dt_bias", "dt_proj.bias")):
        return uniform(-4.0, 0.5)
    if name.endswith((".D", "norm.weight", "norm_f.weight")) or "layernorm" in name:
        return uniform(0.4, 1.6)
    if name.endswith("bias") or "conv1d" in name:
        return uniform(-0.6, 0.6)
    deviation = 1.0 if "embed" in name else 1 / math.sqrt(parameter.shape[-1])
    return deviation * torch.randn(parameter.shape, generator=generator)


def scores(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].float()


def make(name, config, cls):
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    model = cls(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            parameter.copy_(draw(key, parameter, generator))
    tokens = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator).tolist()
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "tokens.json").write_text(json.dumps(tokens) + "\n")
    logits = scores(model, tokens)
    safetensors.torch.save_file({"logits": logits.contiguous()}, folder / "logits.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {size} bytes, largest logit {logits.abs().max():.3f}")


def check(folder, tokens, file):
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                         output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            sys.exit(f"{folder}: {kind}: {sorted(report[kind])}")
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
    check(options.check, [int(word) for word in options.tokens.split()], options.logits)


if __name__ == "__main__":
    main()
