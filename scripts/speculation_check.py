#!/usr/bin/env python3
"""Checks that speculation writes what plain decoding writes, to the bit, on trained models.

    scripts/speculation_check.py build/pronghorn book.txt MODEL... [--prompts 200] [--tokens 256]

Every model is continued from prompts cut from the text, greedily and sampled, with every drafter
(the models given serve as each other's), as a chain and as a tree, with 1 and 4 threads, alone and
eight together. Prints a line a run and ends with status 1 if any text differs.
"""

import argparse
import itertools
import json
import subprocess
import sys


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("text")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--extra-drafts", nargs="*", default=[], help="such as mtp")
    parser.add_argument("--quarter", action="store_true",
                        help="four of the sixteen settings, in which each value and each pair of "
                             "threads, batch and branches occurs")
    options = parser.parse_args()

    different = 0
    choices = [options.threads, options.batch, [0, 0.8], [1, 3]]
    places = itertools.product(*(range(len(choice)) for choice in choices))
    if options.quarter:
        places = [p for p in places if (p[0] + p[1] + p[3]) % 2 == 0 and p[2] == p[1]]
    settings = [[choice[i] for choice, i in zip(choices, place)] for place in places]
    for model, setting in itertools.product(options.models, settings):
        threads, batch, temperature, branches = setting
        others = [other for other in options.models if other != model][:1]
        drafts = ["ngram", "suffix", "early-exit:1", *others, *options.extra_drafts]
        if others:
            drafts.append(f"suffix,{others[0]}")
        command = [
            options.program, "bench", model, "--json", "--quiet", "--text", options.text,
            "--prompt", "64", "--generate", str(options.tokens), "--repeat", "0",
            "--draft-prompts", str(options.prompts), "--batch", str(batch),
            "--threads", str(threads), "--temperature", str(temperature),
            "--draft-tree", str(branches), "--precision", "f32",
        ]
        for draft in drafts:
            command += ["--draft", draft]
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        for row in result["drafters"]:
            same = row["same_text_as_plain"]
            different += not same
            print(f"{'ok  ' if same else 'FAIL'} {model} {threads} threads, batch {batch}, "
                  f"temperature {temperature}, branches {branches}: {row['drafter']}, "
                  f"{row['tokens_per_step']:.2f} tokens a step, {row['speed_up']:.2f}x", flush=True)
    print("all texts are the same" if different == 0 else f"{different} runs differ")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
