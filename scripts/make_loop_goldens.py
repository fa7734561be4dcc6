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


def scan(weights, name, config):
    """Mamba between its projections, with norms on step sizes, B and C (arXiv 2403.19887)."""
    state, taps = config["mamba_d_state"], config["mamba_d_conv"]
    inner, rank = int(config["mamba_expand"] * config["hidden_size"]), config["mamba_dt_rank"]
    kernel = weights.uniform(f"{name}.conv1d.weight", (inner, 1, taps), -0.6, 0.6)[:, 0]
    kernel_bias = 0.0
    if config["mamba_conv_bias"]:
        kernel_bias = weights.uniform(f"{name}.conv1d.bias", inner, -0.6, 0.6)
    select = weights.matrix(f"{name}.x_proj.0.weight", rank + 2 * state, inner)
    step = weights.matrix(f"{name}.dt_proj.0.weight", inner, rank)
    step_bias = weights.uniform(f"{name}.dt_proj.0.bias", inner, -4.0, 0.5)
    A = -np.exp(weights.uniform(f"{name}.A_log.0", (inner, state), -1.0, 2.5))
    D = weights.uniform(f"{name}.D.0", inner, 0.4, 1.6)
    norms = None
    if config["mamba_inner_layernorms"]:
        norms = [weights.uniform(f"{name}.{part}_layernorm.weight", width, 0.4, 1.6)
                 for part, width in (("dt", rank), ("B", state), ("C", state))]

    def forward(given, gate):
        before = np.concatenate([np.zeros((taps - 1, inner)), given])
        h = np.zeros((inner, state))
        rows = []
        for t in range(len(given)):
            u = silu((before[t:t + taps].T * kernel).sum(-1) + kernel_bias)
            parts = np.split(select @ u, [rank, rank + state])
            if norms:
                parts = [rms_norm(part, weight, config["rms_norm_eps"])
                         for part, weight in zip(parts, norms)]
            low, B, C = parts
            dt = np.log1p(np.exp(step @ low + step_bias))[:, None]
            h = np.exp(dt * A) * h + dt * B * u[:, None]
            rows.append((h @ C + D * u) * silu(gate[t]))
        return np.array(rows)

    return forward


def hymba_layer(weights, name, config, window, borrows):
    """Hymba's layer (arXiv 2411.13676, section 2): a row sees the meta tokens, and in a window itself
    and `window` rows before it, as the published mask has it. Returns its keys and values, too."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads, meta = config["num_key_value_heads"], config["num_memory_tokens"]
    inner, dim = int(config["mamba_expand"] * width), width // heads
    value_dim, epsilon = inner // heads, config["rms_norm_eps"]
    own = [] if borrows else [kv_heads * dim, kv_heads * value_dim]
    widths = [width, *own, inner, inner]
    into = weights.matrix(f"{name}.in_proj.weight", sum(widths), width)
    output = weights.matrix(f"{name}.out_proj.weight", width, inner)
    into_bias = out_bias = 0.0
    if config["mamba_proj_bias"]:
        into_bias = weights.uniform(f"{name}.in_proj.bias", sum(widths), -0.6, 0.6)
        out_bias = weights.uniform(f"{name}.out_proj.bias", width, -0.6, 0.6)
    recurrence = scan(weights, name, config)
    norms = [weights.uniform(f"{name}.pre_avg_layernorm{i}.weight", inner, 0.4, 1.6)
             for i in (1, 2)]
    theta = config["rope_theta"]
    if config["rope_type"] == "ntk":
        grown = config["max_position_embeddings"] / config["orig_max_position_embeddings"]
        theta *= (2 * grown - 1) ** (dim / (dim - 2))

    def turned(x):
        positions = np.arange(len(x), dtype=np.float64)
        return rotate(x, positions, theta) if config["rope"] else x

    def forward(x, shared):
        count = len(x)
        parts = np.split(x @ into.T + into_bias, np.cumsum(widths)[:-1], axis=-1)
        q = turned(parts[0].reshape(count, heads, dim))
        if not borrows:
            shared = (turned(parts[1].reshape(count, kv_heads, dim)),
                      parts[2].reshape(count, kv_heads, value_dim))
        k, v = shared
        seen = np.zeros((count, heads, value_dim))
        for t in range(count):
            rows = [j for j in range(t + 1) if window is None or t - j <= window or j < meta]
            for head in range(heads):
                group = head // (heads // kv_heads)
                scores = k[rows, group] @ q[t, head] / math.sqrt(dim)
                shares = np.exp(scores - scores.max())
                seen[t, head] = shares @ v[rows, group] / shares.sum()
        both = (rms_norm(seen.reshape(count, inner), norms[0], epsilon)
                + rms_norm(recurrence(parts[-2], parts[-1]), norms[1], epsilon))
        return both / 2 @ output.T + out_bias, shared

    return forward


def hymba(config):
    """Hymba (arXiv 2411.13676), with the names of nvidia/Hymba-1.5B-Base. As in its code, meta tokens
    take the first positions and give no scores, and layers of a group read what its first made."""
    weights = Weights()
    width, epsilon = config["hidden_size"], config["rms_norm_eps"]
    size, count = config["intermediate_size"], config["num_hidden_layers"]
    groups = config["kv_reuse_group"]
    if groups is None:
        every = config["kv_reuse_every_i_layer"]
        groups = [list(range(i, min(i + every, count))) for i in range(0, count, every)] \
            if every > 0 else []
    lender = {layer: group[0] for group in groups for layer in group[1:]}
    table = weights.matrix("model.embed_tokens.weight", config["vocab_size"], width, 1.0)
    meta = np.zeros((0, width))
    if config["num_memory_tokens"] > 0:
        meta = weights.matrix("model.memory_tokens", config["num_memory_tokens"], width, 1.0)
    layers = []
    for i in range(count):
        name = f"model.layers.{i}"
        window = None if i in (config["global_attn_idx"] or []) else config["sliding_window"]
        mixer = hymba_layer(weights, f"{name}.mamba", config, window, i in lender)
        expert = f"{name}.moe.experts.0"
        if config["mlp_hidden_act"] == "silu":
            mlp = feed_forward(weights, expert, width, size)
        else:
            up = weights.matrix(f"{expert}.up_proj.weight", size, width)
            down = weights.matrix(f"{expert}.down_proj.weight", width, size)
            mlp = lambda x, up=up, down=down: np.maximum(x @ up.T, 0) ** 2 @ down.T
        norms = [weights.uniform(f"{name}.{norm}.weight", width, 0.4, 1.6)
                 for norm in ("input_layernorm", "pre_moe_layernorm")]
        layers.append((mixer, mlp, *norms))
    last = weights.uniform("model.final_layernorm.weight", width, 0.4, 1.6)
    head = table if config["tie_word_embeddings"] else weights.matrix(
        "lm_head.weight", config["vocab_size"], width)

    def forward(tokens):
        x = np.concatenate([meta, table[tokens]])
        made = {}
        for i, (mixer, mlp, mixer_norm, mlp_norm) in enumerate(layers):
            mixed, made[i] = mixer(rms_norm(x, mixer_norm, epsilon), made.get(lender.get(i)))
            x = x + mixed
            x = x + mlp(rms_norm(x, mlp_norm, epsilon))
        return (rms_norm(x, last, epsilon) @ head.T)[len(meta):]

    return weights, forward


def layer_norm(weights, name, width, epsilon, bias=True):
    scale = weights.uniform(f"{name}.weight", width, 0.4, 1.6)
    shift = weights.uniform(f"{name}.bias", width, -0.6, 0.6) if bias else 0.0

    def forward(x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale + shift

    return forward


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def shifted(x):
    return np.concatenate([np.zeros_like(x[:1]), x[:-1]])


def time_mix(weights, name, config, layer):
    """RWKV-7's time mixing (arXiv 2503.14456, section 4). Returns the values of the first layer, too."""
    width = config["hidden_size"]
    dim = config["head_dim"] or width // config["num_heads"]
    heads = width // dim
    shape = (width,) if config.get("negative_eigenvalues") else (1, 1, width)
    mixes = {s: weights.uniform(f"{name}.x_{s}", shape, 0.0, 1.0).reshape(width) for s in "rwkvag"}
    r_proj, k_proj, v_proj, o_proj = (weights.matrix(f"{name}.{part}_proj.weight", width, width)
                                      for part in "rkvo")
    lora = {}
    for part, key in (("w", "decay"), ("a", "a"), ("v", "v"), ("g", "gate")):
        if part == "v" and layer == 0:
            continue
        rank = config[f"{key}_low_rank_dim"]
        down = weights.matrix(f"{name}.{part}_lora.lora.0.weight", rank, width)
        up = weights.matrix(f"{name}.{part}_lora.lora.2.weight", width, rank)
        bias = 0.0 if part == "g" else weights.uniform(f"{name}.{part}_lora.lora.2.bias", width,
                                                       -2.0, 2.0)
        lora[part] = (down, up, bias)
    k_k, k_a = (weights.uniform(f"{name}.{part}", width, 0.4, 1.6) for part in ("k_k", "k_a"))
    r_k = weights.uniform(f"{name}.r_k", (heads, dim), -0.6, 0.6)
    scale = weights.uniform(f"{name}.g_norm.weight", width, 0.4, 1.6)
    shift = weights.uniform(f"{name}.g_norm.bias", width, -0.6, 0.6)

    def low_rank(part, x, activation=lambda x: x):
        down, up, bias = lora[part]
        return activation(x @ down.T) @ up.T + bias

    def forward(x, first):
        count = len(x)
        by_head = lambda t: t.reshape(count, heads, dim)
        mixed = {s: x + (shifted(x) - x) * mix for s, mix in mixes.items()}
        r, k, v = mixed["r"] @ r_proj.T, mixed["k"] @ k_proj.T, mixed["v"] @ v_proj.T
        w = np.exp(-math.exp(-0.5) * sigmoid(low_rank("w", mixed["w"], np.tanh)))
        rate = sigmoid(low_rank("a", mixed["a"]))
        gate = low_rank("g", mixed["g"], sigmoid)
        if layer == 0:
            first = v
        else:
            v = v + (first - v) * sigmoid(low_rank("v", mixed["v"]))
        removed = by_head(k * k_k)
        removed = removed / np.sqrt((removed * removed).sum(-1, keepdims=True))
        k = k * (1 + (rate - 1) * k_a)
        r, k, v, w, rate = (by_head(t) for t in (r, k, v, w, rate))
        out = np.zeros((count, heads, dim))
        for head in range(heads):
            state = np.zeros((dim, dim))  # [value, key]
            for t in range(count):
                taken, put = removed[t, head], removed[t, head] * rate[t, head]
                if config.get("negative_eigenvalues"):
                    put = put * (1 + w[t, head])
                state = (state * w[t, head] - np.outer(state @ taken, put)
                         + np.outer(v[t, head], k[t, head]))
                out[t, head] = state @ r[t, head]
        out = out - out.mean(-1, keepdims=True)
        out = out / np.sqrt((out * out).mean(-1, keepdims=True) + dim * config["norm_eps"])
        out = out.reshape(count, width) * scale + shift
        bonus = (r * k * r_k).sum(-1, keepdims=True) * v
        return ((out + bonus.reshape(count, width)) * gate) @ o_proj.T, first

    return forward


