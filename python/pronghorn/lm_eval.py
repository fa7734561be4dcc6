"""Pronghorn as a model of lm-evaluation-harness.

    import lm_eval
    from pronghorn.lm_eval import PronghornLM

    results = lm_eval.simple_evaluate(model=PronghornLM("runs/m2"), tasks=["arc_easy"], limit=100)
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.model import LM

from . import LanguageModel


class PronghornLM(LM):
    """checkpoint: a directory or GGUF file, or a LanguageModel. precision: "stored", "f32", "bf16"."""

    def __init__(self, checkpoint: Any, precision: str = "stored", max_length: int = 0):
        super().__init__()
        self._model = (
            checkpoint if isinstance(checkpoint, LanguageModel) else LanguageModel.load(checkpoint)
        )
        self._precision = precision
        self._max_length = max_length or self._model.trained_context or 2048
        ends = self._model.end_tokens
        self._start = ends[0] if ends else 0

    @property
    def tokenizer_name(self) -> str:
        return "pronghorn"

    def _score(self, context: list[int], target: list[int]) -> tuple[float, bool]:
        """ln p of `target` after `context`, and whether greedy decoding would write it."""
        ids = (context + target)[-(self._max_length + 1) :]
        count = len(target)
        rows = self._model.logits(ids[:-1], self._precision)[-count:].astype("float64")
        rows -= rows.max(axis=1, keepdims=True)
        total = 0.0
        greedy = True
        for row, token in zip(rows, ids[-count:]):
            total += row[token] - _log_sum(row)
            greedy = greedy and int(row.argmax()) == token
        return total, greedy

    def _pair(self, context: str, target: str) -> tuple[list[int], list[int]]:
        # Spaces belong to what follows them, as tokenizers have it.
        spaces = len(context) - len(context.rstrip())
        if spaces:
            target = context[-spaces:] + target
            context = context[:-spaces]
        whole = self._model.tokenize(context + target)
        before = self._model.tokenize(context) if context else []
        if not before:
            before = [self._start]
            whole = before + whole
        return whole[: len(before)], whole[len(before) :]

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [self._score(*self._pair(*request.args)) for request in requests]

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        results = []
        for request in requests:
            ids = [self._start] + self._model.tokenize(request.args[0], special=False)
            total = 0.0
            for first in range(0, len(ids) - 1, self._max_length):
                window = ids[first : first + self._max_length + 1]
                total += float(self._model.log_probabilities(window, self._precision).sum())
            results.append(total)
        return results

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        results = []
        for request in requests:
            prompt, options = request.args
            stop = options.get("until", [])
            continuation = self._model.complete(
                prompt,
                stop=[stop] if isinstance(stop, str) else [text for text in stop if text],
                max_tokens=int(options.get("max_gen_toks", 256)),
                temperature=float(options.get("temperature", 0)) if options.get("do_sample") else 0.0,
                precision=self._precision,
            )
            results.append(continuation.text)
        return results


def _log_sum(row: Any) -> float:
    import numpy

    return float(numpy.log(numpy.exp(row).sum()))
