#!/usr/bin/env python3
"""Compares the World tokenizer of RWKV with that of its authors' package, on the whole vocabulary.

    python3 -m venv venv && venv/bin/pip install --no-deps rwkv
    venv/bin/pip install tokenizers sentencepiece     # for the random text
    venv/bin/python scripts/check_world_tokenizer.py [--binary build/pronghorn] [--write-goldens]

`pronghorn tokenize` must give the package's ids of random text and the text of those again, from the
vocabulary file of the package. Exits with 1 if it does not. --write-goldens makes tests/formats/golden/world
instead: a small vocabulary with the ids that the package gives for some texts.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import importlib.util

from tokenizer_kinds import TEXT, random_text

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests" / "formats" / "golden" / "world"
FILE = "rwkv_vocab_v20230424.txt"


def package_folder():
    # The package itself asks for torch, its tokenizer does not.
    return pathlib.Path(importlib.util.find_spec("rwkv").submodule_search_locations[0])


def reference(vocabulary):
    spec = importlib.util.spec_from_file_location("world", package_folder() / "rwkv_tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TRIE_TOKENIZER(str(vocabulary))


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} {command[1]} fails: {done.stderr.decode()}")
    return done.stdout


def small_vocabulary():
    """All bytes, some words of the text with and without a space, and what is awkward to write."""
    words = sorted({word for word in TEXT.split() if len(word) > 2})[::4]
    tokens = [bytes([i]) for i in range(256)]
    tokens += [word.encode() for word in words] + [(" " + word).encode() for word in words]
    tokens += [word.encode()[:3] for word in words] + [word.encode()[1:4] for word in words]
    tokens += [b"\n\n", b"\r\n", b"  ", b"    ", b"'s", b'"\'', b"\\n", b"\t\t", "。\n".encode(),
               "\u3000".encode(), "世界".encode(), b"\xe4\xb8", b"\xf0\x9f\xa6", b"\x00\x00", b"b'"]
    return list(dict.fromkeys(tokens))


def write_goldens():
    GOLDEN.mkdir(exist_ok=True)
    with (GOLDEN / FILE).open("w", encoding="utf-8", newline="\n") as file:
        for i, token in enumerate(small_vocabulary(), 1):
            try:
                literal = repr(token.decode())
            except UnicodeDecodeError:
                literal = repr(token)
            file.write(f"{i} {literal} {len(token)}\n")
    tokenizer = reference(GOLDEN / FILE)
    texts = [TEXT, "", "\n\n\n", "it's \"'quoted'\" \\n", "  four    spaces\r\n\r\n", "世界。\n世",
             "\x00\x00\x00", "\u3000", random_text(600, 3)]
    cases = [{"text": text, "ids": tokenizer.encode(text)} for text in texts]
    (GOLDEN / "cases.json").write_text(json.dumps(cases, indent=0) + "\n")


def check(binary, characters):
    text = random_text(characters, 5)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        shutil.copy(package_folder() / FILE, folder / FILE)
        expected = reference(folder / FILE).encode(text)
        (folder / "text").write_bytes(text.encode())
        (folder / "ids").write_text(" ".join(map(str, expected)))
        ids = json.loads(run(binary, "tokenize", folder, "--file", folder / "text", "--json"))
        back = run(binary, "tokenize", folder, "--file", folder / "ids", "--decode")
        good = ids["tokens"] == expected and back == text.encode()
    print(f"{len(text)} characters, {len(expected)} tokens: {'equal' if good else 'DIFFER'}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="build/pronghorn")
    parser.add_argument("--characters", type=int, default=1_000_000)
    parser.add_argument("--write-goldens", action="store_true")
    options = parser.parse_args()
    if options.write_goldens:
        write_goldens()
    elif not check(options.binary, options.characters):
        sys.exit(1)


if __name__ == "__main__":
    main()
