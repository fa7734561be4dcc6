#!/usr/bin/env python3
"""Measures pronghorn beside other engines: the same files, the same machine, in alternation.

Every round runs each engine once on each test, so that what disturbs the machine disturbs all of
them; the table has medians over the rounds, the ratio of ours to the better peer, and the share of
the machine's ceilings that our binary reports. Only what is given is run: nothing is required but
our binary and something to measure.

  bench/peers.py --pronghorn build/pronghorn --files model-q4_0.gguf model-bf16.gguf \\
      --llama-bench llama.cpp/build/bin/llama-bench \\
      --llama-batched-bench llama.cpp/build/bin/llama-batched-bench \\
      --ik-bench ik_llama.cpp/build/bin/llama-bench --rounds 3

  bench/peers.py --pronghorn build/pronghorn --train configs/transformer-20m.json \\
      --torch-python venv/bin/python

Tests of a file: reading a prompt (tokens/s), decoding one sequence behind a context, and decoding
several sequences together. Training: optimiser steps on random tokens; PyTorch trains a transformer
of the configuration's shape with torch.compile and bf16 autocast, and sits out other architectures.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time


class Failure(Exception):
    """What went wrong, for people."""


def run(command, timeout):
    """The standard output of a command."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=timeout, check=False)
    except FileNotFoundError as error:
        raise Failure(f"{command[0]}: no such program") from error
    except PermissionError as error:
        raise Failure(f"{command[0]}: cannot be executed") from error
    except subprocess.TimeoutExpired as error:
        raise Failure(f"{' '.join(command)}: took more than {timeout:.0f} s") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Failure(f"{' '.join(command)}: exit {done.returncode}"
                      + (f": {said[-1]}" if said else ""))
    return done.stdout.decode(errors="replace")


# Tests are (kind, number): ("prompt", tokens), ("decode", context), ("batch", sequences),
# ("train", 0). An engine's measure() returns {test: (tokens/s, share of a ceiling or None)} for
# those of the tests that it can do.


class Pronghorn:
    name = "pronghorn"

    def __init__(self, program, options):
        self.program, self.options = program, options

    def bench(self, model, *arguments):
        command = [self.program, "bench", model, "--json", "--repeat", "1", *arguments]
        if self.options.threads:
            command += ["--threads", str(self.options.threads)]
        return json.loads(run(command, self.options.timeout))

    def measure(self, model, tests):
        results = {}
        prompts = [n for kind, n in tests if kind == "prompt"]
        contexts = [n for kind, n in tests if kind == "decode"]
        # Behind a prompt of that many tokens, both come from one run. The first token needs one.
        for length in sorted(set(prompts) | set(contexts)):
            decodes = length in contexts
            out = self.bench(model, "--prompt", str(max(1, length)), "--generate",
                             str(self.options.generate if decodes else 1))
            if length in prompts:
                results["prompt", length] = (out["prefill"]["tokens_per_second"]["median"],
                                             out["prefill"]["fraction_of_matrix_peak"])
            if decodes:
                results["decode", length] = (out["decode"]["tokens_per_second"]["median"],
                                             out["decode"]["fraction_of_read_bandwidth"])
        for kind, sequences in tests:
            if kind == "batch":
                out = self.bench(model, "--prompt", str(self.options.batch_prompt), "--generate",
                                 str(self.options.generate), "--batch", str(sequences))
                results["batch", sequences] = (out["decode"]["tokens_per_second"]["median"],
                                               out["decode"]["fraction_of_read_bandwidth"])
            elif kind == "train":
                out = self.bench(model, "--train")["training"]
                results["train", 0] = (out["tokens_per_second"]["median"],
                                       out["fraction_of_matrix_peak"])
        return results