def first_time_mix(weights, name, config):
    """The same as the first layer of this engine's own configuration."""
    mix = time_mix(weights, name, dict(config, norm_eps=config["epsilon"]), 0)
    return lambda x: mix(x, None)[0]


def channel_mix(weights, name, config):
    width, size = config["hidden_size"], config["intermediate_size"]
    if size is None:
        size = -(-int(width * config["hidden_ratio"]) // 32) * 32
    mix = weights.uniform(f"{name}.x_k", width, 0.0, 1.0)
    key = weights.matrix(f"{name}.key.weight", size, width)
    value = weights.matrix(f"{name}.value.weight", width, size)
    return lambda x: np.maximum((x + (shifted(x) - x) * mix) @ key.T, 0) ** 2 @ value.T


def rwkv7(config):
    """RWKV-7 (arXiv 2503.14456), with the names of the library flash-linear-attention."""
    weights = Weights()
    width, epsilon, bias = config["hidden_size"], config["norm_eps"], config["norm_bias"]
    norm = lambda name: layer_norm(weights, name, width, epsilon, bias)
    table = weights.matrix("model.embeddings.weight", config["vocab_size"], width, 1.0)
    before = norm("model.layers.0.pre_norm") if config["norm_first"] else lambda x: x
    layers = []
    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}"
        layers.append((norm(f"{name}.attn_norm"), time_mix(weights, f"{name}.attn", config, i),
                       norm(f"{name}.ffn_norm"), channel_mix(weights, f"{name}.ffn", config)))
    last = norm("model.norm")
    head = table if config["tie_word_embeddings"] else weights.matrix(
        "lm_head.weight", config["vocab_size"], width)

    def forward(tokens):
        x, first = before(table[tokens]), None
        for mixer_norm, mixer, ffn_norm, ffn in layers:
            mixed, first = mixer(mixer_norm(x), first)
            x = x + mixed
            x = x + ffn(ffn_norm(x))
        return last(x) @ head.T

    return weights, forward


def turned(x, angles):
    """Neighbouring columns of [heads, width] turned by the angles [heads, pairs], as many as there
    are."""
    y = x.copy()
    pairs = angles.shape[-1]
    a, b = x[:, 0:2 * pairs:2], x[:, 1:2 * pairs:2]
    y[:, 0:2 * pairs:2] = a * np.cos(angles) - b * np.sin(angles)
    y[:, 1:2 * pairs:2] = a * np.sin(angles) + b * np.cos(angles)
    return y


def halves_turned(x, angles):
    """The same of columns that are half the width apart."""
    y = x.copy()
    pairs, half = angles.shape[-1], x.shape[-1] // 2
    a, b = x[:, :pairs], x[:, half:half + pairs]
    y[:, :pairs] = a * np.cos(angles) - b * np.sin(angles)
    y[:, half:half + pairs] = a * np.sin(angles) + b * np.cos(angles)
    return y


