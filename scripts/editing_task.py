#!/usr/bin/env python3
"""Makes a text-editing task out of a book: repeat a paragraph with one word replaced by another.

    scripts/editing_task.py book.txt DIR [--prompts 20] [--seed 11]

Writes DIR/train.txt, tasks with their answers from most paragraphs of the book and from random words
(which cannot be guessed, only copied); DIR/prompts/N.txt, tasks from the book's last paragraphs,
which the training text does not contain; and DIR/answers/N.txt. A task reads

    Write stone for bread:
    If a son shall ask bread of any of you that is a father, will he give him ...
    =>
    If a son shall ask stone of any of you that is a father, will he give him ...

and ends with an empty line.
"""

import argparse
import pathlib
import random
import re

SHORTEST, LONGEST = 150, 700  # characters of a paragraph


def task(rng, paragraph, vocabulary):
    """(question, answer) or None if the paragraph has too few words to choose from."""
    candidates = sorted(set(re.findall(r"[A-Za-z]{4,}", paragraph)))
    if len(candidates) < 4:
        return None
    old, new = rng.choice(candidates), rng.choice(vocabulary)
    answer = re.sub(rf"\b{old}\b", new, paragraph)
    return f"Write {new} for {old}:\n{paragraph}\n=>\n", answer + "\n\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("book", type=pathlib.Path)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()

    rng = random.Random(options.seed)
    text = options.book.read_text()
    vocabulary = sorted(set(re.findall(r"[A-Za-z]{3,9}", text)))
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n|\n", text)]
    paragraphs = [p for p in paragraphs if SHORTEST < len(p) < LONGEST]
    if len(paragraphs) < 100 * options.prompts:
        parser.error(f"{options.book}: {len(paragraphs)} paragraphs of {SHORTEST} to {LONGEST} "
                     f"characters are too few for {options.prompts} prompts")
    held_out = len(paragraphs) // 10
    known, unseen = paragraphs[:-held_out], paragraphs[-held_out:]

    tasks = []
    for _ in range(2):
        for paragraph in known:
            tasks.append(task(rng, paragraph, vocabulary))
            if rng.random() < 0.6:
                words = (rng.choice(vocabulary) for _ in range(rng.randint(8, 40)))
                tasks.append(task(rng, " ".join(words) + ".", vocabulary))
    tasks = [t for t in tasks if t is not None]
    rng.shuffle(tasks)
    for folder in ("prompts", "answers"):
        (options.directory / folder).mkdir(parents=True, exist_ok=True)
    (options.directory / "train.txt").write_text("".join(q + a for q, a in tasks))

    # The longest ones: what editing is slow at.
    unseen = sorted(unseen, key=len, reverse=True)[: options.prompts]
    for i, paragraph in enumerate(unseen):
        question, answer = task(rng, paragraph, vocabulary)
        (options.directory / "prompts" / f"{i:02}.txt").write_text(question)
        (options.directory / "answers" / f"{i:02}.txt").write_text(answer)


if __name__ == "__main__":
    main()