class Llama:
    """llama.cpp, and what is forked from it."""

    def __init__(self, name, bench, batched, options):
        self.name, self.bench, self.batched, self.options = name, bench, batched, options

    def threads(self):
        return ["-t", str(self.options.threads)] if self.options.threads else []

    def measure(self, model, tests):
        results = {}
        if self.bench:
            prompts = [n for kind, n in tests if kind == "prompt"]
            contexts = [n for kind, n in tests if kind == "decode"]
            if prompts or 0 in contexts:
                results.update(self.run_bench(model, prompts, 0 in contexts))
            for context in contexts:
                if context > 0:
                    results.update(self.run_behind(model, context))
        sequences = [n for kind, n in tests if kind == "batch"]
        if self.batched and sequences:
            results.update(self.run_batched(model, sequences))
        return results

    def run_bench(self, model, prompts, decode):
        out = run([self.bench, "-m", model, "-r", "1", "-o", "json", *self.threads(),
                   "-p", ",".join(map(str, prompts)) or "0",
                   "-n", str(self.options.generate if decode else 0)], self.options.timeout)
        return parse_bench(out)

    def run_behind(self, model, context):
        command = [self.bench, "-m", model, "-r", "1", "-o", "json", *self.threads(), "-p", "0"]
        generate = self.options.generate
        try:
            out = run([*command, "-n", str(generate), "-d", str(context)], self.options.timeout)
        except Failure:
            # Before llama.cpp had depths, its forks had this.
            out = run([*command, "-n", "0", "-gp", f"{context},{generate}"], self.options.timeout)
        return {test: rate for test, rate in parse_bench(out).items() if test == ("decode", context)}

    def run_batched(self, model, sequences):
        prompt, generate = self.options.batch_prompt, self.options.generate
        out = run([self.batched, "-m", model, "-c", str(max(sequences) * (prompt + generate)),
                   "-npp", str(prompt), "-ntg", str(generate),
                   "-npl", ",".join(map(str, sequences)), *self.threads()], self.options.timeout)
        return parse_batched(out)


def parse_bench(text):
    """What llama-bench -o json prints."""
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise Failure(f"llama-bench did not print JSON: {error}") from error
    results = {}
    for row in rows:
        prompt, generate, depth = row["n_prompt"], row["n_gen"], row.get("n_depth", 0)
        if generate == 0 and depth == 0:
            results["prompt", prompt] = (row["avg_ts"], None)
        elif generate > 0:
            results["decode", depth or prompt] = (row["avg_ts"], None)
    return results


def parse_batched(text):
    """The table of llama-batched-bench: a row a number of sequences."""
    results, columns = {}, None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "S_TG t/s" in cells:
            columns = {name: place for place, name in enumerate(cells)}
        elif columns and len(cells) == len(columns) and re.fullmatch(r"\d+", cells[0]):
            results["batch", int(cells[columns["B"]])] = (float(cells[columns["S_TG t/s"]]), None)
    if not results:
        raise Failure("llama-batched-bench printed no table")
    return results


class Torch:
    name = "pytorch"

    def __init__(self, python, options):
        self.python, self.options = python, options

    def measure(self, model, tests):
        if ("train", 0) not in tests or transformer_shape(model) is None:
            return {}
        command = [self.python, os.path.abspath(__file__), "--torch-worker", model]
        if self.options.threads:
            command += ["--threads", str(self.options.threads)]
        return {("train", 0): (json.loads(run(command, self.options.timeout)), None)}


def transformer_shape(path):
    """Sizes of a configuration whose layers are all the same attention and SwiGLU; else None."""
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    pattern = re.fullmatch(r"(\d*)([a-z])", config.get("pattern", ""))
    if pattern is None:
        return None
    block = config["blocks"][pattern[2]]
    mixer, ffn = block.get("mixer", {}), block.get("ffn", {})
    if mixer.get("type") != "attention" or ffn.get("type") != "swiglu" or "window" in mixer:
        return None
    train = config.get("train", {})
    return {"width": config["hidden_size"], "layers": int(pattern[1] or 1),
            "heads": mixer["heads"], "kv_heads": mixer.get("kv_heads", mixer["heads"]),
            "size": ffn["size"], "vocabulary": config.get("vocab_size") or 4096,
            "tied": config.get("tie_embeddings", True), "window": train.get("window", 512),
            "batch": train.get("batch_tokens", 8192), "micro": train.get("micro_batch_tokens", 2048)}


