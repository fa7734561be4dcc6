"""A program as users write it: `mypy --strict` must find nothing in it (test_types.py runs it)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import pronghorn


def embedding(model: pronghorn.LanguageModel, text: str) -> npt.NDArray[np.float32]:
    states = model.hidden_states(model.tokenize(text))
    mean: npt.NDArray[np.float32] = states.mean(axis=0)
    return mean


def perplexity(model: pronghorn.LanguageModel, text: str) -> float:
    return float(np.exp(-model.log_probabilities(model.tokenize(text)).mean()))


def chat(model: pronghorn.LanguageModel, questions: list[str]) -> list[str]:
    messages: list[dict[str, str]] = []
    answers: list[str] = []
    session: pronghorn.TextSession = model.start(cache_type="bf16")
    for question in questions:
        messages.append({"role": "user", "content": question})
        prompt = model.apply_template(messages)
        with session.fork().generate(prompt, max_tokens=20, temperature=0.7, stop="\n") as stream:
            pieces: list[str] = list(stream)
        answers.append("".join(pieces))
        tokens: int = stream.result.tokens
        assert tokens >= 0
    return answers


def seen(model: pronghorn.LanguageModel, image: str) -> str:
    session = model.start()
    session.see(image)
    return session.complete("the ", max_tokens=5).text


def perceived(images: list[str], sound: str) -> tuple[str, float]:
    classes: dict[str, float] = pronghorn.ImageModel.load("m").classify(images)[0]
    said: pronghorn.Transcript = pronghorn.SoundModel.load("s").transcribe(sound)
    return said.text, max(classes.values())


def together(model: pronghorn.LanguageModel) -> tuple[str, list[str]]:
    one = model.complete("a", max_tokens=3).text
    several = [text.text for text in model.complete(["a", "b"], max_tokens=3, stop=["x", "y"])]
    return one, several


def halved(model: pronghorn.LanguageModel) -> pronghorn.LanguageModel:
    return model.with_parameters({name: 0.5 * values for name, values in model.parameters().items()})


def report(now: pronghorn.TrainingProgress) -> bool:
    print(now.step, now.loss)
    return now.loss > 1


def main() -> None:
    result = pronghorn.train("config.json", ["a.txt"], "run", steps=3, on_step=report)
    model = pronghorn.LanguageModel.load("run")
    print(result.held_out_bits_per_byte, model.evaluate("a.txt").perplexity)
    print(model.measure()["decode"], pronghorn.compare(["a.json"], "a.txt", "out", tokens=9)["seed"])
