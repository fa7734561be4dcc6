"""Pronghorn: train, run and compare efficient language models.

    import pronghorn

    model = pronghorn.LanguageModel.load("runs/m2")
    session = model.start()
    for piece in session.generate("In the beginning", max_tokens=100, temperature=0.8):
        print(piece, end="", flush=True)
    fork = session.fork()               # both continue from here, each its own way

Everything that can fail raises an exception whose text says where, what, and what to do. Long calls
release the interpreter's lock. Results do not depend on the number of threads.
"""

from __future__ import annotations

import json
import os
import queue
import tempfile
import threading
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Iterator,
    Mapping,
    Sequence,
    TypedDict,
    Union,
    cast,
    overload,
)

import numpy as np

from . import _engine
from ._engine import (
    Continuation,
    Evaluation,
    MemoryEstimate,
    TrainingProgress,
    TrainingResult,
    Transcript,
    __version__,
    show_messages,
    use_threads,
)

__all__ = [
    "Continuation",
    "Evaluation",
    "GenerateOptions",
    "ImageModel",
    "LanguageModel",
    "MemoryEstimate",
    "SoundModel",
    "Speed",
    "Stream",
    "TextSession",
    "TrainingProgress",
    "TrainingResult",
    "Transcript",
    "compare",
    "show_messages",
    "train",
    "use_threads",
]

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Self, Unpack

    Ids = Union[Sequence[int], npt.NDArray[np.integer[Any]]]
    Floats = npt.NDArray[np.float32]

Path = Union[str, "os.PathLike[str]"]