def torch_worker(path, threads):
    """Trains a transformer of that shape and prints tokens/s."""
    import torch
    from torch import nn
    from torch.nn import functional

    shape = transformer_shape(path)
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    width, heads, kv_heads = shape["width"], shape["heads"], shape["kv_heads"]
    head_dim, window = width // heads, shape["window"]
    frequencies = 10000 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(window)[:, None] * frequencies
    cosines, sines = angles.cos(), angles.sin()

    def turned(x):
        first, second = x.chunk(2, -1)
        return torch.cat((first * cosines - second * sines, second * cosines + first * sines), -1)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-5) for _ in range(2))
            self.q = nn.Linear(width, width, bias=False)
            self.k = nn.Linear(width, kv_heads * head_dim, bias=False)
            self.v = nn.Linear(width, kv_heads * head_dim, bias=False)
            self.o = nn.Linear(width, width, bias=False)
            self.gate = nn.Linear(width, shape["size"], bias=False)
            self.up = nn.Linear(width, shape["size"], bias=False)
            self.down = nn.Linear(shape["size"], width, bias=False)

        def forward(self, x):
            y = self.norms[0](x)
            q, k, v = (map_(y).view(*y.shape[:2], -1, head_dim).transpose(1, 2)
                       for map_ in (self.q, self.k, self.v))
            seen = functional.scaled_dot_product_attention(
                turned(q), turned(k), v, is_causal=True, enable_gqa=heads != kv_heads)
            x = x + self.o(seen.transpose(1, 2).flatten(2))
            y = self.norms[1](x)
            return x + self.down(functional.silu(self.gate(y)) * self.up(y))

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(shape["vocabulary"], width)
            self.layers = nn.ModuleList(Layer() for _ in range(shape["layers"]))
            self.norm = nn.RMSNorm(width, eps=1e-5)
            self.head = nn.Linear(width, shape["vocabulary"], bias=False)
            if shape["tied"]:
                self.head.weight = self.table.weight

        def forward(self, tokens, targets):
            x = self.table(tokens)
            for layer in self.layers:
                x = layer(x)
            logits = self.head(self.norm(x)).float()
            return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    model = Transformer()
    compiled = torch.compile(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    sequences = max(1, shape["micro"] // window)
    micro_batches = max(1, shape["batch"] // (sequences * window))

    def step():
        for _ in range(micro_batches):
            tokens = torch.randint(shape["vocabulary"], (sequences, window + 1))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = compiled(tokens[:, :-1], tokens[:, 1:]) / micro_batches
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    step()
    step()
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        step()
        rates.append(micro_batches * sequences * window / (time.perf_counter() - start))
    print(json.dumps(statistics.median(rates)))


def test_name(test):
    kind, number = test
    return {"prompt": f"prompt {number}", "decode": f"decode behind {number}",
            "batch": f"decode {number} together", "train": "training"}[kind]


def measure_all(engines, work, rounds):
    """{(file, test): {engine: [(rate, share), ...]}} and what failed: {(file, engine): why}."""
    samples, failed = {}, {}
    for number in range(rounds):
        for path, tests in work:
            for engine in engines:
                if (path, engine.name) in failed:
                    continue
                print(f"round {number + 1} of {rounds}: {engine.name}, {path}", file=sys.stderr)
                try:
                    results = engine.measure(path, tests)
                except Failure as failure:
                    failed[path, engine.name] = str(failure)
                    print(f"  {failure}", file=sys.stderr)
                    continue
                for test, result in results.items():
                    if test in tests:
                        samples.setdefault((path, test), {}).setdefault(engine.name,
                                                                        []).append(result)
    return samples, failed


def summary(samples, names):
    rows = []
    for (path, test), by_engine in samples.items():
        row = {"file": os.path.basename(path), "test": test_name(test), "tokens_per_second": {},
               "samples": {}}
        for name in names:
            if name in by_engine:
                rates = [rate for rate, _ in by_engine[name]]
                row["samples"][name] = rates
                row["tokens_per_second"][name] = statistics.median(rates)
        ours = row["tokens_per_second"].get(Pronghorn.name)
        if ours is not None:
            shares = [share for _, share in by_engine[Pronghorn.name] if share is not None]
            if shares:
                row["share_of_ceiling"] = statistics.median(shares)
                row["ceiling"] = ("read bandwidth" if test[0] in ("decode", "batch")
                                  else "matrix peak")
            peers = [rate for name, rate in row["tokens_per_second"].items()
                     if name != Pronghorn.name]
            if peers:
                row["ratio_to_best_peer"] = ours / max(peers)
        rows.append(row)
    return rows


def rate_text(rate):
    return "-" if rate is None else f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"


def print_table(rows, names):
    table = [["file", "test", *names, "ratio", "of the ceiling"]]
    for row in rows:
        share = row.get("share_of_ceiling")
        ratio = row.get("ratio_to_best_peer")
        table.append([row["file"], row["test"],
                      *(rate_text(row["tokens_per_second"].get(name)) for name in names),
                      "-" if ratio is None else f"{ratio:.2f}",
                      "-" if share is None else f"{100 * share:.0f}% of {row['ceiling']}"])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for place, line in enumerate(table):
        print("  ".join(cell.ljust(width) if i < 2 or i == len(line) - 1 else cell.rjust(width)
                        for i, (cell, width) in enumerate(zip(line, widths))).rstrip())
        if place == 0:
            print("-" * (sum(widths) + 2 * (len(widths) - 1)))


def numbers(text):
    try:
        values = [int(part) for part in text.split(",") if part]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers") from error
    if any(value < 0 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} has a negative number")
    return values


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pronghorn", default="build/pronghorn", metavar="PATH",
                        help="our binary (default: build/pronghorn)")
    parser.add_argument("--files", nargs="+", default=[], metavar="GGUF",
                        help="models that all engines read")
    parser.add_argument("--train", nargs="+", default=[], metavar="CONFIG",
                        help="configurations to train")
    parser.add_argument("--llama-bench", metavar="PATH", help="llama.cpp's llama-bench")
    parser.add_argument("--llama-batched-bench", metavar="PATH")
    parser.add_argument("--ik-bench", metavar="PATH", help="ik_llama.cpp's llama-bench")
    parser.add_argument("--ik-batched-bench", metavar="PATH")
    parser.add_argument("--torch-python", metavar="PATH", help="a Python that has PyTorch")
    parser.add_argument("--prompts", type=numbers, default=[512, 4096], metavar="N,N",
                        help="tokens of prompts (default: 512,4096)")
    parser.add_argument("--contexts", type=numbers, default=[0, 4096], metavar="N,N",
                        help="tokens before what is decoded (default: 0,4096)")
    parser.add_argument("--batches", type=numbers, default=[8, 32], metavar="N,N",
                        help="sequences decoded together (default: 8,32)")
    parser.add_argument("--batch-prompt", type=int, default=128, metavar="N",
                        help="tokens before each of those (default: 128)")
    parser.add_argument("--generate", type=int, default=64, metavar="N",
                        help="tokens to decode (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N", help="default: what each engine takes")
    parser.add_argument("--timeout", type=float, default=1800, metavar="SECONDS",
                        help="for one run of one engine (default: 1800)")
    parser.add_argument("--json", metavar="FILE", help="also write everything here; -: only that, "
                        "on standard output")
    parser.add_argument("--torch-worker", metavar="CONFIG", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.torch_worker:
        return torch_worker(options.torch_worker, options.threads)
    if not options.files and not options.train:
        parser.error("nothing to measure: give --files or --train")
    if options.rounds < 1 or options.generate < 1 or options.batch_prompt < 1:
        parser.error("--rounds, --generate and --batch-prompt are at least 1")
    for path in options.files + options.train:
        if not os.path.exists(path):
            parser.error(f"{path}: no such file")

    engines = [Pronghorn(options.pronghorn, options)]
    for name, bench, batched in (("llama.cpp", options.llama_bench, options.llama_batched_bench),
                                 ("ik_llama.cpp", options.ik_bench, options.ik_batched_bench)):
        if bench or batched:
            engines.append(Llama(name, bench, batched, options))
    if options.torch_python:
        engines.append(Torch(options.torch_python, options))
    tests = ([("prompt", n) for n in options.prompts] + [("decode", n) for n in options.contexts]
             + [("batch", n) for n in options.batches])
    work = [(path, tests) for path in options.files] + [(path, [("train", 0)])
                                                        for path in options.train]
    try:
        machine = json.loads(run([options.pronghorn, "bench", "--machine", "--json"],
                                 options.timeout))
    except Failure as failure:
        parser.error(str(failure))
    samples, failed = measure_all(engines, work, options.rounds)
    names = [engine.name for engine in engines]
    rows = summary(samples, names)
    if options.json:
        document = json.dumps({"machine": machine, "rounds": options.rounds, "rows": rows,
                               "failed": [{"file": path, "engine": name, "why": why}
                                          for (path, name), why in failed.items()]}, indent=1)
        if options.json == "-":
            print(document)
            return 1 if not rows else 0
        with open(options.json, "w", encoding="utf-8") as file:
            file.write(document + "\n")
    print(f"{machine['cpu']}, {machine['threads']} threads, {machine['instruction_set']}: "
          f"{machine['f32_gflops']:.0f} GFLOP/s f32, {machine['bf16_gflops']:.0f} bf16, "
          f"{machine['int8_gops']:.0f} GOP/s int8, "
          f"{machine['read_gigabytes_per_second']:.1f} GB/s")
    print_table(rows, names)
    for (path, name), why in failed.items():
        print(f"{name} on {os.path.basename(path)}: {why}")
    return 1 if not rows else 0


if __name__ == "__main__":
    sys.exit(main())