def mamba3_layer(weights, name, config):
    """Mamba-3 with one input and output a head (arXiv 2603.15569), or with several."""
    if config["is_mimo"]:
        own = {"heads": config["expand"] * config["hidden_size"] // config["head_dim"],
               "rank": config["mimo_rank"], "state": config["state_size"],
               "groups": config["n_groups"], "epsilon": config["norm_eps"],
               "least_rate": config["A_floor"], "output_norm": config["is_outproj_norm"]}
        return mamba3_mimo(weights, name, {**config, **own}, published=True)
    width, state, dim = config["hidden_size"], config["state_size"], config["head_dim"]
    groups, inner = config["n_groups"], config["expand"] * config["hidden_size"]
    heads, epsilon = inner // dim, config["norm_eps"]
    pairs = int(state * config["rope_fraction"]) // 2
    sizes = [inner, inner, groups * state, groups * state, heads, heads, heads, pairs]
    into = weights.matrix(f"{name}.in_proj.weight", sum(sizes), width)
    into_bias = out_bias = 0.0
    if config["use_bias"]:
        into_bias = weights.uniform(f"{name}.in_proj.bias", sum(sizes), -0.6, 0.6)
        out_bias = weights.uniform(f"{name}.out_proj.bias", width, -0.6, 0.6)
    dt_bias = weights.uniform(f"{name}.dt_bias", heads, -2.0, 0.5)
    B_bias = weights.uniform(f"{name}.B_bias", (heads, 1, state), 0.4, 1.6)[:, 0]
    C_bias = weights.uniform(f"{name}.C_bias", (heads, 1, state), 0.4, 1.6)[:, 0]
    B_norm = weights.uniform(f"{name}.B_norm.weight", state, 0.4, 1.6)
    C_norm = weights.uniform(f"{name}.C_norm.weight", state, 0.4, 1.6)
    D = weights.uniform(f"{name}.D", heads, 0.4, 1.6)[:, None]
    norm = weights.uniform(f"{name}.norm.weight", inner, 0.4, 1.6) \
        if config["is_outproj_norm"] else None
    output = weights.matrix(f"{name}.out_proj.weight", width, inner)

    def of_heads(row, weight, bias):
        normed = rms_norm(row.reshape(groups, state), weight, epsilon)
        return np.repeat(normed, heads // groups, 0) + bias

    def forward(x):
        rows = []
        angles = np.zeros((heads, pairs))
        h = np.zeros((heads, state, dim))
        before = np.zeros((heads, state, dim))  # what the token before wrote, without its strength
        for projected in x @ into.T + into_bias:
            z, own, B, C, dt, rate, share, turn = np.split(projected, np.cumsum(sizes)[:-1])
            own = own.reshape(heads, dim)
            dt = np.log1p(np.exp(dt + dt_bias))
            a = np.exp(-np.maximum(np.log1p(np.exp(rate)), config["A_floor"]) * dt)[:, None, None]
            late = ((1 - sigmoid(share)) * dt)[:, None, None]
            now = (sigmoid(share) * dt)[:, None, None]
            angles = angles + np.tanh(turn) * math.pi * dt[:, None]
            B = turned(of_heads(B, B_norm, B_bias), angles)
            C = turned(of_heads(C, C_norm, C_bias), angles)
            write = B[:, :, None] * own[:, None, :]
            h = a * h + late * a * before + now * write
            before = write
            y = (C[:, :, None] * h).sum(1) + D * own
            if norm is not None:
                y = rms_norm(y, norm.reshape(heads, dim), epsilon)
            rows.append(y.reshape(inner) * silu(z))
        return np.array(rows) @ output.T + out_bias

    return forward


def mamba3(config):
    """Mamba-3, with the names of the library flash-linear-attention."""
    weights = Weights()
    width, epsilon = config["hidden_size"], config["norm_eps"]
    table = weights.matrix("backbone.embeddings.weight", config["vocab_size"], width, 1.0)
    layers = []
    for i in range(config["num_hidden_layers"]):
        name = f"backbone.layers.{i}"
        norm = weights.uniform(f"{name}.norm.weight", width, 0.4, 1.6)
        layers.append((norm, mamba3_layer(weights, f"{name}.mixer", config)))
    last = weights.uniform("backbone.norm_f.weight", width, 0.4, 1.6)
    head = table if config["tie_word_embeddings"] else weights.matrix(
        "lm_head.weight", config["vocab_size"], width)

    def forward(tokens):
        x = table[tokens]
        for norm, mixer in layers:
            x = x + mixer(rms_norm(x, norm, epsilon))
        return rms_norm(x, last, epsilon) @ head.T

    return weights, forward


def linear_attention(weights, name, config):
    """Linear attention (arXiv 2006.16236, equations 4 and 16 to 20)."""
    width, heads = config["hidden_size"], config["heads"]
    dim, value_dim = config["head_dim"], config["value_head_dim"]
    q_proj = weights.matrix(f"{name}.q_proj.weight", heads * dim, width)
    k_proj = weights.matrix(f"{name}.k_proj.weight", heads * dim, width)
    v_proj = weights.matrix(f"{name}.v_proj.weight", heads * value_dim, width)
    output = weights.matrix(f"{name}.o_proj.weight", width, heads * value_dim)
    norm = weights.uniform(f"{name}.norm.weight", value_dim, 0.4, 1.6) \
        if config["output_norm"] == "rmsnorm" else None
    feature = {"elu": lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
               "exp": lambda x: np.exp(30 * np.tanh(x / 30))}[config["feature_map"]]

    def forward(x):
        q, k = ((feature(x @ matrix.T)).reshape(len(x), heads, dim) for matrix in (q_proj, k_proj))
        v = (x @ v_proj.T).reshape(len(x), heads, value_dim)
        out = np.zeros((len(x), heads, value_dim))
        for head in range(heads):
            state, total = np.zeros((dim, value_dim)), np.zeros(dim)
            for t in range(len(x)):
                state = state + np.outer(k[t, head], v[t, head])
                total = total + k[t, head]
                out[t, head] = q[t, head] @ state / math.sqrt(dim)
                if config["normalizer"]:
                    out[t, head] = q[t, head] @ state / (q[t, head] @ total)
        if norm is not None:
            out = rms_norm(out, norm, config["epsilon"])
        return out.reshape(len(x), heads * value_dim) @ output.T

    return forward


def lightning(weights, name, config):
    """Lightning attention (arXiv 2501.08313, section 2.2)."""
    width, heads, dim = config["hidden_size"], config["heads"], config["head_dim"]
    q_proj, k_proj, v_proj = (weights.matrix(f"{name}.{part}_proj.weight", heads * dim, width)
                              for part in "qkv")
    gate = weights.matrix(f"{name}.output_gate.weight", heads * dim, width)
    output = weights.matrix(f"{name}.out_proj.weight", width, heads * dim)
    norm = weights.uniform(f"{name}.norm.weight", heads * dim, 0.4, 1.6)
    factor = 1 - config["layer"] / (config["depth"] - 1 + 1e-5) + 1e-5

    def forward(x):
        q, k, v = (silu(x @ matrix.T).reshape(len(x), heads, dim)
                   for matrix in (q_proj, k_proj, v_proj))
        out = np.zeros((len(x), heads, dim))
        for head in range(heads):
            decay = math.exp(-2 ** (-8 * (head + 1) / heads) * factor)
            state = np.zeros((dim, dim))
            for t in range(len(x)):
                state = decay * state + np.outer(k[t, head], v[t, head])
                out[t, head] = q[t, head] @ state
        out = rms_norm(out.reshape(len(x), heads * dim), norm, config["epsilon"])
        return (out * sigmoid(x @ gate.T)) @ output.T

    return forward


def chunk_attention(q, k, v, chunk, scale):
    """Softmax attention of [tokens, heads, width] in which a token sees those of its chunk that are
    before it, and itself."""
    seen = np.zeros_like(v)
    for t in range(len(q)):
        first = t // chunk * chunk
        for head in range(q.shape[1]):
            scores = k[first:t + 1, head] @ q[t, head] * scale
            shares = np.exp(scores - scores.max())
            seen[t, head] = shares @ v[first:t + 1, head] / shares.sum()
    return seen


def moving_average(x, poles, into, out, omega):
    """y_t = Re sum_n out_n h_n,t + omega x_t with h_n,t = poles_n h_n,t-1 + into_n x_t; x [tokens,
    channels], the others but omega [channels, n]."""
    h = np.zeros(poles.shape, dtype=complex)
    rows = []
    for row in x:
        h = poles * h + into * row[:, None]
        rows.append((out * h).real.sum(-1) + omega * row)
    return np.array(rows)


def shared_heads(weights, name, z_dim, heads, rope):
    """Queries and keys made of one vector: z gamma + beta, turned."""
    parts = [(weights.uniform(f"{name}.{part}_gamma", z_dim, 0.5, 1.6),
              weights.uniform(f"{name}.{part}_beta", z_dim, -0.6, 0.6)) for part in "qk"]

    def forward(z):
        positions = np.arange(len(z), dtype=np.float64)
        return [rotate((z * gamma + beta).reshape(len(z), heads, z_dim // heads), positions,
                       rope["theta"]) for gamma, beta in parts]

    return forward


def mega(weights, name, config):
    """MEGA (arXiv 2209.10655, equations 2 and 9 to 16), less the input that its gated residual
    adds, with the names and the scale of the authors' code."""
    width, averages, chunk = config["hidden_size"], config["ndim"], config["chunk_size"]
    z_dim, value_dim = config["z_dim"], config["value_dim"]
    delta = weights.uniform(f"{name}.move.delta", (width, averages), -2.0, 2.0)
    alpha = weights.uniform(f"{name}.move.alpha", (width, averages), -2.0, 2.0)
    beta = weights.uniform(f"{name}.move.beta", (width, averages), -1.5, 1.5)
    gamma = weights.uniform(f"{name}.move.gamma", (width, averages), -1.5, 1.5)
    omega = weights.uniform(f"{name}.move.omega", width, -1.0, 1.0)
    sizes = [width, z_dim, value_dim, width]
    v_proj = weights.matrix(f"{name}.v_proj.weight", value_dim, width)
    v_bias = weights.uniform(f"{name}.v_proj.bias", value_dim, -0.6, 0.6)
    mx_proj = weights.matrix(f"{name}.mx_proj.weight", sum(sizes), width)
    mx_bias = weights.uniform(f"{name}.mx_proj.bias", sum(sizes), -0.6, 0.6)
    h_proj = weights.matrix(f"{name}.h_proj.weight", width, value_dim)
    h_bias = weights.uniform(f"{name}.h_proj.bias", width, -0.6, 0.6)
    queries_and_keys = shared_heads(weights, name, z_dim, 1, config["rope"])

    def forward(x):
        p = sigmoid(delta)
        average = silu(moving_average(x, 1 - p * sigmoid(alpha), p * beta,
                                      gamma / math.sqrt(averages), omega))
        v = silu(x @ v_proj.T + v_bias)[:, None, :]
        phi, z, r, h = np.split(average @ mx_proj.T + mx_bias, np.cumsum(sizes)[:-1], axis=-1)
        q, k = queries_and_keys(silu(z))
        seen = chunk_attention(q, k, v, chunk, 1 / math.sqrt(z_dim))[:, 0]
        candidate = silu(h + (silu(r) * seen) @ h_proj.T + h_bias)
        return sigmoid(phi) * (candidate - x)

    return forward


def timestep_norm(x, weight, bias, groups, epsilon):
    """Megalodon's norm (arXiv 2404.08801, section 3.2) by mean and variance of all that came."""
    parts = x.reshape(len(x), groups, -1)
    rows = []
    for t in range(len(x)):
        so_far = parts[:t + 1].transpose(1, 0, 2).reshape(groups, -1)
        mean, variance = so_far.mean(-1, keepdims=True), so_far.var(-1, keepdims=True)
        rows.append(((parts[t] - mean) / np.sqrt(variance + epsilon)).reshape(-1))
    return np.array(rows) * weight + bias


def megalodon(weights, name, config):
    """Megalodon (arXiv 2404.08801, sections 3.1 to 3.3), with the names and the scales of the
    authors' code."""
    width, averages, chunk = config["hidden_size"], config["cema_ndim"], config["chunk_size"]
    z_dim, value_dim, heads = config["z_dim"], config["value_dim"], config["heads"]
    epsilon = config["epsilon"]
    norm_weight = weights.uniform(f"{name}.timenorm.weight", width, 0.4, 1.6)
    norm_bias = weights.uniform(f"{name}.timenorm.bias", width, -0.6, 0.6)
    alpha = weights.uniform(f"{name}.cema.alpha", (width, averages), -2.0, 2.0)
    delta = weights.uniform(f"{name}.cema.delta", (width, averages), -2.0, 2.0)
    theta = weights.uniform(f"{name}.cema.theta", width, -2.0, 2.0)[:, None]
    gamma = weights.uniform(f"{name}.cema.gamma", (width, averages, 2), -1.0, 1.0)
    omega = weights.uniform(f"{name}.cema.omega", width, -1.0, 1.0)
    rmsnorm = weights.uniform(f"{name}.rmsnorm.weight", width, 0.4, 1.6)
    matrices = {}
    for part, out, into in (("wv", value_dim, width), ("wz", z_dim, width),
                            ("wr", value_dim, width), ("wh1", width, width)):
        matrices[part] = (weights.matrix(f"{name}.{part}.weight", out, into),
                          weights.uniform(f"{name}.{part}.bias", out, -0.6, 0.6))
    wh2 = weights.matrix(f"{name}.wh2.weight", width, value_dim)
    queries_and_keys = shared_heads(weights, name, z_dim, heads, config["rope"])

    def forward(x):
        def project(part, given):
            return given @ matrices[part][0].T + matrices[part][1]

        t = timestep_norm(x, norm_weight, norm_bias, config["norm_num_groups"], epsilon)
        p = sigmoid(alpha)
        turns = np.arange(1, averages + 1) * sigmoid(theta) * 2 * math.pi / averages
        poles = (1 - p * sigmoid(delta)) * np.exp(1j * turns)
        read = (gamma[..., 0] + 1j * gamma[..., 1]) / math.sqrt(averages)
        average = rms_norm(moving_average(t, poles, p, read, omega), rmsnorm, epsilon)
        z = project("wz", average).reshape(len(x), heads, -1)
        z = rms_norm(z, 1.0, epsilon) / math.sqrt(z_dim // heads)
        q, k = queries_and_keys(z.reshape(len(x), z_dim))
        v = silu(project("wv", t)).reshape(len(x), heads, -1)
        seen = chunk_attention(q, k, v, chunk, 1.0).reshape(len(x), value_dim)
        return project("wh1", average) + (seen * silu(project("wr", average))) @ wh2.T

    return forward


def mamba3_mimo(weights, name, config, published=False):
    """Mamba-3 with several inputs and outputs a head (arXiv 2603.15569): one state a head, whose
    writes and reads are matrices of `rank` columns. published: the layout of the library
    flash-linear-attention, whose kernels turn columns that are half the state apart
    (state-spaces/mamba, mamba3_mimo_rotary_step.py)."""
    width, heads, dim, rank = (config[key] for key in ("hidden_size", "heads", "head_dim", "rank"))
    state, groups, epsilon = config["state"], config["groups"], config["epsilon"]
    inner, pairs = heads * dim, int(state * config["rope_fraction"]) // 2
    sizes = [inner, inner, rank * groups * state, rank * groups * state, heads, heads, heads, pairs]
    into = weights.matrix(f"{name}.in_proj.weight", sum(sizes), width)
    into_bias = out_bias = 0.0
    if config.get("use_bias"):
        into_bias = weights.uniform(f"{name}.in_proj.bias", sum(sizes), -0.6, 0.6)
        out_bias = weights.uniform(f"{name}.out_proj.bias", width, -0.6, 0.6)

    def by_rank(part, columns, low, high):
        shape = (heads, rank, columns) if published else (rank, heads, columns)
        values = weights.uniform(f"{name}.{part}", shape, low, high)
        return values.swapaxes(0, 1) if published else values

    dt_bias = weights.uniform(f"{name}.dt_bias", heads, -2.0, 0.5)
    B_bias = by_rank("B_bias", state, 0.4, 1.6)
    C_bias = by_rank("C_bias", state, 0.4, 1.6)
    B_norm = weights.uniform(f"{name}.B_norm.weight", state, 0.4, 1.6)
    C_norm = weights.uniform(f"{name}.C_norm.weight", state, 0.4, 1.6)
    D = weights.uniform(f"{name}.D", heads, 0.4, 1.6)[:, None]
    norm = weights.uniform(f"{name}.norm.weight", inner, 0.4, 1.6).reshape(heads, dim) \
        if config["output_norm"] else None
    mimo_x, mimo_z, mimo_o = (by_rank(f"mimo_{part}", dim, -1.2, 1.2) for part in "xzo")
    turn_columns = halves_turned if published else turned
    output = weights.matrix(f"{name}.out_proj.weight", width, inner)

    def of_heads(row, weight, bias, angles):
        normed = rms_norm(row.reshape(rank, groups, state), weight, epsilon)
        keys = np.repeat(normed, heads // groups, 1) + bias
        return np.array([turn_columns(part, angles) for part in keys])

    def forward(x):
        rows = []
        angles = np.zeros((heads, pairs))
        h = np.zeros((heads, state, dim))
        before = np.zeros((heads, state, dim))
        for projected in x @ into.T + into_bias:
            z, own, B, C, dt, rate, share, turn = np.split(projected, np.cumsum(sizes)[:-1])
            inputs = own.reshape(heads, dim) * mimo_x
            gates = silu(z.reshape(heads, dim) * mimo_z)
            dt = np.log1p(np.exp(dt + dt_bias))
            a = np.exp(-np.maximum(np.log1p(np.exp(rate)), config["least_rate"]) * dt)
            late, now = (1 - sigmoid(share)) * dt, sigmoid(share) * dt
            angles = angles + np.tanh(turn) * math.pi * dt[:, None]
            B, C = of_heads(B, B_norm, B_bias, angles), of_heads(C, C_norm, C_bias, angles)
            write = np.einsum("rhn,rhp->hnp", B, inputs)
            a, late, now = (values[:, None, None] for values in (a, late, now))
            h = a * h + late * a * before + now * write
            before = write
            y = np.einsum("rhn,hnp->rhp", C, h) + D * inputs
            if norm is not None:
                y = rms_norm(y, norm, epsilon)
            rows.append((y * gates * mimo_o).sum(0).reshape(inner))
        return np.array(rows) @ output.T + out_bias

    return forward


def own_format(config):
    """Layers of this engine's own configuration, a mixer in each block."""
    makers = {"linear_attention": linear_attention, "lightning": lightning, "mega": mega,
              "megalodon": megalodon, "mamba3": mamba3_mimo, "rwkv7": first_time_mix}
    weights = Weights()
    width, style = config["hidden_size"], config["norm"]
    table = weights.matrix("embeddings.weight", config["vocab_size"], width, 1.0)

    def norm(name):
        if style["type"] == "layer_norm":
            return layer_norm(weights, name, width, style["epsilon"])
        weight = weights.uniform(f"{name}.weight", width, 0.4, 1.6)
        return lambda x: rms_norm(x, weight, style["epsilon"])

    layers = []
    for i, letter in enumerate(config["pattern"]):
        name, block = f"layers.{i}", config["blocks"][letter]
        settings = dict(block["mixer"], hidden_size=width, epsilon=style["epsilon"], layer=i,
                        depth=len(config["pattern"]))
        before = None if block.get("norms") == "ffn" else norm(f"{name}.mixer_norm")
        mixer = makers[settings["type"]](weights, f"{name}.mixer", settings)
        ffn_norm = ffn = None
        if "ffn" in block:
            ffn_norm = norm(f"{name}.ffn_norm")
            ffn = feed_forward(weights, f"{name}.ffn", width, block["ffn"]["size"])
        layers.append((block, before, mixer, ffn_norm, ffn))
    last = norm("norm")

    def forward(tokens):
        x = table[tokens]
        for block, before, mixer, ffn_norm, ffn in layers:
            given = x if before is None else before(x)
            from_norms = "norm_residual" in block  # the stream goes on from what norms give
            start = given if from_norms else x
            mixed = start + mixer(given)
            if ffn is None:
                x = mixed
                continue
            inner = ffn_norm(mixed)
            two_hop = block.get("residual") == "two_hop"
            x = (start if two_hop else inner if from_norms else mixed) + ffn(inner)
        return last(x) @ table.T

    return weights, forward


def both_ways(weights, names, sizes, theta, bias):
    """Softmax attention in which every token sees all others."""
    heads, kv_heads, hidden_size = sizes
    width = hidden_size // heads
    parts = []
    for name, own in zip(names, (heads, kv_heads, kv_heads)):
        matrix = weights.matrix(f"{name}.weight", own * width, hidden_size)
        shift = weights.uniform(f"{name}.bias", own * width, -0.6, 0.6) if bias else 0.0
        parts.append((matrix, shift, own))
    output = weights.matrix(f"{names[3]}.weight", hidden_size, heads * width)

    def forward(x):
        count = len(x)
        q, k, v = ((x @ matrix.T + shift).reshape(count, own, width)
                   for matrix, shift, own in parts)
        positions = np.arange(count, dtype=np.float64)
        q, k = (rotate(part, positions, theta) for part in (q, k))
        seen = np.zeros((count, heads, width))
        for t in range(count):
            for head in range(heads):
                group = head // (heads // kv_heads)
                scores = k[:, group] @ q[t, head] / math.sqrt(width)
                shares = np.exp(scores - scores.max())
                seen[t, head] = shares @ v[:, group] / shares.sum()
        return seen.reshape(count, heads * width) @ output.T

    return forward


def blocks_of_heads(weights, name, config, block):
    """Grouped attention with a norm of each head's query and key (arXiv 2505.09388). A token sees
    the tokens of its block and of those before it; block None: all tokens."""
    heads, kv_heads, hidden_size = (config[key] for key in (
        "num_attention_heads", "num_key_value_heads", "hidden_size"))
    width = config.get("head_dim") or hidden_size // heads
    parts = [(weights.matrix(f"{name}.{part}_proj.weight", own * width, hidden_size), own)
             for part, own in (("q", heads), ("k", kv_heads), ("v", kv_heads))]
    norms = [weights.uniform(f"{name}.{part}_norm.weight", width, 0.4, 1.6) for part in "qk"]
    output = weights.matrix(f"{name}.o_proj.weight", hidden_size, heads * width)

    def forward(x):
        count = len(x)
        q, k, v = ((x @ matrix.T).reshape(count, own, width) for matrix, own in parts)
        positions = np.arange(count, dtype=np.float64)
        q, k = (rotate(rms_norm(part, norm, config["rms_norm_eps"]), positions,
                       config["rope_theta"]) for part, norm in zip((q, k), norms))
        seen = np.zeros((count, heads, width))
        for t in range(count):
            end = count if block is None else min(count, (t // block + 1) * block)
            for head in range(heads):
                group = head // (heads // kv_heads)
                scores = k[:end, group] @ q[t, head] / math.sqrt(width)
                shares = np.exp(scores - scores.max())
                seen[t, head] = shares @ v[:end, group] / shares.sum()
        return seen.reshape(count, heads * width) @ output.T

    return forward


def chosen_experts(weights, name, config):
    """Experts that a softmax over all of them chooses; their shares are not made to add up to 1
    (OLMoE, arXiv 2409.02060)."""
    width, size = config["hidden_size"], config["expert_intermediate_size"]
    count, top = config["num_experts"], config["num_experts_per_tok"]
    router = weights.matrix(f"{name}.gate.weight", count, width)
    experts = [gated(weights, [f"{name}.experts.{e}.{part}_proj" for part in
                               ("gate", "up", "down")], width, size) for e in range(count)]

    def forward(x):
        out = np.zeros_like(x)
        for t, row in enumerate(x):
            scores = np.exp(router @ row - (router @ row).max())
            shares = scores / scores.sum()
            for e in np.argsort(-shares)[:top]:
                out[t] += shares[e] * experts[e](row[None])[0]
        return out

    return forward


def gated(weights, names, hidden_size, size):
    gate, up = (weights.matrix(f"{name}.weight", size, hidden_size) for name in names[:2])
    down = weights.matrix(f"{names[2]}.weight", hidden_size, size)
    return lambda x: (silu(x @ gate.T) * (x @ up.T)) @ down.T


def stack(table, layers, last, head, epsilon):
    def forward(tokens):
        x = table[tokens]
        for mixer, mlp, mixer_norm, mlp_norm in layers:
            x = x + mixer(rms_norm(x, mixer_norm, epsilon))
            x = x + mlp(rms_norm(x, mlp_norm, epsilon))
        return rms_norm(x, last, epsilon) @ head.T

    return forward


def llada(config):
    """LLaDA (arXiv 2502.09992, appendix B.2), with the names of GSAI-ML/LLaDA-8B-Base."""
    weights = Weights()
    width, top = config["d_model"], "model.transformer"
    sizes = config["n_heads"], config["n_kv_heads"], width
    table = weights.matrix(f"{top}.wte.weight", config["embedding_size"], width, 1.0)
    layers = []
    for i in range(config["n_layers"]):
        name = f"{top}.blocks.{i}"
        mixer = both_ways(weights, [f"{name}.{part}" for part in
                                    ("q_proj", "k_proj", "v_proj", "attn_out")],
                          sizes, config["rope_theta"], False)
        mlp = gated(weights, [f"{name}.{part}" for part in ("ff_proj", "up_proj", "ff_out")],
                    width, config["mlp_hidden_size"])
        norms = [weights.uniform(f"{name}.{norm}.weight", width, 0.4, 1.6)
                 for norm in ("attn_norm", "ff_norm")]
        layers.append((mixer, mlp, *norms))
    last = weights.uniform(f"{top}.ln_f.weight", width, 0.4, 1.6)
    head = table if config["weight_tying"] else weights.matrix(
        f"{top}.ff_out.weight", config["embedding_size"], width)
    return weights, stack(table, layers, last, head, config["rms_norm_eps"])


def dream(config):
    """Dream (arXiv 2508.15487, section 3), with the names of Dream-org/Dream-v0-Base-7B. Scores are
    those of the rows, which are of the tokens after them."""
    weights = Weights()
    width = config["hidden_size"]
    sizes = config["num_attention_heads"], config["num_key_value_heads"], width
    table = weights.matrix("model.embed_tokens.weight", config["vocab_size"], width, 1.0)
    layers = []
    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}"
        mixer = both_ways(weights, [f"{name}.self_attn.{part}_proj" for part in "qkvo"], sizes,
                          config["rope_theta"], True)
        mlp = gated(weights, [f"{name}.mlp.{part}_proj" for part in ("gate", "up", "down")],
                    width, config["intermediate_size"])
        norms = [weights.uniform(f"{name}.{norm}.weight", width, 0.4, 1.6)
                 for norm in ("input_layernorm", "post_attention_layernorm")]
        layers.append((mixer, mlp, *norms))
    last = weights.uniform("model.norm.weight", width, 0.4, 1.6)
    head = weights.matrix("lm_head.weight", config["vocab_size"], width)
    return weights, stack(table, layers, last, head, config["rms_norm_eps"])


def decoder_of_blocks(config, block, mlp):
    weights = Weights()
    width = config["hidden_size"]
    table = weights.matrix("model.embed_tokens.weight", config["vocab_size"], width, 1.0)
    layers = []
    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}"
        mixer = blocks_of_heads(weights, f"{name}.self_attn", config, block)
        norms = [weights.uniform(f"{name}.{norm}.weight", width, 0.4, 1.6)
                 for norm in ("input_layernorm", "post_attention_layernorm")]
        layers.append((mixer, mlp(weights, f"{name}.mlp"), *norms))
    last = weights.uniform("model.norm.weight", width, 0.4, 1.6)
    head = table if config["tie_word_embeddings"] else weights.matrix(
        "lm_head.weight", config["vocab_size"], width)
    return weights, stack(table, layers, last, head, config["rms_norm_eps"])


def sdar(config):
    """SDAR (arXiv 2510.06303, section 3), with the names of JetLM/SDAR-4B-Chat."""
    return decoder_of_blocks(config, config["block_size"], lambda weights, name: gated(
        weights, [f"{name}.{part}_proj" for part in ("gate", "up", "down")],
        config["hidden_size"], config["intermediate_size"]))


def llada_moe(config):
    """LLaDA-MoE, with the names of inclusionAI/LLaDA-MoE-7B-A1B-Base."""
    return decoder_of_blocks(config, None,
                             lambda weights, name: chosen_experts(weights, name, config))


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
    common = {"architectures": ["HymbaForCausalLM"], "model_type": "hymba", "vocab_size": 48,
              "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu",
              "max_position_embeddings": 256, "orig_max_position_embeddings": None,
              "num_experts": 1, "num_experts_per_tok": 1, "num_mamba": 1, "kq_norm": "none",
              "kq_head_dim": -1, "attn_hidden_size": -1, "kv_weight_reuse": False,
              "kv_reuse_every_i_layer": -1, "memory_tokens_interspersed_every": 0,
              "rope_type": None, "torch_dtype": "float32"}
    # Pairs of layers between global ones, as published, and a window shorter than the text.
    yield "hymba", dict(common, hidden_size=12, num_hidden_layers=7, num_attention_heads=3,
                        num_key_value_heads=1, intermediate_size=20, mlp_hidden_act="silu",
                        mamba_expand=2, mamba_d_state=5, mamba_d_conv=4, mamba_dt_rank=3,
                        mamba_conv_bias=True, mamba_proj_bias=False, mamba_inner_layernorms=True,
                        num_memory_tokens=5, sliding_window=9, global_attn_idx=[0, 3, 6],
                        kv_reuse_group=[[1, 2], [4, 5]], rope=True, rope_theta=10000.0,
                        rms_norm_eps=1e-6, tie_word_embeddings=True), hymba
    # Three layers on one's keys, groups that interleave, meta tokens longer than a page of 64 rows.
    yield "hymba_groups", dict(common, hidden_size=16, num_hidden_layers=6, num_attention_heads=4,
                               num_key_value_heads=2, intermediate_size=24, mlp_hidden_act="silu",
                               mamba_expand=3, mamba_d_state=4, mamba_d_conv=3, mamba_dt_rank=2,
                               mamba_conv_bias=False, mamba_proj_bias=True,
                               mamba_inner_layernorms=True, num_memory_tokens=70,
                               sliding_window=17, global_attn_idx=[0, 5],
                               kv_reuse_group=[[0, 5], [1, 3, 4]], rope=True, rope_theta=500.0,
                               rope_type="ntk", orig_max_position_embeddings=64,
                               rms_norm_eps=1e-5, tie_word_embeddings=False), hymba
    # Without meta tokens, windows, positions and inner norms.
    yield "hymba_plain", dict(common, hidden_size=12, num_hidden_layers=4, num_attention_heads=2,
                              num_key_value_heads=2, intermediate_size=18, mlp_hidden_act="relu2",
                              mamba_expand=2, mamba_d_state=3, mamba_d_conv=4, mamba_dt_rank=4,
                              mamba_conv_bias=True, mamba_proj_bias=False,
                              mamba_inner_layernorms=False, num_memory_tokens=0,
                              sliding_window=None, global_attn_idx=None, kv_reuse_group=None,
                              kv_reuse_every_i_layer=2, rope=False, rope_theta=10000.0,
                              rms_norm_eps=1e-6, tie_word_embeddings=False), hymba
    common = {"architectures": ["RWKV7ForCausalLM"], "model_type": "rwkv7", "vocab_size": 48,
              "attn": None, "attn_mode": "chunk", "bos_token_id": 1, "eos_token_id": 2,
              "hidden_act": "sqrelu", "fuse_norm": False, "max_position_embeddings": 256,
              "torch_dtype": "float32"}
    yield "rwkv7", dict(common, hidden_size=24, num_hidden_layers=3, head_dim=8, num_heads=3,
                        decay_low_rank_dim=5, a_low_rank_dim=4, v_low_rank_dim=3,
                        gate_low_rank_dim=6, hidden_ratio=1.5, intermediate_size=None,
                        norm_first=True, norm_bias=True, norm_eps=1e-5, value_dim=[24, 24, 24],
                        tie_word_embeddings=False), rwkv7
    # Without the norm of embeddings and biases of norms.
    yield "rwkv7_plain", dict(common, hidden_size=22, num_hidden_layers=2, head_dim=None,
                              num_heads=2, decay_low_rank_dim=4, a_low_rank_dim=6,
                              v_low_rank_dim=5, gate_low_rank_dim=3, hidden_ratio=4.0,
                              intermediate_size=30, norm_first=False, norm_bias=False,
                              norm_eps=1e-3, value_dim=None, tie_word_embeddings=True), rwkv7
    common = {"architectures": ["Mamba3ForCausalLM"], "model_type": "mamba3", "vocab_size": 48,
              "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu",
              "A_floor": 1e-4, "dt_min": 0.001, "dt_max": 0.1, "dt_init_floor": 1e-4,
              "is_mimo": False, "mimo_rank": 4, "chunk_size": 64, "residual_in_fp32": True,
              "norm_eps": 1e-5, "torch_dtype": "float32"}
    yield "mamba3", dict(common, hidden_size=16, num_hidden_layers=3, expand=2, head_dim=8,
                         state_size=12, n_groups=1, rope_fraction=0.5, use_bias=False,
                         is_outproj_norm=False, tie_word_embeddings=False), mamba3
    # Groups of heads, a norm of heads, all columns turned, a floor that is reached.
    yield "mamba3_groups", dict(common, hidden_size=12, num_hidden_layers=2, expand=2, head_dim=6,
                                state_size=10, n_groups=2, rope_fraction=1.0, use_bias=True,
                                A_floor=0.5, is_outproj_norm=True, norm_eps=1e-3,
                                tie_word_embeddings=True), mamba3
    # Several inputs and outputs a head.
    yield "mamba3_ranks", dict(common, hidden_size=16, num_hidden_layers=2, expand=2, head_dim=8,
                               state_size=12, n_groups=2, rope_fraction=0.5, use_bias=True,
                               is_mimo=True, mimo_rank=3, is_outproj_norm=True,
                               tie_word_embeddings=False), mamba3
    common = {"model_type": "pronghorn", "vocab_size": 48,
              "norm": {"type": "rms_norm", "epsilon": 1e-5, "bias": False}}
    yield "linear_layers", dict(common, hidden_size=16, pattern="ablal", blocks={
        "a": {"mixer": {"type": "linear_attention", "heads": 2, "head_dim": 8,
                        "value_head_dim": 6, "feature_map": "elu", "normalizer": False,
                        "output_norm": "rmsnorm"}},
        "b": {"mixer": {"type": "linear_attention", "heads": 3, "head_dim": 5,
                        "value_head_dim": 7, "feature_map": "exp", "normalizer": True,
                        "output_norm": "identity"}},
        "l": {"mixer": {"type": "lightning", "heads": 3, "head_dim": 6}}}), own_format
    # Chunks shorter than the text, as their papers have the blocks.
    common = {"model_type": "pronghorn", "vocab_size": 48,
              "norm": {"type": "layer_norm", "epsilon": 1e-5, "bias": True}}
    yield "mega", dict(common, hidden_size=12, pattern="gg", blocks={
        "g": {"norm_residual": {},
              "mixer": {"type": "mega", "z_dim": 6, "value_dim": 20, "ndim": 3, "chunk_size": 16,
                        "rope": {"theta": 500.0}},
              "ffn": {"type": "swiglu", "size": 16}}}), own_format
    yield "megalodon", dict(common, hidden_size=12, pattern="gg", blocks={
        "g": {"norms": "ffn", "residual": "two_hop",
              "mixer": {"type": "megalodon", "heads": 2, "z_dim": 8, "value_dim": 20,
                        "cema_ndim": 3, "norm_num_groups": 3, "chunk_size": 32,
                        "rope": {"theta": 500.0}},
              "ffn": {"type": "swiglu", "size": 16}}}), own_format
    common = {"model_type": "pronghorn", "vocab_size": 48,
              "norm": {"type": "rms_norm", "epsilon": 1e-5, "bias": False}}
    # Ranks of 4 and 3, groups of heads, a norm of heads, a floor that is reached.
    yield "mamba3_mimo", dict(common, hidden_size=12, pattern="ab", blocks={
        "a": {"mixer": {"type": "mamba3", "heads": 3, "head_dim": 8, "state": 12, "groups": 1,
                        "rank": 4, "rope_fraction": 0.5, "least_rate": 1e-4,
                        "output_norm": False}},
        "b": {"mixer": {"type": "mamba3", "heads": 4, "head_dim": 6, "state": 10, "groups": 2,
                        "rank": 3, "rope_fraction": 1.0, "least_rate": 0.5,
                        "output_norm": True}}}), own_format
    # Removals that turn signs.
    yield "rwkv7_negative", dict(common, hidden_size=24, pattern="r", blocks={
        "r": {"mixer": {"type": "rwkv7", "heads": 3, "head_dim": 8, "decay_low_rank_dim": 5,
                        "a_low_rank_dim": 4, "v_low_rank_dim": 3, "gate_low_rank_dim": 6,
                        "negative_eigenvalues": True},
              "ffn": {"type": "swiglu", "size": 16}}}), own_format
    common = {"activation_type": "silu", "alibi": False, "architectures": ["LLaDAModelLM"],
              "attention_layer_norm": False, "bias_for_layer_norm": False, "block_group_size": 1,
              "block_type": "llama", "eos_token_id": 45, "include_bias": False,
              "include_qkv_bias": False, "init_device": "meta", "init_fn": "mitchell",
              "input_emb_norm": False, "layer_norm_type": "rms", "layer_norm_with_affine": True,
              "mask_token_id": 46, "max_sequence_length": 256, "mlp_ratio": 4,
              "model_type": "llada", "multi_query_attention": None, "precision": "amp_bf16",
              "rope": True, "rope_full_precision": True, "scale_logits": False,
              "use_cache": False, "vocab_size": 48}
    yield "llada", dict(common, d_model=24, n_heads=3, n_kv_heads=3, n_layers=2,
                        mlp_hidden_size=40, embedding_size=48, rms_norm_eps=1e-5,
                        rope_theta=500000.0, weight_tying=False), llada
    yield "llada_tied", dict(common, d_model=32, n_heads=4, n_kv_heads=2, n_layers=3,
                             mlp_hidden_size=36, embedding_size=48, rms_norm_eps=1e-6,
                             rope_theta=10000.0, weight_tying=True), llada
    yield "dream", {"architectures": ["DreamModel"], "attention_dropout": 0.0, "bos_token_id": 43,
                    "eos_token_id": 43, "hidden_act": "silu", "hidden_size": 24,
                    "intermediate_size": 44, "mask_token_id": 46, "max_position_embeddings": 256,
                    "max_window_layers": 28, "model_type": "Dream", "num_attention_heads": 4,
                    "num_hidden_layers": 3, "num_key_value_heads": 2, "pad_token_id": 43,
                    "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000.0,
                    "sliding_window": None, "tie_word_embeddings": False,
                    "torch_dtype": "float32", "use_cache": True, "use_sliding_window": False,
                    "vocab_size": 48}, dream
    common = {"architectures": ["SDARForCausalLM"], "attention_bias": False,
              "attention_dropout": 0.0, "bos_token_id": 43, "eos_token_id": 45,
              "fuse_cross_entropy": True, "hidden_act": "silu", "mask_token_id": 46, "max_position_embeddings": 256,
              "max_window_layers": 28, "model_type": "sdar", "rope_scaling": None,
              "sliding_window": None, "torch_dtype": "float32", "use_cache": True,
              "use_sliding_window": False, "vocab_size": 48}
    yield "sdar", dict(common, block_size=4, head_dim=8, hidden_size=24, intermediate_size=40,
                       num_attention_heads=4, num_hidden_layers=3, num_key_value_heads=2,
                       rms_norm_eps=1e-6, rope_theta=1000000.0, tie_word_embeddings=False), sdar
    # Blocks that do not divide the text, which the block of the last tokens does not fill.
    yield "sdar_tied", dict(common, block_size=16, head_dim=6, hidden_size=16,
                            intermediate_size=36, num_attention_heads=3, num_hidden_layers=2,
                            num_key_value_heads=1, rms_norm_eps=1e-5, rope_theta=10000.0,
                            tie_word_embeddings=True), sdar
    common = {"architectures": ["LLaDAMoEModelLM"], "attention_bias": False,
              "attention_dropout": 0.0, "clip_qkv": None, "eos_token_id": 45,
              "hidden_act": "silu", "max_position_embeddings": 256, "model_type": "llada",
              "output_router_logits": False, "pad_token_id": 45, "partial_rotary_factor": 1,
              "qk_layernorm": True, "rope_scaling": None, "routed_scaling_factor": 1,
              "router_num_group": None, "router_topk_group": None,
              "shared_expert_intermediate_size": None, "norm_topk_prob": None,
              "mask_token_id": 46, "torch_dtype": "float32", "vocab_size": 48}
    yield "llada_moe", dict(common, dense_intermediate_size=64, expert_intermediate_size=12,
                            hidden_size=24, moe_layer_freq=[1, 1], num_attention_heads=3,
                            num_experts=6, num_experts_per_tok=2, num_hidden_layers=2,
                            num_key_value_heads=3, rms_norm_eps=1e-5, rope_theta=50000,
                            router_aux_loss_coef=0.01, tie_word_embeddings=False), llada_moe
    yield "lladamoe", dict(common, model_type="lladamoe", dense_intermediate_size=64,
                           expert_intermediate_size=20, hidden_size=16, moe_layer_freq=[1, 1, 1],
                           num_attention_heads=4, num_experts=3, num_experts_per_tok=3,
                           num_hidden_layers=3, num_key_value_heads=2, rms_norm_eps=1e-6,
                           rope_theta=10000, router_aux_loss_coef=0.0,
                           tie_word_embeddings=False), llada_moe


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
