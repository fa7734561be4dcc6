#!/usr/bin/env python3
"""Has the reference libraries read the tokenizer files that `pronghorn` makes of GGUF vocabularies.

    python3 -m venv venv
    venv/bin/pip install tokenizers sentencepiece gguf numpy
    venv/bin/python scripts/check_gguf_tokenizers.py [--binary build/pronghorn] [FILE.gguf ...]

Besides the files named, a GGUF vocabulary is made of every golden of the kinds that such files hold
(tests/formats/golden). `pronghorn tokenize FILE --save` writes each as the files of a Hugging Face
directory; tokenizers must load the tokenizer.json, or sentencepiece the tokenizer.model, and give the
ids and texts that `pronghorn tokenize` gives. Prints a line for each, and exits with 1 if any differs.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import sentencepiece
from tokenizers import Tokenizer

from tokenizer_kinds import random_text

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests" / "formats" / "golden"
WORD_MARK = "▁"
# The golden of a byte-level kind, and what such files call its way of cutting texts.
PRES = {"gpt2": "gpt-2", "llama3": "llama-bpe", "qwen2": "qwen2", "o200k": "gpt-4o", "tekken": "tekken",
        "kimi": "kimi-k2", "deepseek3": "deepseek-v3", "deepseek_coder": "deepseek-coder",
        "starcoder": "starcoder", "phi2": "phi-2"}
WORD_PIECES = ["bert", "bert_cased"]


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} fails: {done.stderr.decode()}")
    return done.stdout


def write_gguf(path, golden, pre):
    """What a converter writes of a golden; pre: None for word pieces."""
    parsed = json.loads((GOLDEN / golden / "tokenizer.json").read_text())
    added = {token["id"]: token for token in parsed["added_tokens"]}
    by_id = {i: text for text, i in parsed["model"]["vocab"].items()}
    by_id.update({i: token["content"] for i, token in added.items()})
    tokens, types = [], []
    for i in range(max(by_id) + 1):
        text = by_id.get(i, f"[PAD{i}]")
        kind = gguf.TokenType.NORMAL
        if i in added:
            kind = gguf.TokenType.CONTROL if added[i]["special"] else gguf.TokenType.USER_DEFINED
        if pre is None and not (text.startswith("[") and text.endswith("]")):
            text = text[2:] if text.startswith("##") else WORD_MARK + text
        tokens.append(text)
        types.append(kind)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("bert" if pre is None else "gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if pre is None:
        for name, key in (("[CLS]", "cls"), ("[CLS]", "bos"), ("[SEP]", "seperator"), ("[UNK]", "unknown")):
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", tokens.index(name))
        lower = parsed["normalizer"]["lowercase"]
        writer.add_bool("tokenizer.ggml.normalizer.lowercase", lower)
    else:
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge)
                                 for merge in parsed["model"]["merges"]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Pieces:
    """sentencepiece behind the two calls of tokenizers that are used here."""

    def __init__(self, folder):
        self.model = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        self.before = [self.model.bos_id()] if config["add_bos_token"] else []
        self.after = [self.model.eos_id()] if config["add_eos_token"] else []
        self.added = [token["content"] for token in config["added_tokens_decoder"].values()]

    def without_added(self, text):
        """The text of added tokens cuts a text in `pronghorn`, as in transformers; not here."""
        for name in self.added:
            text = text.replace(name, "")
        return text

    def encode(self, text):
        return self.before + self.model.encode(text) + self.after

    def decode(self, ids):
        return self.model.decode([i for i in ids if not self.model.is_control(i)])


class Assembled:
    def __init__(self, folder):
        self.model = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(self, text):
        return self.model.encode(text).ids

    def decode(self, ids):
        return self.model.decode(ids, skip_special_tokens=True)


def check(binary, name, path, text):
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        run(binary, "tokenize", path, "--save", folder / "saved")
        json_file = folder / "saved" / "tokenizer.json"
        reference = Assembled(folder / "saved") if json_file.exists() else Pieces(folder / "saved")
        if isinstance(reference, Pieces):
            text = reference.without_added(text)
        (folder / "text").write_text(text)
        expected = reference.encode(text)
        (folder / "ids").write_text(" ".join(map(str, expected)))
        wrong = []
        for source in (path, folder / "saved"):
            ids = json.loads(run(binary, "tokenize", source, "--file", folder / "text", "--json"))
            if ids["tokens"] != expected:
                same = [a == b for a, b in zip(ids["tokens"], expected)]
                wrong.append(f"ids from {same.index(False) if False in same else len(same)} on")
        back = run(binary, "tokenize", path, "--file", folder / "ids", "--decode", "--no-special")
        if back.decode(errors="replace") != reference.decode(expected):
            wrong.append("text")
    outcome = f"DIFFER: {', '.join(wrong)}" if wrong else "equal"
    print(f"{name:32} {len(text)} characters, {len(expected)} tokens: {outcome}", flush=True)
    return not wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="build/pronghorn")
    parser.add_argument("--characters", type=int, default=100_000)
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    options = parser.parse_args()
    text = random_text(options.characters, 11)
    good = True
    with tempfile.TemporaryDirectory() as temporary:
        made = {**PRES, **{kind: None for kind in WORD_PIECES}}
        for golden, pre in made.items():
            path = pathlib.Path(temporary) / f"{golden}.gguf"
            write_gguf(path, golden, pre)
            good &= check(options.binary, golden, path, text)
    for path in options.files:
        good &= check(options.binary, path.name, path, text)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
