"""A tour of the package, in cells: open it in an editor that knows `# %%`, or run it whole.

    python python/examples/tour.py TEXT_FILE [FOLDER] [SECONDS]

It trains two small models on a text (SECONDS each, 20 by default) and looks at what they have learnt. Jupyter
opens it as a notebook with jupytext.
"""

# %% What is needed: a text, and a folder for what comes of it
from __future__ import annotations

import math
import pathlib
import sys
import tempfile

import numpy as np

import pronghorn

text_file = pathlib.Path(sys.argv[1])
folder = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 20.0


# %% Architectures are dictionaries: attention in every block, or a memory of fixed size in three of four
def config(pattern: str) -> dict[str, object]:
    ffn = {"type": "swiglu", "size": 192}
    attention = {"type": "attention", "heads": 4, "kv_heads": 2, "rope": {}}
    blocks = {
        "a": {"mixer": attention, "ffn": ffn},
        "d": {"mixer": {"type": "gated_deltanet", "heads": 3}, "ffn": ffn},
    }
    return {
        "model_type": "pronghorn",
        "hidden_size": 96,
        "pattern": pattern,
        "blocks": {name: block for name, block in blocks.items() if name in pattern},
    }


architectures = {"attention": config("4a"), "hybrid": config("3d a")}
for name, one in architectures.items():
    untrained = pronghorn.LanguageModel.build(one)
    print(f"{name}: {untrained.parameter_count:,} parameters,", end=" ")
    print(", ".join(f"{untrained.state_bytes(n):,} bytes after {n} tokens" for n in (1000, 100_000)))

# %% Training: a callback sees every step, and False from it would stop the run
losses: dict[str, list[float]] = {}
for name, one in architectures.items():
    pronghorn.LanguageModel.build(one, seed=1).save(folder / f"{name}-start")
    curve = losses[name] = []

    def on_step(now: pronghorn.TrainingProgress, curve: list[float] = curve) -> bool:
        curve.append(now.loss)
        return math.isfinite(now.loss)

    result = pronghorn.train(
        folder / f"{name}-start",
        text_file,
        folder / name,
        seconds=seconds,
        settings={"window": 128, "batch_tokens": 1024, "learning_rate": 0.003},
        on_step=on_step,
    )
    print(f"{name}: {result.steps} steps, {result.held_out_bits_per_byte:.3f} bits per byte held out")

# %% Curves, without anything to plot with (`pronghorn watch FOLDER` draws them while they grow)
BARS = "▁▂▃▄▅▆▇█"
top = max(max(curve) for curve in losses.values())
for name, curve in losses.items():
    parts = [float(np.mean(part)) for part in np.array_split(curve, min(60, len(curve)))]
    print(f"{name:>10} " + "".join(BARS[min(7, int(8 * mean / top))] for mean in parts))

# %% Writing: an iterator of pieces. A session is a text with the model's state
model = pronghorn.LanguageModel.load(folder / "hybrid")
session = model.start()
for piece in session.generate("The ", max_tokens=80, temperature=0.7, seed=3):
    print(piece, end="", flush=True)
print()

# %% A fork costs nothing and goes its own way; both can be taken back to any token
fork = session.fork()
length = len(session)
print("one way on: ", session.complete(max_tokens=40).text)
print("another:    ", fork.complete(" But", max_tokens=40).text)
session.truncate(length)
session.save(folder / "kept.session")
print("kept:       ", model.resume(folder / "kept.session").text[-40:])

# %% Scores: which characters of a text are a surprise to the model?
sentence = "The words of this text, and zyxwv."
ids = model.tokenize(sentence)
surprise = -model.log_probabilities(ids) / math.log(2)
for position in np.argsort(surprise)[-5:][::-1]:
    token = model.detokenize(ids[position + 1 : position + 2])
    print(f"{surprise[position]:6.2f} bits for {token!r} after {model.detokenize(ids[: position + 1])[-12:]!r}")

# %% Hidden states as NumPy arrays: texts that are alike point the same way
samples = ["In the beginning", "In the end", "0123456789"]
means = np.stack([model.hidden_states(model.tokenize(sample)).mean(axis=0) for sample in samples])
means /= np.linalg.norm(means, axis=1, keepdims=True)
print(np.round(means @ means.T, 3))

# %% Weights out and in: how much does the text still cost if small weights are zero?
weights = model.parameters()
for share in (0.0, 0.3, 0.6):
    pruned = {}
    for name, values in weights.items():
        if values.ndim == 2:
            threshold = np.quantile(np.abs(values), share)
            pruned[name] = np.where(np.abs(values) >= threshold, values, 0)
    score = model.with_parameters(pruned).evaluate(text_file)
    print(f"{share:.0%} of each matrix zero: {score.bits_per_byte:.3f} bits per byte")

# %% Guessing ahead: the same text, sooner
plain = model.complete("The ", max_tokens=100)
drafted = model.complete("The ", max_tokens=100, draft="ngram")
assert drafted.ids == plain.ids
print(f"{drafted.accepted} of {drafted.drafted} guesses came true")
