"""Small tokenizers of the kinds that published models use, trained with the `tokenizers` library.

Each has the normaliser, pre-tokenizer, post-processor and decoder of the published one and a tiny
vocabulary. For make_tokenizer_goldens.py and check_tokenizers.py.
"""

import json
import os
import random
import tempfile

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors, trainers)

TEXT = """The pronghorn is not the fastest animal over a hundred metres, but it is over long
distances. It's the second fastest land animal in the western hemisphere; they'll run at 55 miles
an hour, and we've seen 1234567 of them in 2023. "Don't," said the hunter, "you'd better not!"
    def run(self, x):
        return [x ** 2 for x in range(100)]  # squares
Führer, naïve café, señor, Größe. Привет, мир! Как дела? こんにちは世界。你好，世界。 🦙🦙 Ωmega.

The state of a sequence is an anchor and a journal: the journal has one row a token, and the anchor
is what the rows have been folded into. The chunked form and the recurrent form are the same.
"""

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SHORT}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SHORT}|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = O200K.replace(SHORT, "").replace(r"\p{N}{1,3}", r"\p{N}")
NOT_HAN = "&&[^\\p{Han}]]"
KIMI = (r"[\p{Han}]+|" +
        O200K.replace(r"[\r\n/]*", r"[\r\n]*").replace(UPPER, UPPER[:-1] + NOT_HAN).replace(LOWER, LOWER[:-1] + NOT_HAN))
DEEPSEEK3 = ('[!"' + r"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
             r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPACES = "▁"


def train(tokenizer, size, alphabet=(), special=(), **options):
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(alphabet),
                                  special_tokens=list(special), show_progress=False, **options)
    tokenizer.train_from_iterator([TEXT], trainer)


def template(bos=None, eos=None):
    single = " ".join(([bos[0]] if bos else []) + ["$A"] + ([eos[0]] if eos else []))
    return processors.TemplateProcessing(single=single, special_tokens=[t for t in (bos, eos) if t])


def byte_level(steps, size=420, special=("<|end|>",), normalizer=None, post=None, **model):
    """A byte-level BPE; steps: the pre-tokenizers."""
    t = Tokenizer(models.BPE(**model))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    t.decoder = decoders.ByteLevel()
    train(t, size, pre_tokenizers.ByteLevel.alphabet(), special)
    t.post_processor = post or processors.ByteLevel(trim_offsets=False)
    return t


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def plain_bytes(**options):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, **options)


def gpt2():
    t = byte_level([pre_tokenizers.ByteLevel(add_prefix_space=False)], 450)
    t.add_tokens([AddedToken("  ", normalized=True), AddedToken("word", single_word=True)])
    return t


def llama3():
    t = byte_level([split(LLAMA3), plain_bytes()], 450, ["<s>", "</s>"], ignore_merges=True)
    t.add_special_tokens([AddedToken("<pad>", lstrip=True, rstrip=True, normalized=False)])
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                            template(("<s>", 0))])
    return t


def qwen2():
    return byte_level([split(QWEN2), plain_bytes()], normalizer=normalizers.NFC())


def o200k():
    return byte_level([split(O200K), plain_bytes()])


def tekken():
    return byte_level([split(TEKKEN), plain_bytes()], special=["<s>", "</s>"], ignore_merges=True,
                      post=template(("<s>", 0)))


def kimi():
    return byte_level([split(KIMI), plain_bytes()])


def deepseek3():
    return byte_level([split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK3),
                       plain_bytes()], special=["<s>", "</s>"], post=template(("<s>", 0)))


def deepseek_coder():
    return byte_level([split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"),
                       split("[一-龥ࠀ-一가-퟿]+"), pre_tokenizers.Digits(individual_digits=True),
                       plain_bytes()])


def falcon():
    return byte_level([pre_tokenizers.Punctuation("contiguous"),
                       pre_tokenizers.ByteLevel(add_prefix_space=False),
                       pre_tokenizers.Digits(individual_digits=False), split("[0-9][0-9][0-9]")])


