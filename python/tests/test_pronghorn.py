"""Tests of the Python package: `pip install . pytest && pytest python/tests`."""

import copy
import json
import math
import pickle
import struct
import threading
import wave

import numpy as np
import pytest

import pronghorn

ATTENTION = {"type": "attention", "heads": 4, "kv_heads": 2, "head_dim": 8, "rope": {}}
MAMBA2 = {"type": "mamba2", "heads": 4, "state": 16}
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 60


def config(mixer):
    return {
        "model_type": "pronghorn",
        "hidden_size": 32,
        "pattern": "2b",
        "blocks": {"b": {"mixer": mixer, "ffn": {"type": "swiglu", "size": 48}}},
    }


@pytest.fixture(params=[ATTENTION, MAMBA2], ids=["attention", "mamba2"])
def model(request):
    return pronghorn.LanguageModel.build(config(request.param), seed=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    pronghorn.LanguageModel.build(config(MAMBA2)).save(folder / "start")
    losses = []
    result = pronghorn.train(
        folder / "start",
        folder / "text.txt",
        folder / "run",
        steps=30,
        settings={"window": 64, "batch_tokens": 512},
        on_step=lambda progress: losses.append(progress.loss),
    )
    assert result.steps == 30 and len(losses) == 30 and losses[-1] < losses[0]
    return folder


def test_scores_are_arrays(model):
    ids = model.tokenize("A text of some length")
    logits = model.logits(ids)
    assert logits.shape == (len(ids), model.vocab_size) and logits.dtype == np.float32
    hidden = model.hidden_states(np.array(ids))
    assert hidden.shape == (len(ids), model.hidden_size)
    log_p = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    wanted = log_p[np.arange(len(ids) - 1), ids[1:]]
    assert np.allclose(model.log_probabilities(ids), wanted, atol=1e-5)
    session = model.start()
    session.append_ids(ids)
    assert np.allclose(session.next_logits(), logits[-1], atol=1e-4)


def test_a_stream_gives_the_whole_text(model):
    stream = model.generate("Once", max_tokens=40, temperature=0.8, seed=5)
    text = "".join(stream)
    assert stream.result.text == text and stream.result.tokens == 40
    assert model.complete("Once", max_tokens=40, temperature=0.8, seed=5).text == text
    assert model.complete("Once", max_tokens=40, temperature=0.8, seed=5, draft="ngram").text == text


def test_a_stream_can_be_closed(model):
    with model.generate("Once", max_tokens=100000) as stream:
        next(stream)
    assert stream.result.end == "stopped" and stream.result.tokens < 100000


def test_prompts_together_are_prompts_alone(model):
    prompts = ["one", "two and more", "three"]
    together = model.complete(prompts, max_tokens=15)
    assert [c.ids for c in together] == [model.complete(p, max_tokens=15).ids for p in prompts]


def test_sessions_fork_and_go_back(model):
    session = model.start()
    session.complete("Once upon a time", max_tokens=30)
    fork, other = session.fork(), copy.deepcopy(session)
    assert fork.complete("", max_tokens=10).ids == other.complete("", max_tokens=10).ids
    length = len(session)
    session.truncate(8)
    assert len(session) == 8 and session.text == model.detokenize(other.ids[:8])
    assert len(fork) == length + 10
    with pytest.raises(RuntimeError, match="truncate"):
        session.truncate(9)


def test_numbers_go_in_and_out(model):
    ids = model.tokenize("numbers")
    parameters = model.parameters()
    assert sum(array.size for array in parameters.values()) == model.parameter_count
    same = model.with_parameters(parameters)
    assert np.array_equal(same.logits(ids), model.logits(ids))
    name, array = next(iter(parameters.items()))
    other = model.with_parameters({name: array * 2})
    assert np.array_equal(other.parameters()[name], array * 2)
    with pytest.raises(RuntimeError, match="none of the name"):
        model.with_parameters({"nothing": array})


def test_bad_arguments_say_so(model):
    with pytest.raises(RuntimeError, match="no token 999"):
        model.logits([1, 999])
    with pytest.raises(ValueError, match="precision"):
        model.logits([1], precision="f8")
    with pytest.raises(TypeError):
        model.complete("x", no_such_option=1)
    with pytest.raises(RuntimeError, match="nowhere"):
        pronghorn.LanguageModel.load("/nowhere")
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(model)


def test_a_callback_that_raises_ends_the_text(model):
    def on_text(piece):
        raise KeyError("stop here")

    with pytest.raises(KeyError, match="stop here"):
        model.start()._session._generate("x", pronghorn._options({}), on_text)


def test_checkpoints_and_pickles(trained):
    model = pronghorn.LanguageModel.load(trained / "run")
    evaluation = model.evaluate(trained / "text.txt", window=64)
    assert 0 < evaluation.bits_per_byte < 8
    estimate = pronghorn.LanguageModel.estimate(trained / "run", tokens=10)
    assert estimate.weight_bytes == 4 * model.parameter_count
    session = model.start()
    session.complete("It was", max_tokens=20)
    again = pickle.loads(pickle.dumps(session))
    assert again.ids == session.ids
    assert again.complete("", max_tokens=9).ids == session.complete("", max_tokens=9).ids
    session.save(trained / "kept")
    assert model.resume(trained / "kept").ids == session.ids
    assert model.measure(prompt=16, generate=4, repeat=1)["decode"] > 0


def test_training_stops_when_told(trained):
    result = pronghorn.train(
        trained / "start",
        [trained / "text.txt"],
        trained / "stopped",
        steps=30,
        settings={"window": 64, "batch_tokens": 512},
        on_step=lambda progress: progress.step < 3,
    )
    assert result.stopped and result.steps == 3


def test_threads_may_use_one_model(model):
    wanted = model.complete("threads", max_tokens=20).ids
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(model.complete("threads", max_tokens=20).ids))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4


