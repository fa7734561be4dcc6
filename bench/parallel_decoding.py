#!/usr/bin/env python3
"""Parallel decoding of diffusion models: speed against quality, beside a transformer.

  bench/parallel_decoding.py --data book.txt --tokens 20000000

Trains transformer-5m, diffusion-5m and block-diffusion-5m on the same text with the same tokenizer
for the same number of tokens, shows their bits per byte on a text that none of them has seen
(upper bounds for the diffusion models), and lets the diffusion models continue pieces of it: one
token a step, and all tokens above each of --thresholds (Fast-dLLM, arXiv 2505.22618), with each
cache that a model can have. The transformer judges what was written: the perplexity of the
continuations, given what they continue.
"""

import json
import math
import pathlib
import random

import measuring

JUDGE, DIFFUSION = "transformer", ("diffusion", "block-diffusion")


def split(options):
    """The last part of the text is kept from training: what is tested on, and pieces of it."""
    text = "\n".join(pathlib.Path(file).read_text(errors="replace") for file in options.data)
    cut = len(text) - max(4 * options.prompt_characters, len(text) // 20)
    if cut <= 0:
        raise measuring.Failure("--data: is too short to keep a part of it from training")
    folder = pathlib.Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    learned, unseen = folder / "learned.txt", folder / "unseen.txt"
    learned.write_text(text[:cut])
    unseen.write_text(text[cut:])
    draw = random.Random(options.seed)
    last = len(text) - cut - options.prompt_characters
    begins = [draw.randrange(max(1, last)) for _ in range(options.samples)]
    return learned, unseen, [text[cut + at:cut + at + options.prompt_characters] for at in begins]


def train(pronghorn, options, learned):
    models = {}
    for name in (JUDGE, *DIFFUSION):
        config = pathlib.Path(options.configs) / f"{name}-{options.size}.json"
        words = (["--vocab", options.vocab] if name == JUDGE
                 else ["--tokenizer", models[JUDGE]])
        models[name], _ = pronghorn.trained(f"{name}-{options.size}", config, "--data", learned,
                                            *words, "--tokens", options.tokens, "--seed",
                                            options.seed)
    return models


def nll(pronghorn, judge, folder, texts):
    """The judge's negative log-likelihood of texts, each a document, and their tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.txt"):
        old.unlink()
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text)
    result = pronghorn.json("eval", judge, "--data", folder)
    return result["nll"], result["tokens"]


def written(pronghorn, options, model, judge, prompts, place, *arguments):
    """How fast continuations are, and how likely the judge finds them."""
    texts, steps, tokens, seconds = [], 0, 0, 0.0
    for i, prompt in enumerate(prompts):
        result = pronghorn.json("generate", model, f"--prompt={prompt}", "-n", options.length,
                                "--temperature", options.temperature, "--seed", options.seed + i,
                                *arguments)
        texts.append(prompt + result["text"])
        steps += result["steps"] or result["tokens"]
        tokens += result["tokens"]
        seconds += result["tokens"] / max(1e-9, result["decode_tokens_per_second"])
    folder = pathlib.Path(options.out) / "samples" / place
    whole, all_tokens = nll(pronghorn, judge, folder / "whole", texts)
    given, given_tokens = nll(pronghorn, judge, folder / "given", prompts)
    new = max(1, all_tokens - given_tokens)
    return {"tokens": tokens, "steps": steps, "tokens_per_second": tokens / max(1e-9, seconds),
            "perplexity": math.exp((whole - given) / new)}


def measure(options):
    if not options.data:
        raise measuring.Failure("--data: is missing, the text to learn and to continue")
    pronghorn = measuring.Pronghorn(options)
    learned, unseen, prompts = split(options)
    models = train(pronghorn, options, learned)
    bits = {name: pronghorn.json("eval", model, "--data", unseen)["bits_per_byte"]
            for name, model in models.items()}
    lines, rows, verdicts = [], [], []
    judge = models[JUDGE]

    def add(model, cache, threshold, one, place, *arguments):
        measuring.say(f"{model}: cache {cache or '-'}, threshold {threshold}")
        own = written(pronghorn, options, models[model], judge, prompts, place, *arguments)
        own.update(model=model, cache=cache, threshold=threshold,
                   speed_up=own["tokens_per_second"] / one["tokens_per_second"] if one else None,
                   quality=own["perplexity"] / one["perplexity"] if one else None)
        lines.append(own)
        return own

    add(JUDGE, None, None, None, JUDGE)
    for name in DIFFUSION:
        one, best = None, None
        for cache in options.caches if name == "diffusion" else ["none"]:
            for threshold in [0.0, *options.thresholds]:
                own = add(name, cache, threshold, one, f"{name}-{cache}-{threshold}", "--threshold",
                          threshold, *(["--canvas-cache", cache] if cache != "none" else []))
                one = one or own  # one token a step, without a cache
                if (own["quality"] or 1) <= 1.05 and (
                        best is None or own["tokens_per_second"] > best["tokens_per_second"]):
                    best = own
        times = best["tokens_per_second"] / one["tokens_per_second"]
        verdicts.append((times >= 4, f"{name} writes {times:.2f} times as fast at a perplexity "
                                     f"within 5% (threshold {best['threshold']}, cache "
                                     f"{best['cache']}), at least 4"))
    for own in lines:
        mark = "" if own["model"] == JUDGE else "<= "
        rows.append([own["model"], f"{mark}{bits[own['model']]:.3f}", own["cache"],
                     None if own["threshold"] is None else f"{own['threshold']:g}",
                     own["tokens"] / own["steps"], own["tokens_per_second"], own["speed_up"],
                     own["perplexity"], own["quality"]])
    headers = ["model", "bits/byte", "cache", "threshold", "tokens/step", "tokens/s", "x",
               "perplexity", "of one a step"]
    results = {"bits_per_byte": bits, "lines": lines, "samples": options.samples,
               "length": options.length, "temperature": options.temperature}
    measuring.finish(options, headers, rows, results, verdicts)
    return results


def prepare_check(options, folder):
    attention = {"type": "attention", "heads": 2, "head_dim": 32, "rope": {}}
    for name, more in {"transformer": {}, "diffusion": {"diffusion": {}},
                       "block-diffusion": {"diffusion": {"block": 8}}}.items():
        (folder / f"{name}-tiny.json").write_text(
            json.dumps(measuring.tiny_config(attention, **more)))
    options.configs, options.size, options.data = folder, "tiny", [folder / "text.txt"]
    options.vocab, options.tokens, options.samples, options.length = 0, 8192, 2, 16
    options.prompt_characters, options.thresholds = 24, [0.5]
    options.caches = ["none", "dual"]


def check(results):
    if len(results["lines"]) != 1 + 4 + 2:
        return f"{len(results['lines'])} lines of 7"
    for own in results["lines"]:
        if not (own["perplexity"] >= 1 and own["tokens_per_second"] > 0 and own["tokens"] > 0):
            return f"{own['model']}: perplexity {own['perplexity']}, {own['tokens']} tokens"
    if sorted(results["bits_per_byte"]) != ["block-diffusion", "diffusion", "transformer"]:
        return "bits per byte are missing"
    return None


def parser():
    options = measuring.parser_of(__doc__)
    options.add_argument("--configs", default="configs", help="folder of NAME-SIZE.json")
    options.add_argument("--size", default="5m", help="1m, 5m or 20m")
    options.add_argument("--data", nargs="+", default=[], help="text files")
    options.add_argument("--vocab", type=int, default=4096)
    options.add_argument("--tokens", type=int, default=20_000_000, help="of each training")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--samples", type=int, default=32, help="texts that are continued")
    options.add_argument("--length", type=int, default=128, help="tokens of a continuation")
    options.add_argument("--prompt-characters", type=int, default=200)
    options.add_argument("--temperature", type=float, default=1.0)
    options.add_argument("--thresholds", type=measuring.numbers,
                         default=[0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3])
    options.add_argument("--caches", type=lambda text: text.split(","),
                         default=["none", "prefix", "dual"],
                         help="of the model that sees texts whole, none first")
    return options


if __name__ == "__main__":
    measuring.main(parser(), measure, prepare_check, check)