class GenerateOptions(TypedDict, total=False):
    """How a text is continued; see TextSession.generate()."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    stop: Union[str, Sequence[str]]
    stop_at_end_token: bool
    precision: str
    draft: str
    grammar: str
    json_schema: Union[str, bool, Mapping[str, Any]]


class Speed(TypedDict):
    """Tokens a second of all sequences together, and bytes of the state of one after its prompt."""

    prompt: float
    decode: float
    state_bytes: int


class Stream(Iterator[str]):
    """A text as it is written: an iterator of pieces, whole characters each.

    After the last piece `result` is the Continuation: the whole text, its ids, why it ended, and how
    long it took. `close()`, or leaving a `with` block, ends the text where it is.
    """

    def __init__(self, write: Callable[[Callable[[str], bool]], Continuation]):
        self._pieces: queue.Queue[str | None] = queue.Queue()
        self._closed = threading.Event()
        self._failure: BaseException | None = None
        self._result: Continuation | None = None
        self._thread = threading.Thread(target=self._run, args=(write,), daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[Callable[[str], bool]], Continuation]) -> None:
        def on_text(piece: str) -> bool:
            self._pieces.put(piece)
            return not self._closed.is_set()

        try:
            self._result = write(on_text)
        except BaseException as failure:  # handed to whoever iterates
            self._failure = failure
        self._pieces.put(None)

    def __next__(self) -> str:
        piece = self._pieces.get()
        if piece is not None:
            return piece
        self._pieces.put(None)  # for whoever asks again
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        raise StopIteration

    def close(self) -> None:
        """Ends the text after the token that is being computed."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def result(self) -> Continuation:
        """The Continuation. Waits for the end of the text; raises what went wrong."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        assert self._result is not None
        return self._result


def _options(options: GenerateOptions) -> _engine.Options:
    given: dict[str, Any] = dict(options)
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    if isinstance(given.get("json_schema"), (Mapping, bool)):
        given["json_schema"] = json.dumps(given["json_schema"])
    return _engine.Options(**given)


class TextSession:
    """A text that a model reads or writes, with the model's state.

    `fork()` is cheap: copies share the memory of the past until either writes. A session may be
    pickled; it then carries its state and the path of its model.
    """

    def __init__(self, model: "LanguageModel", session: _engine.TextSession, cache_type: str):
        self._model, self._session, self._cache_type = model, session, cache_type

    @property
    def model(self) -> "LanguageModel":
        return self._model

    def fork(self) -> "TextSession":
        """A copy that goes its own way."""
        return TextSession(self._model, self._session.fork(), self._cache_type)

    __copy__ = fork

    def __deepcopy__(self, memo: Any) -> "TextSession":
        return self.fork()

    def see(self, image: Path, precision: str = "stored") -> None:
        """Lets a model that sees images see one (.png, .pgm, .ppm), before any text.

        Its rows count as tokens, which are 0 in `ids` and not in `text`. Raises for other models,
        images of another size than the model's, and after text.
        """
        self._session.see(image, precision)

    def append(self, text: str) -> None:
        """Adds text; the model reads it when it next generates or scores."""
        self._session.append(text)

    def append_ids(self, ids: Ids) -> None:
        """Adds tokens as they are. Raises for ids outside the vocabulary."""
        self._session.append_ids(ids)

    @property
    def ids(self) -> list[int]:
        """The tokens of the text so far."""
        return self._session.ids

    @property
    def text(self) -> str:
        """The text so far, special tokens omitted."""
        return self._session.text

    def __len__(self) -> int:
        return len(self._session)

    def truncate(self, length: int) -> None:
        """Goes back to the first `length` tokens."""
        self._session.truncate(length)

    def next_logits(self, precision: str = "stored") -> Floats:
        """Scores of the token that follows: float32 [vocab_size], before softmax."""
        return self._session.next_logits(precision)

    def generate(self, prompt: str = "", **options: Unpack[GenerateOptions]) -> Stream:
        """Adds `prompt` and continues the text; an iterator of pieces.

        Options: max_tokens (128), temperature (0: always the likeliest token), top_k, top_p, min_p,
        repetition_penalty, seed, stop (a text or several), stop_at_end_token (True), precision
        ("stored", "f32" or "bf16"), draft ("ngram", "suffix", "early-exit:E", "mtp", or the
        directory of a smaller model: faster, the same text), grammar (GBNF) or json_schema (a
        mapping or its JSON text) that the text must follow.
        The session is not to be used before the text has ended.
        """
        return Stream(lambda on_text: self._session._generate(prompt, _options(options), on_text))

    def complete(self, prompt: str = "", **options: Unpack[GenerateOptions]) -> Continuation:
        """The same in one piece."""
        return self._session._generate(prompt, _options(options), None)

    @property
    def state_bytes(self) -> int:
        """Bytes of the state; what forks share counts for each."""
        return self._session.state_bytes

    def save(self, file: Path) -> None:
        """Writes one file, replaced atomically; LanguageModel.resume() reads it."""
        self._session.save(file)

    def __reduce__(self) -> tuple[Any, ...]:
        with tempfile.TemporaryDirectory() as directory:
            file = os.path.join(directory, "session")
            self.save(file)
            with open(file, "rb") as content:
                state = content.read()
        return _resume, (self._model, state, self._cache_type)


def _resume(model: "LanguageModel", state: bytes, cache_type: str) -> TextSession:
    with tempfile.TemporaryDirectory() as directory:
        file = os.path.join(directory, "session")
        with open(file, "wb") as content:
            content.write(state)
        return model.resume(file, cache_type)


class LanguageModel:
    """A model and its tokenizer. The weights never change; copies share them."""

    def __init__(self, model: _engine.LanguageModel, source: tuple[Any, ...] | None = None):
        self._model, self._source = model, source

    @classmethod
    def load(cls, checkpoint: Path, adapter: Path | None = None) -> "LanguageModel":
        """A checkpoint directory (Hugging Face layout) or a GGUF file.

        adapter: a directory with a LoRA adapter in the layout of PEFT.
        """
        checkpoint, adapter = os.fspath(checkpoint), os.fspath(adapter) if adapter else ""
        return cls(_engine.LanguageModel.load(checkpoint, adapter), (checkpoint, adapter))

    @classmethod
    def build(cls, config: Path | Mapping[str, Any], seed: int = 0) -> "LanguageModel":
        """Untrained, from a configuration file or dictionary; its tokens are bytes."""
        if not isinstance(config, Mapping):
            return cls(_engine.LanguageModel.build(config, seed))
        with tempfile.TemporaryDirectory() as directory:
            file = os.path.join(directory, "config.json")
            with open(file, "w", encoding="utf-8") as content:
                json.dump(config, content)
            return cls(_engine.LanguageModel.build(file, seed))

    @staticmethod
    def estimate(checkpoint: Path, tokens: int = 4096, cache_type: str = "f32") -> MemoryEstimate:
        """What load() would take: weight_bytes (mapped), state_bytes of a text of `tokens`."""
        return _engine.LanguageModel.estimate(checkpoint, tokens, cache_type)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None:
            raise TypeError("a model that was built has no path to be pickled with: save() and load() it")
        return LanguageModel.load, self._source

    def save(self, directory: Path) -> None:
        """Writes the files that load() reads, each replaced atomically."""
        self._model.save(directory)

    @property
    def parameter_count(self) -> int:
        return self._model.parameter_count

    @property
    def active_parameter_count(self) -> int:
        """Parameters that a token meets: fewer in a mixture of experts."""
        return self._model.active_parameter_count

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    @property
    def hidden_size(self) -> int:
        return self._model.hidden_size

    @property
    def layers(self) -> int:
        return self._model.layers

    @property
    def trained_context(self) -> int:
        """Longest text that the model was trained for, in tokens; 0: not known."""
        return self._model.trained_context

    @property
    def end_tokens(self) -> list[int]:
        return self._model.end_tokens

    @property
    def config(self) -> dict[str, Any]:
        """The complete configuration, every default spelled out."""
        config: dict[str, Any] = json.loads(self._model.config_json())
        return config

    def state_bytes(self, tokens: int, cache_type: str = "f32") -> int:
        """Predicted bytes of the state of one text of `tokens` tokens."""
        return self._model.state_bytes(tokens, cache_type)

    def parameters(self) -> dict[str, Floats]:
        """The trained tensors in float32, by Pronghorn's own names: matrices [outputs, inputs]."""
        return self._model.parameters()

    def with_parameters(self, changed: Mapping[str, npt.NDArray[Any]]) -> "LanguageModel":
        """A model like this one, held in float32, in which the named tensors have these numbers."""
        return LanguageModel(self._model.with_parameters(dict(changed)))

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text. special: with the tokens that the model expects around it."""
        return self._model.tokenize(text, special)

    def detokenize(self, ids: Ids) -> str:
        """The text of ids, special tokens omitted."""
        return self._model.detokenize(ids)

    @property
    def has_chat_template(self) -> bool:
        return self._model.has_chat_template

    def apply_template(self, messages: Sequence[Mapping[str, str]], answer_follows: bool = True) -> str:
        """The text that the model's chat template makes of [{"role": ..., "content": ...}, ...]."""
        return self._model.apply_template([dict(message) for message in messages], answer_follows)

    def logits(self, ids: Ids, precision: str = "stored") -> Floats:
        """Scores of the next token after each id: float32 [len(ids), vocab_size]."""
        return self._model.logits(ids, precision)

    def hidden_states(self, ids: Ids, precision: str = "stored") -> Floats:
        """The last hidden states, normalised: float32 [len(ids), hidden_size]."""
        return self._model.hidden_states(ids, precision)

    def log_probabilities(
        self, ids: Ids, precision: str = "stored"
    ) -> npt.NDArray[np.float64]:
        """ln p of each token given those before it: float64 [len(ids) - 1]."""
        return np.asarray(self._model.log_probabilities(ids, precision))

    def start(self, cache_type: str = "f32") -> TextSession:
        """A session without any text. cache_type: of attention's keys and values, "f32", "bf16", "f16",
        "q8_0" or "q4_0"."""
        return TextSession(self, self._model.start(cache_type), cache_type)

    def resume(self, file: Path, cache_type: str = "f32") -> TextSession:
        """A session from TextSession.save()."""
        return TextSession(self, self._model.resume(file, cache_type), cache_type)

    def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> Stream:
        """Continues `prompt` in a session of its own; an iterator of pieces (TextSession.generate)."""
        return self.start().generate(prompt, **options)

    @overload
    def complete(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
        self, prompt: str, **options: Unpack[GenerateOptions]
    ) -> Continuation: ...
    @overload
    def complete(
        self, prompt: Sequence[str], **options: Unpack[GenerateOptions]
    ) -> list[Continuation]: ...
    def complete(
        self, prompt: str | Sequence[str], **options: Unpack[GenerateOptions]
    ) -> Continuation | list[Continuation]:
        """The same in one piece. Of several prompts, which are written together, a list."""
        if isinstance(prompt, str):
            return self.start().complete(prompt, **options)
        return self._model._generate_together(list(prompt), _options(options))

    def evaluate(
        self, data: Path | Sequence[Path], window: int = 0, precision: str = "stored"
    ) -> Evaluation:
        """Cross-entropy of text files or folders, read in windows of `window` tokens (0: as trained)."""
        return self._model.evaluate(_paths(data), window, precision)

    def measure(self, prompt: int = 512, generate: int = 64, batch: int = 1, repeat: int = 3) -> Speed:
        """Tokens a second: {"prompt": ..., "decode": ..., "state_bytes": ...}."""
        return cast(Speed, self._model.measure(prompt, generate, batch, repeat))


