#!/usr/bin/env python3
"""Makes src/formats/unicode_tables.cpp: the character classes of the `tokenizers` library.

The library mixes several versions of Unicode, one for each of the packages it is built from, so its
classes are asked of the library itself, character by character. Needs the Python package tokenizers
and Debian's libonig, libutf8proc and clang-format; run from the root of the repository. Takes a few minutes.
"""

import ctypes
import pathlib
import subprocess

from tokenizers import Regex, normalizers, pre_tokenizers

CODES = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
OUT = pathlib.Path(__file__).resolve().parent.parent / "src" / "formats" / "unicode_tables.cpp"

CATEGORIES = ("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co "
              "Cn").split()
SCRIPTS = ("Han Hiragana Katakana Hangul Latin Greek Cyrillic Thai Arabic Hebrew Devanagari Kannada "
           "Telugu Lao Balinese Egyptian_Hieroglyphs Myanmar Khojki Common Inherited").split()
OTHER = ["alpha", "alnum", "word"]


def ranges(codes):
    out = []
    for code in sorted(codes):
        if out and out[-1][1] == code - 1:
            out[-1][1] = code
        else:
            out.append([code, code])
    return out


def where(test):
    return [c for c in CODES if test(chr(c))]


TEXT = "".join(map(chr, CODES))


def reference_property(name):
    """The characters that \\p{name} matches in the library's Oniguruma."""
    split = pre_tokenizers.Split(Regex(r"\p{%s}+" % name), "removed", invert=True)
    return {ord(c) for piece, _ in split.pre_tokenize_str(TEXT) for c in piece}


class Onig:
    """Debian's Oniguruma."""

    class Region(ctypes.Structure):
        _fields_ = [("allocated", ctypes.c_int), ("count", ctypes.c_int),
                    ("begin", ctypes.POINTER(ctypes.c_int)), ("end", ctypes.POINTER(ctypes.c_int))]

    def __init__(self):
        self.lib = ctypes.CDLL("libonig.so.5")
        self.utf8 = ctypes.addressof(ctypes.c_char.in_dll(self.lib, "OnigEncodingUTF8"))
        self.syntax = ctypes.addressof(ctypes.c_char.in_dll(self.lib, "OnigSyntaxOniguruma"))
        self.lib.onig_initialize(ctypes.byref(ctypes.c_void_p(self.utf8)), 1)
        self.lib.onig_search.argtypes = [ctypes.c_void_p] * 5 + [ctypes.POINTER(self.Region),
                                                                 ctypes.c_uint]
        self.lib.onig_region_new.restype = ctypes.POINTER(self.Region)
        self.region = self.lib.onig_region_new()
        self.data = TEXT.encode()
        self.text = ctypes.create_string_buffer(self.data)

    def property(self, name):
        regex, error = ctypes.c_void_p(), ctypes.create_string_buffer(64)
        pattern = (r"\p{%s}+" % name).encode()
        start = ctypes.create_string_buffer(pattern)
        begin = ctypes.addressof(start)
        status = self.lib.onig_new(ctypes.byref(regex), ctypes.c_void_p(begin),
                                   ctypes.c_void_p(begin + len(pattern)), 0,
                                   ctypes.c_void_p(self.utf8), ctypes.c_void_p(self.syntax), error)
        assert status == 0, (name, status)
        found = set()
        first, at = ctypes.addressof(self.text), 0
        end = first + len(self.data)
        while self.lib.onig_search(regex, first, end, first + at, end, self.region, 0) >= 0:
            at = self.region.contents.end[0]
            found.update(map(ord, self.data[self.region.contents.begin[0]:at].decode()))
        return found


def stand_ins():
    """Characters whose class differs between the two Onigurumas, each with one that has, in
    Debian's, the class that the first has in the reference's, and that takes as many bytes."""
    names = CATEGORIES + SCRIPTS + OTHER
    onig = Onig()
    ours = {name: onig.property(name) for name in names}
    theirs = {name: reference_property(name) for name in names}
    differ = set()
    for name in names:
        if name not in OTHER[2:]:
            differ |= ours[name] ^ theirs[name]

    def signature(sets, code):
        category = next(name for name in CATEGORIES if code in sets[name])
        script = next((name for name in SCRIPTS if code in sets[name]), "")
        return (len(chr(code).encode()), category, code in sets["alpha"], script)

    first = {}
    for code in CODES:
        if code not in differ and not 0xE000 <= code < 0xF900:
            first.setdefault(signature(ours, code), code)
    rows = []
    for code in sorted(differ):
        wanted = signature(theirs, code)
        stand_in = first.get(wanted)
        if stand_in is None:
            near = [c for s, c in first.items() if s[:2] == wanted[:2]]
            assert near, (hex(code), wanted)
            stand_in = min(near)
        if rows and rows[-1][1] == code - 1 and rows[-1][2] == stand_in:
            rows[-1][1] = code
        else:
            rows.append([code, code, stand_in])
    return rows


