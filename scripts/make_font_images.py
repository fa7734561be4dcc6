#!/usr/bin/env python3
"""Draws characters from installed fonts: FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png.

    scripts/make_font_images.py FOLDER [--size 32] [--characters 0123456789ABC...] [--fonts DIR ...]
                                [--captions]

--captions: train/captions.tsv and test/captions.tsv say what is drawn, as "the small letter a, bold".

Needs Pillow and fonts; scripts/install_packages.sh fonts installs both. Whole families are held out,
by the first word of their name: all variants of "DejaVu" are in train or all are in test. So what a
model is asked are characters of fonts that it has never seen. The same fonts give the same bytes.
"""
import argparse
import hashlib
import pathlib
import random
import re
import sys

from PIL import Image, ImageDraw, ImageFont

DIGITS_AND_LETTERS = "0123456789ABCDEFGHIJKLMNPQRSTUVWXYZabdefghijmnqrt"


# Fonts whose letters are others than their characters say, or hardly letters.
OTHERS = ("small", "caps", " sc", "initials", "keyboard", "symbol", "math", "dingbats", "d050000l",
          "outline")


def family_of(path):
    """The first word of a font's name; none for fonts of OTHERS."""
    family, style = ImageFont.truetype(str(path), 16).getname()
    name = re.sub(r"(?<=[a-z])SC\b", " SC", f"{family} {style} {path.stem}").lower()
    if any(other in name for other in OTHERS):
        return None
    return name.split()[0]


def covers(font, character):
    """Whether the font draws the character: not what it draws for one that it lacks."""
    missing = bytes(font.getmask("\uffff"))
    drawn = font.getmask(character)
    return drawn.getbbox() is not None and bytes(drawn) != missing


def caption_of(path, character):
    """What is drawn, in words."""
    style = (ImageFont.truetype(str(path), 16).getname()[1] or "").lower()
    words = [word for word, marks in (("bold", ("bold", "black", "heavy")),
                                      ("italic", ("italic", "oblique")))
             if any(mark in style for mark in marks)]
    kind = ("digit" if character.isdigit() else
            "small letter" if character.islower() else "capital letter")
    return ", ".join([f"the {kind} {character}", *words])


def draw(path, character, size, generator):
    """White on black, about in the middle, at a height and place that differ a little."""
    font = ImageFont.truetype(str(path), round(size * generator.uniform(0.6, 0.85)))
    if not covers(font, character):
        return None
    image = Image.new("L", (size, size), 0)
    canvas = ImageDraw.Draw(image)
    left, top, right, bottom = canvas.textbbox((0, 0), character, font=font)
    slack = size // 12
    x = (size - right - left) / 2 + generator.uniform(-slack, slack)
    y = (size - bottom - top) / 2 + generator.uniform(-slack, slack)
    canvas.text((round(x), round(y)), character, fill=255, font=font)
    return image


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--size", type=int, default=32, help="pixels of a side (default 32)")
    parser.add_argument("--characters", default=DIGITS_AND_LETTERS)
    parser.add_argument("--variants", type=int, default=3, help="drawings of a font (default 3)")
    parser.add_argument("--test", type=float, default=0.25, help="share of families held out")
    parser.add_argument("--captions", action="store_true", help="say in words what is drawn")
    parser.add_argument("--fonts", type=pathlib.Path, nargs="+",
                        default=[pathlib.Path("/usr/share/fonts")])
    options = parser.parse_args()

    fonts = sorted(p for place in options.fonts for p in place.rglob("*")
                   if p.suffix.lower() in (".ttf", ".otf"))
    families = {}
    for path in fonts:
        family = family_of(path)
        font = ImageFont.truetype(str(path), 32)
        if family and all(covers(font, c) for c in options.characters):
            families.setdefault(family, []).append(path)
    if len(families) < 2:
        sys.exit(f"{len(families)} families of fonts have these characters: at least 2 are needed")
    # Families in an order that is as good as random and does not change when others are added.
    names = sorted(families, key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = set(names[:max(1, round(options.test * len(names)))])

    counts = {"train": 0, "test": 0}
    captions = {"train": [], "test": []}
    for name in names:
        part = "test" if name in held_out else "train"
        for path in families[name]:
            for character in options.characters:
                # Lower-case letters have names of their own where a file system knows no case.
                label = character if not character.islower() else character + "_"
                place = options.folder / part / label
                place.mkdir(parents=True, exist_ok=True)
                for variant in range(options.variants):
                    image = draw(path, character, options.size,
                                 random.Random(f"{path.name} {character} {variant}"))
                    if image is None:
                        continue
                    file = f"{path.stem}-{variant}.png"
                    image.save(place / file, optimize=True)
                    captions[part].append(f"{label}/{file}\t{caption_of(path, character)}\n")
                    counts[part] += 1
    for part, lines in captions.items():
        if options.captions:
            (options.folder / part / "captions.tsv").write_text("".join(lines), encoding="utf-8")
    print(f"{counts['train']} images of {len(names) - len(held_out)} families to learn from, "
          f"{counts['test']} of {len(held_out)} held out: {', '.join(sorted(held_out))}")


if __name__ == "__main__":
    main()
