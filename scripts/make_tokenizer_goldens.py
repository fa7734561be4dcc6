#!/usr/bin/env python3
"""Makes tests/formats/golden: small tokenizers and what the `tokenizers` library does with them.

Needs the Python package tokenizers. Run from the root of the repository.
"""

import json
import pathlib

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors, trainers)

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "formats" / "golden"

TEXT = """The pronghorn is not the fastest animal over a hundred metres, but it is over long
distances. It's the second fastest land animal in the western hemisphere; they'll run at 55 miles
an hour, and we've seen 1234567 of them in 2023. "Don't," said the hunter, "you'd better not!"
    def run(self, x):
        return [x ** 2 for x in range(100)]  # squares
Führer, naïve café, señor, Größe. Привет, мир! Как дела? こんにちは世界。你好，世界。 🦙🦙 Ωmega.

The state of a sequence is an anchor and a journal: the journal has one row a token, and the anchor
is what the rows have been folded into. The chunked form and the recurrent form are the same.
"""

CASES = [
    "", " ", "  ", "\n", "\n\n\n", "\t", "a", " a", "Hello world", " Hello  world ",
    "Hello, y'all! How are you 😁 ?我想在apple工作1314151天～", "the the the  the",
    "It's they'll DON'T I'm you'd", "3", "33", "333", "3333", "33333 1,234.56", "\u00b2\u00b3\u00bc x\u00b2",
    "def f(x):\n    return x\n\n\n    # done\t\n", "naïve café Ελλάδα нещо на Български",
    "こんにちは世界 你好，世界。", "🦙🦙🏽‍♂️ \u200d zero\u200bwidth", "a\u00a0b\u3000c\u2003d", "\r\n mixed \r\n line ends\r",
    "<s>hello</s>", "a <|end|> b<|end|>", "<|end|><|end|>", "pad  <pad>  pad", "a word,word words worded",
    "x▁y ▁", "!!!??...---", "ééé e\u0301", "'s 'S 't",
    "\u0001\u007f\ufeff bom", "ASDF qwerty " * 5, "w048 7tuijk dsdfhu", " " * 37 + "x",
]


def save(name, tokenizer, config):
    folder = ROOT / name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, sort_keys=True) + "\n")
    cases = []
    for text in CASES + [TEXT]:
        tokenizer.encode_special_tokens = False
        ids = tokenizer.encode(text).ids
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append({"text": text, "ids": ids, "plain": plain,
                      "decoded": tokenizer.decode(ids, skip_special_tokens=True)})
    lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases)
    (folder / "cases.json").write_text("[" + lines + "]\n")


def train(tokenizer, vocab_size, alphabet=(), special=()):
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=list(alphabet),
                                  special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)


def template(bos, bos_id):
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                         special_tokens=[(bos, bos_id)])


def gpt2():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    train(t, 500, pre_tokenizers.ByteLevel.alphabet(), ["<|end|>"])
    t.add_tokens([AddedToken("  ", normalized=True), AddedToken("word", single_word=True)])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    save("gpt2", t, {"bos_token": "<|end|>", "eos_token": {"content": "<|end|>"}})


def llama3():
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
               r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    train(t, 500, pre_tokenizers.ByteLevel.alphabet(), ["<s>", "</s>"])
    t.add_special_tokens([AddedToken("<pad>", lstrip=True, rstrip=True, normalized=False)])
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                            template("<s>", 0)])
    save("llama3", t, {"bos_token": "<s>", "eos_token": "</s>"})


def falcon():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")])
    t.decoder = decoders.ByteLevel()
    train(t, 420, pre_tokenizers.ByteLevel.alphabet(), ["<|end|>"])
    save("falcon", t, {"eos_token": "<|end|>"})


def behaviours():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("an", "merged_with_next"),
        pre_tokenizers.Split(Regex(r"[,.]"), "merged_with_previous"),
        pre_tokenizers.Split(Regex(r"\w+"), "contiguous", invert=True),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    train(t, 420, pre_tokenizers.ByteLevel.alphabet(), ["<|end|>"])
    save("behaviours", t, {"eos_token": "<|end|>"})


def byte_tokens():
    return [f"<0x{i:02X}>" for i in range(256)]


def llama2():
    """A BPE over characters with byte fallback, and no pre-tokenizer."""
    scratch = Tokenizer(models.BPE(unk_token="<unk>"))
    scratch.pre_tokenizer = pre_tokenizers.Metaspace()
    train(scratch, 300, "", ["<unk>"])
    trained = json.loads(scratch.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>"] + byte_tokens()
    tokens += [t for t in trained["vocab"] if t not in tokens]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in trained["merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    t = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                   decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.add_special_tokens([AddedToken(s, normalized=False) for s in ("<unk>", "<s>", "</s>")])
    t.post_processor = template("<s>", 1)
    save("llama2", t, {"bos_token": "<s>", "eos_token": "</s>"})

    t.normalizer = None
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    t.decoder = decoders.Sequence([decoders.ByteFallback(),
                                   decoders.Metaspace(prepend_scheme="first")])
    save("metaspace", t, {"bos_token": "<s>", "eos_token": "</s>"})


if __name__ == "__main__":
    gpt2()
    llama3()
    falcon()
    behaviours()
    llama2()
