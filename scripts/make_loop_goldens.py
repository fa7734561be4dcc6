#!/usr/bin/env python3
"""Makes the goldens of tests/model/golden of families that the `transformers` library lacks: tiny
models, and the scores of plain loops in float64, written from the papers.

    venv/bin/pip install numpy safetensors
    venv/bin/python scripts/make_loop_goldens.py [NAME..]

The same numbers are drawn whenever this runs.
"""

import json
import math
import pathlib
import sys

import numpy as np
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "model" / "golden"
TOKENS = 70


def silu(x):
    return x / (1 + np.exp(-x))


def rms_norm(x, weight, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


class Weights:
    """Tensors as they are published, in float32 for the file and float64 for the loop."""

    def __init__(self):
        self.random = np.random.default_rng(1)
        self.tensors = {}

    def add(self, name, values):
        self.tensors[name] = np.ascontiguousarray(values, dtype=np.float32)
        return self.tensors[name].astype(np.float64)

    def uniform(self, name, shape, low, high):
        return self.add(name, self.random.uniform(low, high, shape))

    def matrix(self, name, out, width, deviation=None):
        deviation = 1 / math.sqrt(width) if deviation is None else deviation
        return self.add(name, deviation * self.random.standard_normal((out, width)))


def rotate(x, positions, theta):
    """Rotary positions (arXiv 2104.09864) of [tokens, heads, width]; pairs are half a head apart."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attention(weights, name, settings, hidden_size):
    """Softmax attention of a window: a token sees itself and the window - 1 tokens before it."""
    heads, kv_heads = settings["num_heads"], settings["num_kv_heads"] or settings["num_heads"]
    width = hidden_size // heads
    parts = {}
    for part, out in (("q", heads * width), ("k", kv_heads * width), ("v", kv_heads * width)):
        bias = 0.0
        matrix = weights.matrix(f"{name}.{part}_proj.weight", out, hidden_size)
        if settings["qkv_bias"]:
            bias = weights.uniform(f"{name}.{part}_proj.bias", out, -0.6, 0.6)
        parts[part] = (matrix, bias, out // width)
    output = weights.matrix(f"{name}.o_proj.weight", hidden_size, heads * width)

    def forward(x):
        count = len(x)
        q, k, v = ((x @ matrix.T + bias).reshape(count, own, width)
                   for matrix, bias, own in parts.values())
        positions = np.arange(count, dtype=np.float64)
        q, k = (rotate(part, positions, settings["rope_theta"]) for part in (q, k))
        seen = np.zeros((count, heads, width))
        for t in range(count):
            first = max(0, t + 1 - settings["window_size"]) if settings["window_size"] else 0
            for head in range(heads):
                own = head // (heads // kv_heads)
                scores = k[first:t + 1, own] @ q[t, head] / math.sqrt(width)
                shares = np.exp(scores - scores.max())
                seen[t, head] = shares @ v[first:t + 1, own] / shares.sum()
        return seen.reshape(count, heads * width) @ output.T

    return forward


def mamba(weights, name, config):
    """Mamba (arXiv 2312.00752, algorithm 2 and section 3.4)."""
    hidden_size, state, taps = config["hidden_size"], config["state_size"], config["conv_kernel"]
    inner, rank = int(config["expand"] * hidden_size), config["time_step_rank"]
    into = weights.matrix(f"{name}.in_proj.weight", 2 * inner, hidden_size)
    into_bias = out_bias = 0.0
    kernel = weights.uniform(f"{name}.conv1d.weight", (inner, 1, taps), -0.6, 0.6)[:, 0]
    kernel_bias = weights.uniform(f"{name}.conv1d.bias", inner, -0.6, 0.6)
    select = weights.matrix(f"{name}.x_proj.weight", rank + 2 * state, inner)
    step = weights.matrix(f"{name}.dt_proj.weight", inner, rank)
    step_bias = weights.uniform(f"{name}.dt_proj.bias", inner, -4.0, 0.5)
    A = -np.exp(weights.uniform(f"{name}.A_log", (inner, state), -1.0, 2.5))
    D = weights.uniform(f"{name}.D", inner, 0.4, 1.6)
    output = weights.matrix(f"{name}.out_proj.weight", hidden_size, inner)
    if config["use_bias"]:
        into_bias = weights.uniform(f"{name}.in_proj.bias", 2 * inner, -0.6, 0.6)
        out_bias = weights.uniform(f"{name}.out_proj.bias", hidden_size, -0.6, 0.6)

    def forward(x):
        given, gate = np.split(x @ into.T + into_bias, 2, axis=-1)
        before = np.concatenate([np.zeros((taps - 1, inner)), given])
        h = np.zeros((inner, state))
        rows = []
        for t in range(len(x)):
            u = silu((before[t:t + taps].T * kernel).sum(-1) + kernel_bias)
            low, B, C = np.split(select @ u, [rank, rank + state])
            dt = np.log1p(np.exp(step @ low + step_bias))[:, None]
            h = np.exp(dt * A) * h + dt * B * u[:, None]
            rows.append((h @ C + D * u) * silu(gate[t]))
        return np.array(rows) @ output.T + out_bias

    return forward


def feed_forward(weights, name, hidden_size, size):
    gate = weights.matrix(f"{name}.gate_proj.weight", size, hidden_size)
    up = weights.matrix(f"{name}.up_proj.weight", size, hidden_size)
    down = weights.matrix(f"{name}.down_proj.weight", hidden_size, size)
    return lambda x: (silu(x @ gate.T) * (x @ up.T)) @ down.T


def samba(config):
    """Samba (arXiv 2406.07522, section 2), with the names and the width of feed-forwards of the
    library flash-linear-attention."""
    weights = Weights()
    width, epsilon = config["hidden_size"], config["norm_eps"]
    size = -(-int(width * config["hidden_ratio"] * 2 / 3) // 256) * 256
    table = weights.matrix("backbone.embeddings.weight", config["vocab_size"], width, 1.0)
    layers = []
    for i in range(config["num_hidden_layers"]):
        name = f"backbone.layers.{i}"
        mixer = attention(weights, f"{name}.mixer", config["attn"], width) \
            if i in config["attn"]["layers"] else mamba(weights, f"{name}.mixer", config)
        norms = [weights.uniform(f"{name}.{norm}.weight", width, 0.4, 1.6)
                 for norm in ("mixer_norm", "mlp_norm")]
        layers.append((mixer, feed_forward(weights, f"{name}.mlp", width, size), *norms))
    last = weights.uniform("backbone.norm_f.weight", width, 0.4, 1.6)
    head = table if config["tie_word_embeddings"] else weights.matrix(
        "lm_head.weight", config["vocab_size"], width)

    def forward(tokens):
        x = table[tokens]
        for mixer, mlp, mixer_norm, mlp_norm in layers:
            x = x + mixer(rms_norm(x, mixer_norm, epsilon))
            x = x + mlp(rms_norm(x, mlp_norm, epsilon))
        return rms_norm(x, last, epsilon) @ head.T

    return weights, forward


def goldens():
    """Name, configuration, and the function that makes weights and a forward of it."""
    common = {"architectures": ["SambaForCausalLM"], "model_type": "samba", "vocab_size": 48,
              "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "swish",
              "max_position_embeddings": 256, "dtype": "float32"}
    # A window shorter than the text, and no multiple of a tile of 16.
    yield "samba", dict(common, hidden_size=12, num_hidden_layers=3, state_size=5, expand=2,
                        conv_kernel=4, time_step_rank=3, use_bias=False, use_conv_bias=True,
                        norm_eps=1e-5, hidden_ratio=4, tie_word_embeddings=False, attn={
                            "layers": [1], "num_heads": 3, "num_kv_heads": 3, "qkv_bias": False,
                            "window_size": 19, "rope_theta": 10000.0}), samba
    yield "samba_bias", dict(common, hidden_size=8, num_hidden_layers=3, state_size=4, expand=3,
                             conv_kernel=3, time_step_rank=2, use_bias=True, use_conv_bias=True,
                             norm_eps=1e-6, hidden_ratio=40, tie_word_embeddings=True, attn={
                                 "layers": [0, 2], "num_heads": 4, "num_kv_heads": 2,
                                 "qkv_bias": True, "window_size": None,
                                 "rope_theta": 500.0}), samba


def make(name, config, family):
    folder = ROOT / name
    folder.mkdir(parents=True, exist_ok=True)
    weights, forward = family(config)
    tokens = weights.random.integers(0, config["vocab_size"], TOKENS).tolist()
    logits = forward(tokens)
    save_file(weights.tensors, folder / "model.safetensors", {"format": "pt"})
    save_file({"logits": logits.astype(np.float32)}, folder / "logits.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokens.json").write_text(json.dumps(tokens) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {size} bytes, largest logit {np.abs(logits).max():.3f}")


if __name__ == "__main__":
    for golden in goldens():
        if len(sys.argv) == 1 or golden[0] in sys.argv[1:]:
            make(*golden)
