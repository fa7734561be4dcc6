#!/usr/bin/env python3
"""Compares GGUF files of this engine with those of llama.cpp's converter.

For tiny random models of every family: transformers computes scores; llama.cpp's converter and
`pronghorn convert` write a GGUF file each; tensors (names, sizes, numbers) and keys must agree, and
`pronghorn logits` must give transformers' scores from either file. Keys that differ are listed. The
other way round, transformers reads directories that `pronghorn convert` wrote from the first one and
from our GGUF file, and must compute the same scores.

    python3 -m venv venv
    venv/bin/pip install torch transformers peft safetensors numpy gguf sentencepiece
    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36     # and unpack it: LLAMA
    venv/bin/python scripts/check_gguf.py --llama-cpp LLAMA/vendor/llama.cpp [NAME..]
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import make_model_goldens as goldens

ROOT = pathlib.Path(__file__).resolve().parent.parent
VOCABULARY = ROOT / "tests" / "formats" / "golden" / "gpt2"
TOLERANCE = 2e-4

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "mscale": 0.6,
        "mscale_all_dim": 0.6, "original_max_position_embeddings": 32}

# What changes a golden's configuration into one that such files can say. None: the converter does
# not say all of it either, so there is nothing to compare.
CHANGES = {
    "llama": {}, "llama_tied": {}, "llama_linear": {}, "llama_dynamic": None, "llama_yarn": {},
    "llama_3": {}, "mistral": {"sliding_window": None}, "qwen2_tied": {},
    "qwen3": {"use_sliding_window": False, "sliding_window": None,
              "layer_types": ["full_attention"] * 3},
    "smollm3": {}, "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8, "num_hidden_layers": 6,
                    "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    "phi3": {}, "phi3_window": {"original_max_position_embeddings": 256}, "olmo2": {},
    "granite": {"head_dim": 4}, "granite_bias": {"head_dim": 4}, "gpt2": {}, "gpt_neox": {},
    "mixtral": {"sliding_window": None}, "mixtral_odd": {}, "qwen2_moe_plain": {},
    "qwen3_moe": {}, "olmoe": {}, "granitemoe": {}, "granitemoe_bias": {}, "gpt_oss": {},
    "deepseek_v2": {"attention_bias": False}, "deepseek_v2_groups": {},
    "deepseek_v3": {"rope_parameters": YARN},
    "deepseek_v3_plain": {"attention_bias": False, "rope_interleave": True}, "glm4_moe": {},
    "glm4_moe_bias": {}, "glm4_moe_lite": {},
    "minicpm3": {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256,
                 "v_head_dim": 4},
    "lfm2": {}, "qwen3_5_text": {}, "qwen3_5_text_bias": {"attention_bias": False},
    "deepseek_v32": {}, "bamba": {"attn_rotary_emb": 2},
    "granitemoehybrid": {"intermediate_size": 20}, "falcon_h1": {"head_dim": 4},
    "falcon_h1_gate": {"head_dim": 6, "projectors_bias": False, "mamba_conv_bias": True},
    "falcon_h1_norm": {"head_dim": 4, "mamba_norm_before_gate": False, "attention_bias": False,
                       "mamba_proj_bias": False, "lm_head_multiplier": 3.0},
    "nemotron_h": {},
    "nemotron_h_bias": {"use_bias": False, "use_conv_bias": True, "time_step_min": 0.001,
                        "mlp_hidden_act": "relu2"},
    "nemotron_h_moe": {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"]},
    "nemotron_h_moe_latent": {"mlp_hidden_act": "relu2"},
    "qwen3_next_moe": {}, "qwen3_5_moe_text": {}, "lfm2_moe": {"routed_scaling_factor": 1.0}, "granitemoehybrid_moe": {},
    "granitemoehybrid_moe_rope": None, "jamba_moe": {},
    "kimi_linear": {}, "jamba": {}, "mamba": {}, "falcon_mamba": {}, "mamba2": {}, "mamba2_groups": {"use_bias": False},
}


def with_older_keys(hparams):
    older = OLDER_KEYS.get(hparams["model_type"], lambda _: {})(hparams)
    return {key: value for key, value in {**hparams, **older}.items()
            if key not in older or value is not None}


def older_kinds(hparams):
    """Granite's kinds of layers by their names of before."""
    names = {"linear_attention": "mamba", "full_attention": "attention"}
    return {"layer_types": [names.get(kind, kind) for kind in hparams["layer_types"]]}