class Utf8proc:
    """Debian's utf8proc, which normalises."""

    def __init__(self):
        self.lib = ctypes.CDLL("libutf8proc.so.2")
        self.lib.utf8proc_get_property.restype = ctypes.POINTER(ctypes.c_int16)
        self.lib.utf8proc_get_property.argtypes = [ctypes.c_int32]
        self.lib.utf8proc_NFKD.restype = ctypes.c_char_p
        self.lib.utf8proc_NFKD.argtypes = [ctypes.c_char_p]

    def combining_class(self, code):
        return self.lib.utf8proc_get_property(code)[1]

    def changes(self, code):
        return code != 0 and self.lib.utf8proc_NFKD(chr(code).encode()) != chr(code).encode()


def not_normalized():
    """Characters that the library's normalisation does not know and utf8proc does: those that it
    does not decompose, and marks that do not change places with a mark of another class."""
    utf8proc = Utf8proc()
    nfd, nfkd = normalizers.NFD(), normalizers.NFKD()
    low, high = "\u0334", "\u0301"  # classes 1 and 230
    out = []
    for code in CODES:
        c = chr(code)
        ccc = utf8proc.combining_class(code)
        if ccc > 1 and nfd.normalize_str("a" + c + low) == "a" + c + low:
            out.append(code)
        elif ccc == 1 and nfd.normalize_str("a" + high + c) == "a" + high + c:
            out.append(code)
        elif utf8proc.changes(code) and nfkd.normalize_str(c) == c:
            out.append(code)
    return out


def lower():
    """Where the lower case differs from the character, as (first, last, step, difference) or, for
    more than one character, left to the caller."""
    lowercase = normalizers.Lowercase()
    rows, special = [], []
    for code in CODES:
        low = lowercase.normalize_str(chr(code))
        if low == chr(code):
            continue
        if len(low) > 1:
            special.append((code, low))
            continue
        difference = ord(low) - code
        if rows and rows[-1][3] == difference and (
                code - rows[-1][1] == rows[-1][2] or
                (rows[-1][0] == rows[-1][1] and code - rows[-1][1] <= 2)):
            rows[-1][2] = code - rows[-1][1]
            rows[-1][1] = code
        else:
            rows.append([code, code, 1, difference])
    assert [c for c, _ in special] == [0x130], special
    return rows


def scripts():
    """Characters by script, numbered in the order in which they are met."""
    split = pre_tokenizers.UnicodeScripts()

    def together(a, b):
        return len(split.pre_tokenize_str(a + b)) == 1

    examples, rows, last = [], [], 0
    for code in CODES:
        c = chr(code)
        if together("a", c) and together("\u0431", c):
            continue  # any script
        candidates = [last] + list(range(len(examples))) if examples else []
        script = next((s for s in candidates if together(examples[s], c)), None)
        if script is None:
            script = len(examples)
            examples.append(c)
        last = script
        if rows and rows[-1][1] == code - 1 and rows[-1][2] == script:
            rows[-1][1] = code
        else:
            rows.append([code, code, script])
    return rows


def write_ranges(file, name, rows):
    cells = ["{" + ", ".join((hex(x) if x >= 0 else str(x)) for x in row) + "}" for row in rows]
    kind = {"kScripts": "ScriptRange", "kStandIns": "StandIn", "kLower": "LowerRange"}.get(
        name, "CodeRange")
    lines, line = [], "   "
    for cell in cells:
        if len(line) + len(cell) + 2 > 100:
            lines.append(line)
            line = "   "
        line += " " + cell + ","
    lines.append(line)
    body = "\n".join(lines).rstrip(",")
    file.write(f"\nconst {kind} {name}_rows[] = {{\n{body}}};\n"
               f"const std::span<const {kind}> {name} = {name}_rows;\n")


def main():
    space = pre_tokenizers.WhitespaceSplit()
    word = pre_tokenizers.Whitespace()
    digits = pre_tokenizers.Digits(individual_digits=False)
    punctuation = pre_tokenizers.Punctuation("isolated")
    accents = normalizers.StripAccents()
    bert_accents = normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False,
                                              strip_accents=True, lowercase=False)
    bert = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=False,
                                      strip_accents=False, lowercase=False)
    tables = {
        "kWhitespace": ranges(where(lambda c: len(space.pre_tokenize_str("a" + c + "b")) == 2)),
        "kWord": ranges(where(lambda c: word.pre_tokenize_str("a" + c)[0][0] == "a" + c)),
        "kNumeric": ranges(where(lambda c: digits.pre_tokenize_str("+" + c)[0][0] == "+")),
        "kPunctuation": ranges(where(
            lambda c: len(punctuation.pre_tokenize_str("a" + c)) == 2)),
        "kCombiningMark": ranges(where(lambda c: accents.normalize_str("a" + c) == "a")),
        "kNonspacingMark": ranges(where(lambda c: bert_accents.normalize_str("a" + c) == "a")),
        "kBertRemoved": ranges(where(lambda c: bert.normalize_str("a" + c + "b") == "ab")),
        "kNotNormalized": ranges(not_normalized()),
        "kLower": lower(),
        "kScripts": scripts(),
        "kStandIns": stand_ins(),
    }
    with OUT.open("w") as file:
        file.write("// Made by scripts/make_unicode_tables.py; not to be changed by hand.\n"
                   '#include "formats/unicode_tables.h"\n\nnamespace pronghorn {\n')
        for name, rows in tables.items():
            write_ranges(file, name, rows)
        file.write("\n}  // namespace pronghorn\n")
    subprocess.run(["clang-format", "-i", OUT], check=True)


if __name__ == "__main__":
    main()
