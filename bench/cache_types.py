#!/usr/bin/env python3
"""Keys and values held in fewer bits: perplexity, and decoding behind long contexts.

  bench/cache_types.py --data book.txt --tokens 20000000          # trains transformer-20m first
  bench/cache_types.py --model runs/transformer-20m --data book.txt

Evaluates the text with every type of cache (`pronghorn eval --cache-type`), and decodes behind each
of --contexts (`pronghorn bench`), all types once in each round; the table has medians of the rounds
beside those of f32.
"""

import statistics

import measuring

# Types, the perplexity that they may cost, and how much faster decoding is to be at the longest
# context.
TYPES = {"f32": None, "bf16": None, "q8_0": (0.001, 1.5), "q4_0": (0.01, None)}


def measure(options):
    if not options.data:
        raise measuring.Failure("--data: is missing, the text to judge by")
    unknown = [name for name in options.types if name not in TYPES]
    if unknown or "f32" not in options.types:
        raise measuring.Failure(f"--types: f32 and some of {', '.join(TYPES)}")
    pronghorn = measuring.Pronghorn(options)
    model = pronghorn.transformer()
    judged, rates, state = {}, {}, {}
    window = ["--window", options.window] if options.window else []
    for name in options.types:
        measuring.say(f"perplexity with {name}")
        judged[name] = pronghorn.json("eval", model, "--data", *options.data, "--cache-type", name,
                                      *window)["perplexity"]
    for turn in range(options.rounds):
        for context in options.contexts:
            for name in options.types:
                measuring.say(f"round {turn + 1}: {name} behind {context}")
                result = pronghorn.json("bench", model, "--prompt", context, "--generate",
                                        options.generate, "--repeat", 1, "--cache-type", name)
                rates.setdefault((name, context), []).append(
                    result["decode"]["tokens_per_second"]["median"])
                state[name, context] = result["state_bytes"]
    speed = {key: statistics.median(values) for key, values in rates.items()}

    headers = ["cache", "perplexity", "more, %"]
    for context in options.contexts:
        headers += [f"decode {context}", "x", "state bytes"]
    rows, verdicts = [], []
    longest = max(options.contexts)
    for name in options.types:
        more = judged[name] / judged["f32"] - 1
        row = [name, f"{judged[name]:.4f}", f"{100 * more:.3f}"]
        for context in options.contexts:
            row += [speed[name, context], speed[name, context] / speed["f32", context],
                    state[name, context]]
        rows.append(row)
        if TYPES[name] is None:
            continue
        most, least = TYPES[name]
        verdicts.append((more <= most, f"{name} costs {100 * more:.3f}% of perplexity, at most "
                                       f"{100 * most:g}%"))
        if least:
            times = speed[name, longest] / speed["f32", longest]
            verdicts.append((times >= least, f"{name} decodes {times:.2f} times as fast behind "
                                             f"{longest}, at least {least}"))
    results = {"perplexity": judged, "decode": [
        {"cache": name, "context": context, "tokens_per_second": rate,
         "state_bytes": state[name, context]} for (name, context), rate in speed.items()]}
    measuring.finish(options, headers, rows, results, verdicts)
    return results


def prepare_check(options, folder):
    measuring.prepare_transformer(options, folder)
    options.rounds, options.generate = 1, 4
    options.types, options.contexts, options.window = list(TYPES), [64, 256], 64


def check(results):
    if len(results["decode"]) != 2 * len(TYPES):
        return f"{len(results['decode'])} speeds of {2 * len(TYPES)}"
    sizes = [row["state_bytes"] for row in results["decode"] if row["context"] == 256]
    if sizes != sorted(sizes, reverse=True):
        return f"states of {sizes} bytes"
    f32 = results["perplexity"]["f32"]
    if not all(1 <= value < 2 * f32 for value in results["perplexity"].values()):
        return f"perplexities {results['perplexity']}"
    return None


def parser():
    options = measuring.parser_of(__doc__)
    measuring.add_transformer(options, "the text to learn and to judge by")
    options.add_argument("--types", type=lambda text: text.split(","), default=list(TYPES))
    options.add_argument("--window", type=int, default=0,
                         help="of the evaluation (default: the model's)")
    options.add_argument("--contexts", type=measuring.integers, default=[1024, 32768])
    options.add_argument("--generate", type=int, default=64, help="tokens decoded behind a context")
    options.add_argument("--rounds", type=int, default=3)
    return options


if __name__ == "__main__":
    measuring.main(parser(), measure, prepare_check, check)
