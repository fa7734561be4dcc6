#!/usr/bin/env python3
"""Sparse attention beside dense attention: speed at contexts, and needles found.

  bench/sparse_attention.py --size 5m                                     # speed, random weights
  bench/sparse_attention.py --size 5m --needles 10000000 --data book.txt  # and needles

Reads prompts and decodes behind them with `pronghorn bench`, every model once in each round, so
that what disturbs the machine disturbs all of them; ratios are those of medians to the dense model
beside which a sparse one stands: transformer for nsa, moba and Quest (the transformer itself with
--quest-pages), mla for dsa. With --needles every model is trained for as many tokens on the task
`niah` and judged at the training length. Quest chooses pages in decoding alone, and `eval --task`
decodes nothing, so it has no needles of its own.
"""

import json
import pathlib
import statistics

import measuring

# Sparse models, and the dense ones beside them.
BESIDE = {"nsa": "transformer", "moba": "transformer", "dsa": "mla", "quest": "transformer"}


def config_of(options, name):
    return pathlib.Path(options.configs) / f"{name}-{options.size}.json"


def speeds(pronghorn, options, names):
    """Of each model and context: lists of prompt and decode tokens/s, one number a round."""
    found = {}
    for turn in range(options.rounds):
        for context in options.contexts:
            for name in names:
                measuring.say(f"round {turn + 1}: {name} at {context}")
                own = config_of(options, "transformer" if name == "quest" else name)
                extra = ["--quest-pages", options.quest_pages] if name == "quest" else []
                result = pronghorn.json("bench", own, "--prompt", context, "--generate",
                                        options.generate, "--repeat", 1, *extra)
                for part, key in (("prefill", "prompt"), ("decode", "decode")):
                    found.setdefault((name, context, key), []).append(
                        result[part]["tokens_per_second"]["median"])
    return {key: statistics.median(values) for key, values in found.items()}


def needles(pronghorn, options, name):
    """The share of examples whose needles are all found."""
    task = ["--task", "niah", "--task-length", options.needle_length, "--data", *options.data]
    many = ["--task-questions", options.needle_questions, "--task-haystacks",
            options.needle_haystacks, "--task-curriculum", options.needles * 3 // 10]
    settings = ["--set", f"batch_tokens={max(2048, options.needle_length)}"]
    directory, _ = pronghorn.trained(f"needles-{name}-{options.size}", config_of(options, name),
                                     *task, *many, *settings, "--tokens", options.needles)
    result = pronghorn.json("eval", directory, *task, "--examples", options.examples)
    return result["solved"] / result["examples"]


def measure(options):
    if options.needles and not options.data:
        raise measuring.Failure("--needles: needs --data, the text that needles are hidden in")
    pronghorn = measuring.Pronghorn(options)
    unknown = [name for name in options.models if name not in BESIDE]
    if unknown:
        raise measuring.Failure(f"--models: {unknown[0]} is none of {', '.join(BESIDE)}")
    dense = [name for name in ("transformer", "mla")
             if name in {BESIDE[model] for model in options.models}]
    names = dense + options.models
    speed = speeds(pronghorn, options, names)
    found = {}
    if options.needles:
        found = {name: needles(pronghorn, options, name) for name in names if name != "quest"}

    headers = ["model", "beside"]
    for context in options.contexts:
        headers += [f"prompt {context}", "x", f"decode {context}", "x"]
    headers += ["needles"] if found else []
    rows, verdicts = [], []
    longest, shortest = max(options.contexts), min(options.contexts)
    for name in names:
        beside = BESIDE.get(name)
        row = [name, beside]
        for context in options.contexts:
            for part in ("prompt", "decode"):
                rate = speed[name, context, part]
                ratio = rate / speed[beside, context, part] if beside else None
                row += [rate, ratio]
                # Quest reads prompts as ever.
                if ratio is None or (name == "quest" and part == "prompt"):
                    continue
                if context == longest and longest > shortest:
                    least = 3 if part == "decode" else 2
                    verdicts.append((ratio >= least, f"{part} of {name} at {context} is "
                                                     f"{ratio:.2f} times that of {beside}, at "
                                                     f"least {least}"))
                if context == shortest:
                    verdicts.append((ratio >= 0.9, f"{part} of {name} at {context} is {ratio:.2f} "
                                                   f"times that of {beside}, at least 0.9"))
        if found:
            row.append(found.get(name))
            if beside and name in found:
                less = 100 * (found[beside] - found[name])
                verdicts.append((less <= 5, f"{name} finds {100 * found[name]:.1f}% of the "
                                            f"needles, {beside} {100 * found[beside]:.1f}%"))
        rows.append(row)
    results = {"size": options.size, "rounds": options.rounds, "needles": found, "speed": [
        {"model": name, "context": context, "part": part, "tokens_per_second": rate}
        for (name, context, part), rate in speed.items()]}
    measuring.finish(options, headers, rows, results, verdicts)
    return results


def prepare_check(options, folder):
    rope = {"heads": 2, "head_dim": 32, "rope": {}}
    mixers = {
        "transformer": {"type": "attention", **rope},
        "mla": {"type": "mla", "heads": 2, "head_dim": 8, "rope_dim": 8, "latent": 16, "rope": {}},
        "nsa": {"type": "nsa", **rope, "compress_block": 8, "compress_stride": 4,
                "compress_size": 8, "select_block": 64, "select_top": 3, "window": 32},
        "moba": {"type": "moba", **rope, "block": 64, "top": 2},
        "dsa": {"type": "dsa", "heads": 2, "head_dim": 8, "rope_dim": 8, "latent": 16, "top": 20,
                "rope": {}}}
    for name, mixer in mixers.items():
        (folder / f"{name}-tiny.json").write_text(json.dumps(measuring.tiny_config(mixer)))
    options.configs, options.size = folder, "tiny"
    options.contexts, options.generate, options.rounds, options.quest_pages = [64, 256], 4, 1, 2
    options.needles, options.needle_length, options.examples = 8192, 128, 6
    options.needle_questions = options.needle_haystacks = 1
    options.data = [folder / "text.txt"]


def check(results):
    if len(results["speed"]) != 6 * 2 * 2:
        return f"{len(results['speed'])} speeds of 24"
    if not all(row["tokens_per_second"] > 0 for row in results["speed"]):
        return "a speed that is not positive"
    if sorted(results["needles"]) != ["dsa", "mla", "moba", "nsa", "transformer"]:
        return f"needles of {sorted(results['needles'])}"
    return None


def parser():
    options = measuring.parser_of(__doc__)
    options.add_argument("--configs", default="configs", help="folder of NAME-SIZE.json")
    options.add_argument("--size", default="5m", help="1m, 5m or 20m")
    options.add_argument("--models", type=lambda text: text.split(","), default=list(BESIDE),
                         help="sparse ones, with commas: nsa,moba,dsa,quest")
    options.add_argument("--contexts", type=measuring.integers, default=[1024, 32768])
    options.add_argument("--generate", type=int, default=64, help="tokens decoded behind a context")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--quest-pages", type=int, default=64, help="pages of 16 tokens")
    options.add_argument("--needles", type=int, default=0,
                         help="tokens of training on niah; 0: none")
    options.add_argument("--needle-length", type=int, default=1024)
    options.add_argument("--needle-questions", type=int, default=16)
    options.add_argument("--needle-haystacks", type=int, default=8)
    options.add_argument("--examples", type=int, default=200, help="that needles are counted in")
    options.add_argument("--data", nargs="+", default=[], help="text that needles are hidden in")
    return options


if __name__ == "__main__":
    measuring.main(parser(), measure, prepare_check, check)