def neox():
    t = byte_level([pre_tokenizers.ByteLevel(add_prefix_space=False)], normalizer=normalizers.NFC())
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in (2, 3, 4, 8)])
    return t


def phi2():
    t = byte_level([pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.add_tokens([AddedToken("\t" * n, normalized=False) for n in (2, 3)] +
                 [AddedToken(" " * n, normalized=False) for n in (2, 4, 31)])
    return t


def starcoder():
    return byte_level([pre_tokenizers.Digits(individual_digits=True),
                       pre_tokenizers.ByteLevel(add_prefix_space=False)])


def roberta():
    t = byte_level([pre_tokenizers.ByteLevel(add_prefix_space=True)],
                   special=["<s>", "<pad>", "</s>", "<unk>"])
    t.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    t.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return t


def behaviours():
    """Every behaviour of Split and what is rarely used."""
    return byte_level([
        pre_tokenizers.Split("an", "merged_with_next"),
        pre_tokenizers.Split(Regex(r"[,.]"), "merged_with_previous"),
        pre_tokenizers.Split(Regex(r"\w+"), "contiguous", invert=True),
        pre_tokenizers.Split(Regex(r"(?=[xyz])"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True), plain_bytes()])


def byte_tokens():
    return [f"<0x{i:02X}>" for i in range(256)]


def sentence_bpe(model, special):
    """The vocabulary of a BPE over characters with byte fallback."""
    scratch = Tokenizer(models.BPE(unk_token="<unk>"))
    scratch.pre_tokenizer = pre_tokenizers.Metaspace()
    train(scratch, 300, "", ["<unk>"])
    trained = json.loads(scratch.to_str())["model"]
    tokens = list(special) + byte_tokens()
    tokens += [t for t in trained["vocab"] if t not in tokens]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in trained["merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    return Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, **model))


def llama2():
    t = sentence_bpe({"fuse_unk": True}, ["<unk>", "<s>", "</s>"])
    t.normalizer = normalizers.Sequence([normalizers.Prepend(SPACES),
                                         normalizers.Replace(" ", SPACES)])
    t.decoder = decoders.Sequence([decoders.Replace(SPACES, " "), decoders.ByteFallback(),
                                   decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.add_special_tokens([AddedToken(s, normalized=False) for s in ("<unk>", "<s>", "</s>")])
    t.post_processor = template(("<s>", 1))
    return t


def metaspace():
    """Llama 2 without legacy."""
    t = llama2()
    t.normalizer = normalizers.Sequence([])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    t.decoder = decoders.Sequence([decoders.ByteFallback(),
                                   decoders.Metaspace(prepend_scheme="first")])
    return t


def mistral():
    """Llama 2 without legacy, as converters write it: not cut at spaces."""
    t = llama2()
    t.normalizer = normalizers.Sequence([])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return t


def gemma():
    t = sentence_bpe({"fuse_unk": True}, ["<pad>", "<eos>", "<bos>", "<unk>"])
    t.normalizer = normalizers.Replace(" ", SPACES)
    t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    t.decoder = decoders.Sequence([decoders.Replace(SPACES, " "), decoders.ByteFallback(),
                                   decoders.Fuse()])
    t.add_special_tokens([AddedToken(s, normalized=False)
                          for s in ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>")])
    t.add_tokens([AddedToken("\n" * n, normalized=False) for n in (1, 2, 3)])
    t.post_processor = template(("<bos>", 2))
    return t


def charsmap(rules):
    """SentencePiece's compiled rules: a named set, or pairs of texts."""
    import sentencepiece
    with tempfile.TemporaryDirectory() as folder:
        text = os.path.join(folder, "text")
        with open(text, "w", encoding="utf-8") as file:
            file.write(TEXT)
        options = {"normalization_rule_name": rules} if isinstance(rules, str) else {}
        if not options:
            options["normalization_rule_tsv"] = os.path.join(folder, "rules")
            with open(options["normalization_rule_tsv"], "w", encoding="utf-8") as file:
                for old, new in rules:
                    file.write(" ".join(f"{ord(c):X}" for c in old) + "\t" +
                               " ".join(f"{ord(c):X}" for c in new) + "\n")
        sentencepiece.SentencePieceTrainer.train(
            input=text, model_prefix=os.path.join(folder, "m"), vocab_size=110, model_type="unigram",
            minloglevel=5, hard_vocab_limit=False, **options)
        with open(os.path.join(folder, "m.model"), "rb") as file:
            model = file.read()

    def field(message, wanted):
        at = 0
        while at < len(message):
            numbers = []
            for _ in range(2 if message[at] & 7 in (0, 2) else 1):
                value, shift = 0, 0
                while True:
                    value |= (message[at] & 0x7F) << shift
                    shift += 7
                    at += 1
                    if message[at - 1] < 0x80:
                        break
                numbers.append(value)
            length = {2: numbers[-1], 5: 4, 1: 8, 0: 0}[numbers[0] & 7]
            if numbers[0] >> 3 == wanted:
                return message[at:at + length]
            at += length
        return b""

    return field(field(model, 3), 2)


# The little of SentencePiece's usual rules that goldens need.
FEW_RULES = [("\n", " "), ("\t", " "), ("\r", " "), ("\u00a0", " "), ("\u3000", " "),
             ("\uff21", "A"), ("\uff0c", ","), ("\u2126", "\u03a9"), ("\ufb01", "fi"),
             ("e\u0301", "\u00e9"), ("\u00bd", "1/2"), ("\u200b", ""), ("\u0001", "")]


def unigram(size=260, special=("<pad>", "</s>", "<unk>")):
    t = Tokenizer(models.Unigram())
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.train_from_iterator([TEXT] * 3, trainers.UnigramTrainer(
        vocab_size=size, special_tokens=list(special), unk_token="<unk>", show_progress=False))
    return t


def t5(rules=FEW_RULES):
    t = unigram()
    t.normalizer = normalizers.Precompiled(charsmap(rules))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(),
                                               pre_tokenizers.Metaspace()])
    t.decoder = decoders.Metaspace()
    t.post_processor = template(eos=("</s>", 1))
    return t


def albert(rules=FEW_RULES):
    t = unigram()
    t.normalizer = normalizers.Sequence([
        normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(),
        normalizers.StripAccents(), normalizers.Lowercase(),
        normalizers.Precompiled(charsmap(rules)), normalizers.Replace(Regex(" {2,}"), " ")])
    t.decoder = decoders.Metaspace()
    return t


def unigram_bytes():
    """Unigram with byte fallback, written on whole texts."""
    t = unigram()
    trained = json.loads(t.to_str())["model"]["vocab"]
    vocab = [tuple(entry) for entry in trained] + [(b, 0.0) for b in byte_tokens()]
    t.model = models.Unigram(vocab, 2, byte_fallback=True)
    t.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    t.decoder = decoders.Sequence([decoders.Replace(SPACES, " "), decoders.ByteFallback(),
                                   decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return t


BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert(lowercase=True):
    t = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20))
    t.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.train_from_iterator([TEXT], trainers.WordPieceTrainer(
        vocab_size=350, special_tokens=BERT_SPECIAL, show_progress=False))
    t.decoder = decoders.WordPiece()
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return t


def bert_cased():
    return bert(False)


def clip():
    t = Tokenizer(models.BPE(unk_token="<|end|>", continuing_subword_prefix="",
                             end_of_word_suffix="</w>"))
    t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "),
                                         normalizers.Lowercase()])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"),
                             "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.BPEDecoder("</w>")
    train(t, 800, pre_tokenizers.ByteLevel.alphabet(), ["<|end|>"], end_of_word_suffix="</w>")
    return t


def pieces_with_prefix():
    """A BPE whose symbols inside a word are marked, and characters that are unknown."""
    t = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##"))
    t.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFD(),
                                         normalizers.StripAccents()])
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    train(t, 300, special=["[UNK]"], continuing_subword_prefix="##", limit_alphabet=40)
    t.decoder = decoders.WordPiece(cleanup=False)
    return t


def word_level():
    t = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.CharDelimiterSplit(" "), pre_tokenizers.Punctuation("merged_with_previous"),
        pre_tokenizers.UnicodeScripts(), pre_tokenizers.FixedLength(4)])
    t.train_from_iterator([TEXT], trainers.WordLevelTrainer(
        vocab_size=400, special_tokens=["[UNK]"], show_progress=False))
    return t