class ImageModel:
    """A model that says what is on images, as train() makes it on the task "images"."""

    def __init__(self, model: _engine.ImageModel):
        self._model = model

    @classmethod
    def load(cls, checkpoint: Path) -> Self:
        """From a checkpoint directory. Raises for other models."""
        return cls(_engine.ImageModel.load(checkpoint))

    def classify(
        self, images: Path | Sequence[Path], precision: str = "stored"
    ) -> list[dict[str, float]]:
        """For each image (.png, .pgm, .ppm) its classes' probabilities, the most probable first.

        Raises for images of another size than those it learnt from.
        """
        return self._model.classify(_paths(images), precision)


class SoundModel:
    """A model that writes down what is said, as train() makes it on the task "sound"."""

    def __init__(self, model: _engine.SoundModel):
        self._model = model

    @classmethod
    def load(cls, checkpoint: Path) -> Self:
        """From a checkpoint directory. Raises for other models."""
        return cls(_engine.SoundModel.load(checkpoint))

    def transcribe(self, sound: Path, precision: str = "stored") -> Transcript:
        """What is said in a WAV file, with its length and the time that the model took."""
        return self._model.transcribe(sound, precision)


def _paths(data: Path | Sequence[Path]) -> list[str]:
    if isinstance(data, (str, os.PathLike)):
        return [os.fspath(data)]
    return [os.fspath(path) for path in data]