def older_pattern(hparams):
    """Nemotron-H's kinds of layers as letters, and no word of experts where there are none."""
    letters = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}
    kinds = hparams.get("layers_block_type")
    if kinds is None:
        return {}
    older = {"hybrid_override_pattern": "".join(letters[kind] for kind in kinds),
             "num_hidden_layers": len(kinds), "mamba_d_head": hparams["mamba_head_dim"],
             "layers_block_type": None}
    if "moe" not in kinds:
        older.update(dict.fromkeys(["num_experts_per_tok", "n_routed_experts", "n_group",
                                    "topk_group"]))
    return older


# Keys of config.json that the converter asks for and transformers no longer writes, and those that
# it takes for something else (None: they are taken out).
OLDER_KEYS = {
    "gpt2": lambda _: {"n_ctx": 80}, "gpt_neox": lambda _: {"rotary_pct": 0.5},
    "granitemoehybrid": older_kinds, "nemotron_h": older_pattern,
}

# Keys that only one of the two writes, or with another value, and why.
DIFFERENT = {
    "general.name", "general.type", "general.size_label", "general.quantization_version",
    "general.file_type", "general.tags", "general.languages", "general.sampling.temp",
    "general.sampling.top_k", "general.sampling.top_p",
}


# The converter knows these by the names of the published files, which `pronghorn convert` writes and
# transformers does not.
REWRITTEN = {"kimi_linear"}

# Families that transformers does not have, with the keys of their goldens that are changed: those of
# RWKV-7 with the epsilon that llama.cpp has for the norm of heads.
OF_LOOPS = {"rwkv7": {"norm_eps": 8e-5, "intermediate_size": 64, "value_dim": None}}


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def with_changes(config, name, vocabulary):
    config.vocab_size = vocabulary
    for key, value in CHANGES[name].items():
        setattr(config, key, value)
    return config


def make(folder, name, config, cls, vocabulary):
    """A Hugging Face directory; tokens; their scores."""
    model = cls(with_changes(config, name, vocabulary)).eval()
    model.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            parameter.copy_(goldens.draw(key, parameter, generator, goldens.less_one(name, key)))
    tokens = torch.randint(0, vocabulary, (goldens.TOKENS,), generator=generator).tolist()
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(VOCABULARY / file, folder)
    return tokens, goldens.scores(model, tokens).numpy()


class Converter:
    """llama.cpp's, without vocabularies: it knows tokenizers by their hash, and ours is a tiny one."""

    def __init__(self, sources):
        sys.path[:0] = [str(sources / "gguf-py"), str(sources)]
        import convert_hf_to_gguf
        from conversion.base import ModelBase, TextModel
        find = convert_hf_to_gguf.get_model_class

        def set_vocab(model):
            model.gguf_writer.add_tokenizer_model("none")

        def patch(cls):
            if "set_vocab" in vars(cls):
                cls.set_vocab = set_vocab
            for sub in cls.__subclasses__():
                patch(sub)

        def get_model_class(*words, **named):
            found = find(*words, **named)
            patch(TextModel)
            return found

        load = ModelBase.load_hparams

        def load_hparams(directory, *words, **named):
            loaded = load(directory, *words, **named)
            return with_older_keys(loaded)

        convert_hf_to_gguf.get_model_class = get_model_class
        ModelBase.load_hparams = staticmethod(load_hparams)
        self.main = convert_hf_to_gguf.main

    def run(self, directory, file, name):
        # Some of its classes read the file themselves.
        older = directory.with_name("older")
        shutil.copytree(directory, older)
        config = json.loads((older / "config.json").read_text())
        (older / "config.json").write_text(json.dumps(with_older_keys(config)))
        sys.argv = ["convert", str(older), "--outfile", str(file), "--outtype", "f32"]
        if name.startswith(("qwen3_5", "qwen3_next")):
            sys.argv.append("--no-mtp")  # these models have no such layers
        self.main()


def contents(path):
    import gguf  # of the converter
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()
            if not name.startswith(("GGUF.", "tokenizer."))}
    return keys, {tensor.name: np.array(tensor.data, dtype=np.float64) for tensor in reader.tensors}


def same(one, two):
    if isinstance(one, float) or isinstance(two, float):
        return bool(np.isclose(one, two, rtol=1e-6))
    return one == two


def compare(name, theirs, ours):
    """What differs between two files, as lines."""
    lines = []
    their_keys, their_tensors = contents(theirs)
    our_keys, our_tensors = contents(ours)
    for key in sorted(set(their_keys) | set(our_keys)):
        if key in DIFFERENT or (key in their_keys and key in our_keys
                                and same(their_keys[key], our_keys[key])):
            continue
        lines.append(f"key {key}: theirs {their_keys.get(key, '-')}, ours {our_keys.get(key, '-')}")
    for key in sorted(set(their_tensors) | set(our_tensors)):
        one, two = their_tensors.get(key), our_tensors.get(key)
        if one is None or two is None or one.shape != two.shape:
            sys.exit(f"{name}: tensor {key}: theirs {'-' if one is None else one.shape}, "
                     f"ours {'-' if two is None else two.shape}")
        if not np.allclose(one, two, rtol=1e-6, atol=1e-7):
            sys.exit(f"{name}: tensor {key}: other numbers")
    return lines


