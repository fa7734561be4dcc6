#!/usr/bin/env python3
"""Compares `pronghorn tokenize` with the `tokenizers` library on random text, in both directions.

    scripts/check_tokenizers.py [--binary build/pronghorn] [--characters 1000000] [KIND ...]

Each kind is a small tokenizer with the parts of a published one (tokenizer_kinds.py). Prints one
line for each, and exits with 1 if any differs. Needs the Python packages tokenizers and
sentencepiece.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from tokenizer_kinds import KINDS, albert, random_text, t5


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} {command[1]} fails: {done.stderr.decode()}")
    return done.stdout


def differs(ours, reference):
    for i, (a, b) in enumerate(zip(ours, reference)):
        if a != b:
            return i
    return min(len(ours), len(reference)) if len(ours) != len(reference) else None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default="build/pronghorn")
    parser.add_argument("--characters", type=int, default=1_000_000)
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    options = parser.parse_args()
    text = random_text(options.characters, 7)
    # With the whole of SentencePiece's usual rules, which are too large for goldens.
    makers = dict(KINDS, t5=lambda: t5("nmt_nfkc"), albert=lambda: albert("nmt_nfkc_cf"))
    bad = 0
    for kind in options.kinds or makers:
        tokenizer = makers[kind]()
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            tokenizer.save(str(folder / "tokenizer.json"))
            (folder / "text").write_bytes(text.encode())
            ids = json.loads(run(options.binary, "tokenize", folder, "--file", folder / "text",
                                 "--json"))["tokens"]
            expected = tokenizer.encode(text).ids
            at = differs(ids, expected)
            (folder / "ids").write_text(" ".join(map(str, expected)))
            decoded = run(options.binary, "tokenize", folder, "--file", folder / "ids", "--decode")
            same = decoded.decode() == tokenizer.decode(expected, skip_special_tokens=False)
        print(f"{kind:20} {len(text)} characters, {len(expected)} tokens: "
              f"{'ids equal' if at is None else f'ids DIFFER from {at}'}, "
              f"{'text equal' if same else 'text DIFFERS'}", flush=True)
        bad += at is not None or not same
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