def test_an_adapter_is_trained_in_place_of_weights(trained, tmp_path):
    result = pronghorn.train(
        trained / "run",
        trained / "text.txt",
        tmp_path / "adapter",
        steps=5,
        settings={"window": 64, "batch_tokens": 512},
        lora_rank=2,
        lora_targets=["down_proj"],
        evaluate_every=2,
    )
    assert 0 < result.best_bits_per_byte <= result.start_bits_per_byte
    assert result.accuracy is None and result.parameters > 0
    base = pronghorn.LanguageModel.load(trained / "run")
    tuned = pronghorn.LanguageModel.load(trained / "run", adapter=tmp_path / "adapter")
    ids = base.tokenize("It was")
    assert not np.array_equal(base.logits(ids), tuned.logits(ids))


def pgm(file, pixels, side=8):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"P5 %d %d 255\n" % (side, side) + bytes(pixels))
    return file


@pytest.mark.parametrize("mixer", [ATTENTION, MAMBA2], ids=["attention", "mamba2"])
def test_a_model_of_texts_sees_an_image(tmp_path, mixer):
    sight = {"patch": 4, "width": 8, "height": 8, "channels": 1}
    model = pronghorn.LanguageModel.build({**config(mixer), "vision": sight}, seed=3)
    images = [pgm(tmp_path / f"{i}.pgm", [(i * 90 + j * 3) % 256 for j in range(64)]) for i in (0, 1)]
    scores = []
    for image in images:
        session = model.start()
        session.see(image)
        assert len(session) == 4 and session.ids == [0] * 4 and session.text == ""
        session.append("what is it")
        assert session.text == "what is it"
        scores.append(session.fork().next_logits())
        assert len(session.complete("", max_tokens=3).ids) == 3
    assert not np.array_equal(scores[0], scores[1])
    with pytest.raises(RuntimeError):
        session.see(images[0])  # after text
    with pytest.raises(RuntimeError):
        pronghorn.LanguageModel.build(config(mixer)).start().see(images[0])
    with pytest.raises(RuntimeError):
        model.start().see(pgm(tmp_path / "large.pgm", [0] * 256, side=16))


def test_images_are_classified(tmp_path):
    for part in ("train", "test"):
        for name, value in (("dark", 20), ("light", 230)):
            for i in range(4):
                pgm(tmp_path / "data" / part / name / f"{i}.pgm", [value + i + j % 5 for j in range(64)])
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**config(ATTENTION), "image": {"patch": 4}}))
    settings = {"batch_tokens": 32, "learning_rate": 1e-2}
    result = pronghorn.train(
        file, tmp_path / "data", tmp_path / "run", steps=40, task="images", settings=settings
    )
    assert result.accuracy == 1
    model = pronghorn.ImageModel.load(tmp_path / "run")
    light = tmp_path / "data" / "test" / "light" / "0.pgm"
    first, second = model.classify([light, light])
    assert list(first) == ["light", "dark"] and first == second
    assert model.classify(light) == [first] and math.isclose(sum(first.values()), 1, abs_tol=1e-6)
    with pytest.raises(ValueError, match="precision"):
        model.classify(light, precision="f8")
    with pytest.raises(RuntimeError, match="of images, not of sound"):
        pronghorn.SoundModel.load(tmp_path / "run")


def test_sound_is_written_down(tmp_path):
    for part in ("train", "test"):
        folder = tmp_path / "data" / part
        folder.mkdir(parents=True)
        lines = []
        for i, said in enumerate(("on", "off on")):
            with wave.open(str(folder / f"{i}.wav"), "wb") as sound:
                sound.setnchannels(1)
                sound.setsampwidth(2)
                sound.setframerate(4000)
                samples = [at * (i + 1) % 64 * 200 - 6400 for at in range(1600)]
                sound.writeframes(struct.pack("<1600h", *samples))
            lines.append(f"{i}.wav\t{said}\n")
        (folder / "labels.tsv").write_text("".join(lines))
    file = tmp_path / "config.json"
    sound_config = {"sample_rate": 4000, "window": 128, "hop": 64, "mels": 16}
    file.write_text(json.dumps({**config(MAMBA2), "sound": sound_config}))
    try:
        pronghorn.train(file, tmp_path / "data", tmp_path / "run", steps=3, task="sound")
    except RuntimeError as error:
        if "libsndfile" in str(error):
            pytest.skip("built without libsndfile")
        raise
    said = pronghorn.SoundModel.load(tmp_path / "run").transcribe(tmp_path / "data/test/0.wav")
    assert isinstance(said.text, str) and math.isclose(said.sound_seconds, 0.4) and said.seconds > 0
    with pytest.raises(RuntimeError, match="labels.tsv"):
        pronghorn.SoundModel.load(tmp_path / "run").transcribe(tmp_path / "data/test/labels.tsv")
    with pytest.raises(RuntimeError, match="of sound, not of images"):
        pronghorn.ImageModel.load(tmp_path / "run")


def test_a_task_is_learnt(tmp_path):
    pronghorn.LanguageModel.build(config(MAMBA2)).save(tmp_path / "trained")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config(MAMBA2)))
    result = pronghorn.train(file, [], tmp_path / "run", steps=3, task="mqar", task_length=32)
    assert result.accuracy is not None and result.held_out_bits_per_byte == 0
    with pytest.raises(RuntimeError, match="does not go with a trained model"):
        pronghorn.train(tmp_path / "trained", [], tmp_path / "other", steps=3, task="mqar")
