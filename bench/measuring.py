"""What the measuring scripts beside this file share: running pronghorn, models that are trained
once and then reused, tables, and the tiny text and configurations of --self-check."""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile


class Failure(Exception):
    """What went wrong, for people."""


class Pronghorn:
    """The program, with the options of all of its commands."""

    def __init__(self, options):
        self.program, self.options = options.pronghorn, options

    def json(self, *arguments):
        """What a command prints with --json."""
        command = [self.program, *map(str, arguments), "--json", "--quiet"]
        if self.options.threads:
            command += ["--threads", str(self.options.threads)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  timeout=self.options.timeout, check=False)
        except (FileNotFoundError, PermissionError) as error:
            raise Failure(f"{self.program}: no such program (build it, or give --pronghorn)"
                          ) from error
        except subprocess.TimeoutExpired as error:
            raise Failure(f"{' '.join(command)}: took more than {self.options.timeout:.0f} s "
                          "(--timeout)") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise Failure(f"{' '.join(command)}: exit {done.returncode}"
                          + (f": {said[-1]}" if said else ""))
        return json.loads(done.stdout)

    def trained(self, name, *arguments):
        """A directory under --out with the model of `train ARGUMENTS`, and what training printed.
        The same arguments do not train again."""
        directory = pathlib.Path(self.options.out) / name
        note = directory / "trained.json"
        asked = [str(argument) for argument in arguments]
        if note.exists():
            known = json.loads(note.read_text())
            if known["arguments"] != asked:
                raise Failure(f"{directory}: was trained with {' '.join(known['arguments'])} "
                              "(give another --out, or remove it)")
            return directory, known["result"]
        say(f"training {name}")
        resume = ["--resume"] if directory.exists() else []
        result = self.json("train", *asked, "--out", directory, *resume)
        note.write_text(json.dumps({"arguments": asked, "result": result}))
        return directory, result

    def transformer(self):
        """The model of --model, or one trained by the options of add_transformer()."""
        options = self.options
        if options.model:
            return options.model
        return self.trained("transformer", options.config, "--data", *options.data, "--vocab",
                            options.vocab, "--tokens", options.tokens)[0]


def say(text):
    print(text, file=sys.stderr, flush=True)


def parser_of(description):
    """A parser with the options that all scripts have."""
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pronghorn", default="build/pronghorn", help="the program")
    parser.add_argument("--out", default="runs/measured", help="where models are trained")
    parser.add_argument("--threads", type=int, default=0, help="of pronghorn (default: its own)")
    parser.add_argument("--timeout", type=float, default=24 * 3600, help="seconds of one command")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--self-check", action="store_true",
                        help="run with tiny models in seconds, and check what comes out")
    return parser


def add_transformer(parser, data):
    """The options of scripts that measure one transformer; data: what the text is for."""
    parser.add_argument("--model", help="a trained one; else one is trained")
    parser.add_argument("--config", default="configs/transformer-20m.json")
    parser.add_argument("--data", nargs="+", default=[], help=data)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=20_000_000, help="of the training")


def numbers(text):
    return [float(part) for part in text.split(",") if part]


def integers(text):
    return [int(part) for part in text.split(",") if part]


def cell(value, digits=3):
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"


def table(headers, rows):
    """Columns as wide as their cells; numbers to the right."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [headers, *cells]) for i in range(len(headers))]

    def line(row):
        return "  ".join(text.ljust(width) if i == 0 else text.rjust(width)
                         for i, (text, width) in enumerate(zip(row, widths))).rstrip()

    return "\n".join([line(headers), line(["-" * width for width in widths]), *map(line, cells)])


def finish(options, headers, rows, results, verdicts):
    """Prints the table and what it says; writes the file of --json."""
    print(table(headers, rows))
    if verdicts:
        print()
    for holds, text in verdicts:
        print(f"{'holds' if holds else 'falls short'}: {text}")
    results["verdicts"] = [{"holds": holds, "what": text} for holds, text in verdicts]
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


def tiny_text(characters=40000):
    """Sentences of few words: quickly learned, and the same every time."""
    draw = random.Random(1)
    words = ["the", "a", "dog", "cat", "bird", "sees", "hears", "finds", "old", "small", "red"]
    text = ""
    while len(text) < characters:
        text += " ".join(draw.choice(words) for _ in range(draw.randint(4, 9))) + ". "
    return text


def tiny_config(mixer, **more):
    """A model of two layers; head widths are whole blocks of a rounded cache."""
    return {"model_type": "pronghorn", "hidden_size": 64, "pattern": "2a",
            "blocks": {"a": {"mixer": mixer, "ffn": {"type": "swiglu", "size": 64}}},
            "train": {"window": 64, "batch_tokens": 512, "learning_rate": 0.005}, **more}


def prepare_transformer(options, folder):
    """Makes the options of add_transformer() those of --self-check."""
    config = tiny_config({"type": "attention", "heads": 2, "head_dim": 32, "rope": {}})
    (folder / "tiny.json").write_text(json.dumps(config))
    options.config, options.data, options.model = folder / "tiny.json", [folder / "text.txt"], None
    options.vocab, options.tokens = 0, 8192


def main(parser, measure, prepare_check, check):
    """Runs a script. measure(options) prints and returns its results; prepare_check(options,
    folder) makes the options those of --self-check; check(results) says what is wrong, or
    nothing."""
    options = parser.parse_args()
    try:
        if not options.self_check:
            measure(options)
            return
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            options.out = folder / "runs"
            (folder / "text.txt").write_text(tiny_text())
            prepare_check(options, folder)
            wrong = check(measure(options))
        if wrong:
            raise Failure(f"self-check: {wrong}")
        print("self-check: all is measured")
    except Failure as failure:
        sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {failure}")