def ctc():
    t = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    t.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    t.normalizer = normalizers.Replace(" ", "|")
    t.train_from_iterator([TEXT], trainers.WordLevelTrainer(
        vocab_size=400, special_tokens=["<pad>", "[UNK]"], show_progress=False))
    t.decoder = decoders.CTC()
    return t


KINDS = {f.__name__: f for f in (
    gpt2, llama2, llama3, qwen2, gemma, phi2, mistral, neox, falcon, deepseek3, deepseek_coder, t5,
    bert, bert_cased, o200k, tekken, kimi, starcoder, roberta, albert, clip, metaspace,
    unigram_bytes, behaviours, pieces_with_prefix, word_level, ctc)}


def random_text(count, seed):
    """Random Unicode, code, CJK, emoji and white space: `count` characters."""
    rng = random.Random(seed)
    spaces = " \t\n\r\u000b\u00a0\u1680\u2003\u2028\u202f\u205f\u3000\u0085\u200b"
    words = [w for w in TEXT.split() if w]
    code = ["def f(x):\n    return x**2\n", "if (a != b) { a[i] += 0x1F; }\n", "\t// don't\r\n",
            "https://example.org/a?b=c&d=%20", "<s>", "</s>", "<|end|>", "[MASK]", "<mask>", "''", "``",
            "CamelCaseWords", "snake_case_words", "'S 'LL it's WE'VE", "1234567.89", "   \n\n  "]
    emoji = ["🦙", "👩🏽‍🚀", "🏳️‍🌈", "☎️", "🇩🇪", "❤️", "1️⃣"]
    marks = "\u0301\u0308\u0323\u0327\u093c\u3099\u05b0\u0e49\u1ab0\u20d0\u0345"

    def character(low, high):
        while True:
            c = rng.randrange(low, high)
            if not 0xD800 <= c < 0xE000:
                return chr(c)

    makers = [
        lambda: rng.choice(words) + rng.choice(["", " ", " ", ", "]),
        lambda: rng.choice(words) + " ",
        lambda: rng.choice(code),
        lambda: "".join(rng.choice(spaces) for _ in range(rng.randrange(1, 5))),
        lambda: " " * rng.randrange(1, 12),
        lambda: "".join(character(0x4E00, 0x9FFF) for _ in range(rng.randrange(1, 6))),
        lambda: "".join(character(0xAC00, 0xD7A4) for _ in range(rng.randrange(1, 4))),
        lambda: "".join(character(0x3040, 0x3100) for _ in range(rng.randrange(1, 5))),
        lambda: rng.choice(emoji),
        lambda: character(0x41, 0x17F) + "".join(rng.choice(marks)
                                                for _ in range(rng.randrange(0, 4))),
        lambda: character(0x20, 0x7F),
        lambda: character(0x80, 0x3000),
        lambda: character(0x1, 0x110000),
        lambda: character(0x10000, 0x20000),
        lambda: str(rng.randrange(10 ** rng.randrange(1, 9))),
        lambda: rng.choice(["\u0000", "\ufffd", "\ufeff", "\u2581", "\u200d", "\u00ad", "\u0130"]),
    ]
    parts, length = [], 0
    while length < count:
        parts.append(rng.choice(makers)())
        length += len(parts[-1])
    return "".join(parts)[:count]