def train(
    config: Path,
    data: Path | Sequence[Path],  # [] for a task that needs none
    directory: Path,
    *,
    seconds: float = 0,
    tokens: int = 0,
    steps: int = 0,
    vocab_size: int = 0,
    held_out: float = 0.05,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    resume: bool = False,
    tokenizer: Path = "",
    task: str = "",
    task_length: int = 256,
    evaluate_every: int = 0,
    lora_rank: int = 0,
    lora_alpha: float = 0,
    lora_targets: Sequence[str] = (),
    on_step: Callable[[TrainingProgress], Any] | None = None,
) -> TrainingResult:
    """Trains a model into `directory`; LanguageModel.load(directory) then loads it.

    config: a configuration file, or a checkpoint to go on from. Exactly one of seconds, tokens and
    steps. vocab_size: of a tokenizer to train on the data; 0: bytes. settings: keys of the "train"
    object of a configuration. on_step: called after each step; False ends the run there, with its
    state saved for resume=True. tokenizer: that of this model, in place of one of vocab_size. task: a
    synthetic task to learn in place of texts, or "images" (data: one folder with train/CLASS/*.png
    and test/CLASS/*.png), "captions" (one with train/captions.tsv and test/captions.tsv) or "sound"
    (one with train/labels.tsv, test/labels.tsv and the WAV files that they list). evaluate_every: steps between held-out scores (0: about twenty in the run).

    lora_rank: train changes of this rank to the matrices of a checkpoint (lora_targets, or all) in
    place of its weights; LanguageModel.load(checkpoint, adapter=directory) then loads both.
    """
    return _engine._train(
        config=config,
        data=_paths(data),
        directory=directory,
        seconds=seconds,
        tokens=tokens,
        steps=steps,
        vocab_size=vocab_size,
        held_out=held_out,
        settings=json.dumps(dict(settings)) if settings else "",
        seed=seed,
        resume=resume,
        tokenizer=tokenizer,
        task=task,
        task_length=task_length,
        evaluate_every=evaluate_every,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_targets=list(lora_targets),
        on_step=on_step,
    )


def compare(
    configs: Sequence[Path],
    data: Path | Sequence[Path],
    directory: Path,
    *,
    seconds: float = 0,
    tokens: int = 0,
    vocab_size: int = 4096,
    contexts: Sequence[int] = (512, 4096, 32768, 262144),
    context_seconds: float = 60,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    seeds: int = 1,
) -> dict[str, Any]:
    """Trains architectures within the same budget on the same text and measures them.

    Returns what results.json in `directory` holds; report.html beside it shows it. Processes that
    mpirun started share the architectures out; all but the first return an empty dict.
    """
    text = _engine._compare(
        configs=_paths(configs),
        data=_paths(data),
        directory=directory,
        seconds=seconds,
        tokens=tokens,
        vocab_size=vocab_size,
        contexts=list(contexts),
        context_seconds=context_seconds,
        settings=json.dumps(dict(settings)) if settings else "",
        seed=seed,
        seeds=seeds,
    )
    results: dict[str, Any] = json.loads(text) if text else {}
    return results
