#!/usr/bin/env python3
"""Makes tests/formats/golden: small tokenizers and what the `tokenizers` library does with them.

Needs the Python packages tokenizers and sentencepiece. Run from the root of the repository.
"""

import json
import pathlib

from tokenizer_kinds import KINDS, TEXT, random_text

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "formats" / "golden"

CASES = [
    "", " ", "  ", "\n", "\n\n\n", "\t", "a", " a", "Hello world", " Hello  world ",
    "Hello, y'all! How are you 😁 ?我想在apple工作1314151天～", "the the the  the",
    "It's they'll DON'T I'm you'd", "3", "33", "333", "3333", "33333 1,234.56", "²³¼ x²",
    "def f(x):\n    return x\n\n\n    # done\t\n", "naïve café Ελλάδα нещо на Български",
    "こんにちは世界 你好，世界。", "🦙🦙🏽‍♂️ \u200d zero\u200bwidth", "a\u00a0b\u3000c\u2003d", "\r\n mixed \r\n line ends\r",
    "<s>hello</s>", "a <|end|> b<|end|>", "<|end|><|end|>", "pad  <pad>  pad", "a word,word words worded",
    "x▁y ▁", "!!!??...---", "ééé e\u0301", "'s 'S 't",
    "\u0001\u007f\ufeff bom", "ASDF qwerty " * 5, "w048 7tuijk dsdfhu", " " * 37 + "x",
    "Ⅻ ½ \u0e3f ｆｕｌｌ ﬁ Ω \u1e9e İ", "\u0378\U0001e08f\u1c89\U000323b0 new", "한국어 각각",
]
NAMES = {"gpt2": ("<|end|>", "<|end|>"), "llama3": ("<s>", "</s>"), "llama2": ("<s>", "</s>"),
         "metaspace": ("<s>", "</s>"), "falcon": (None, "<|end|>")}


def save(name, tokenizer):
    folder = ROOT / name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    bos, eos = NAMES.get(name, (None, None))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.update({key: value for key, value in (("bos_token", bos), ("eos_token", eos)) if value})
    (folder / "tokenizer_config.json").write_text(json.dumps(config, sort_keys=True) + "\n")
    cases = []
    for text in CASES + [TEXT, random_text(150, 1), random_text(150, 2)]:
        tokenizer.encode_special_tokens = False
        ids = tokenizer.encode(text).ids
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append({"text": text, "ids": ids, "plain": plain,
                      "decoded": tokenizer.decode(ids, skip_special_tokens=True)})
    lines = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
    (folder / "cases.json").write_text("[" + lines + "]\n")


if __name__ == "__main__":
    for kind, make in KINDS.items():
        save(kind, make())