def deviation(pronghorn, model, tokens, scores, folder):
    out = folder / "logits.npy"
    run(pronghorn, "logits", model, "--tokens", " ".join(map(str, tokens)), "--out", out)
    return float(np.abs(np.load(out) - scores).max() / np.abs(scores).max())


def reread(folder, tokens, scores):
    """How far transformers' scores with a directory of this engine are from those before."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                         output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            sys.exit(f"{folder}: {kind}: {sorted(report[kind])}")
    model.set_attn_implementation("eager")
    return float(np.abs(goldens.scores(model.eval(), tokens).numpy() - scores).max()
                 / np.abs(scores).max())


def check(options, converter, golden, vocabulary):
    name, config, cls = golden
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        tokens, scores = make(folder / "model", name, config, cls, vocabulary)
        theirs, ours = folder / "theirs.gguf", folder / "ours.gguf"
        source = folder / "model"
        if name in REWRITTEN:
            source = folder / "rewritten"
            run(options.pronghorn, "convert", folder / "model", source)
        converter.run(source, theirs, name)
        run(options.pronghorn, "convert", folder / "model", ours, "--type", "f32")
        lines = compare(name, theirs, ours)
        figures = [deviation(options.pronghorn, model, tokens, scores, folder)
                   for model in (folder / "model", theirs, ours)]
        # transformers does not read published files of those that are rewritten.
        for source in () if name in REWRITTEN else (folder / "model", ours):
            run(options.pronghorn, "convert", source, folder / "again")
            figures.append(reread(folder / "again", tokens, scores))
            shutil.rmtree(folder / "again")
        print(f"{name}: here from the directory, their file and ours, and transformers from a copy of "
              f"the directory and of our file: {', '.join(f'{figure:.1e}' for figure in figures)}",
              flush=True)
        for line in lines:
            print(f"    {line}")
        return max(figures) <= TOLERANCE


def check_loop(options, converter, name):
    """Of a golden that no library made: our scores with the directory and with either file."""
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        shutil.copytree(ROOT / "tests" / "model" / "golden" / name, folder / "model")
        config = json.loads((folder / "model" / "config.json").read_text())
        (folder / "model" / "config.json").write_text(json.dumps({**config, **OF_LOOPS[name]}))
        tokens = json.loads((folder / "model" / "tokens.json").read_text())
        lines = [f"{i} {bytes([i])!r} 1" for i in range(1, config["vocab_size"])]
        (folder / "model" / "rwkv_vocab_v20230424.txt").write_text("\n".join(lines) + "\n")
        theirs, ours = folder / "theirs.gguf", folder / "ours.gguf"
        converter.run(folder / "model", theirs, name)
        run(options.pronghorn, "convert", folder / "model", ours, "--type", "f32")
        lines = compare(name, theirs, ours)
        run(options.pronghorn, "logits", folder / "model", "--tokens", " ".join(map(str, tokens)),
            "--out", folder / "scores.npy")
        scores = np.load(folder / "scores.npy")
        figures = [deviation(options.pronghorn, model, tokens, scores, folder)
                   for model in (theirs, ours)]
        print(f"{name}: here from their file and ours: "
              f"{', '.join(f'{figure:.1e}' for figure in figures)}", flush=True)
        for line in lines:
            print(f"    {line}")
        return max(figures) <= TOLERANCE


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="goldens to check; none: all")
    parser.add_argument("--llama-cpp", required=True, type=pathlib.Path, help="llama.cpp's sources")
    parser.add_argument("--pronghorn", default=ROOT / "build" / "pronghorn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    vocabulary = json.loads((VOCABULARY / "tokenizer.json").read_text())
    size = 1 + max(max(vocabulary["model"]["vocab"].values()),
                   max(token["id"] for token in vocabulary["added_tokens"]))
    converter = Converter(options.llama_cpp)
    wrong = [golden[0] for golden in goldens.models()
             if CHANGES.get(golden[0]) is not None
             and (not options.names or golden[0] in options.names)
             and not check(options, converter, golden, size)]
    wrong += [name for name in OF_LOOPS if (not options.names or name in options.names)
              and not check_loop(options, converter, name)]
    if wrong:
        sys.exit(f"above {TOLERANCE}: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
