#!/usr/bin/env python3
"""Speaks words with espeak-ng: FOLDER/train/*.wav and FOLDER/test/*.wav, each with a labels.tsv.

    scripts/make_spoken_words.py FOLDER [--sounds 40] [--words zero,one,...] [--most 4] [--seed 1]

Needs espeak-ng and NumPy; scripts/install_packages.sh speech installs both. A sound is one to --most
words at a random speed and pitch, 16 kHz, one channel, 16 bits; labels.tsv has its name, a tab, and
its words. --sounds is of each voice in each accent. Voices are held out whole: a voice is in train or
in test, in all its accents. The same version of espeak-ng gives the same bytes.
"""
import argparse
import io
import pathlib
import random
import subprocess
import sys
import wave

import numpy as np

RATE = 16000
WORDS = ("zero one two three four five six seven eight nine yes no stop go left right up down on "
         "off").split()
ACCENTS = ["en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029"]
TRAIN_VOICES = ["m1", "m2", "m4", "m5", "m7", "f1", "f3", "f4"]
TEST_VOICES = ["m3", "m6", "f2"]


def resampled(samples, rate):
    """At RATE, by leaving out or adding frequencies; a second of silence keeps the ends apart."""
    padded = np.concatenate([samples, np.zeros(rate)])
    count = round(len(padded) * RATE / rate)
    spectrum = np.fft.rfft(padded)
    kept = np.zeros(count // 2 + 1, dtype=complex)
    common = min(len(spectrum), len(kept))
    kept[:common] = spectrum[:common]
    return np.fft.irfft(kept, count)[:round(len(samples) * RATE / rate)] * (count / len(padded))


def speak(text, voice, speed, pitch):
    spoken = subprocess.run(
        ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text],
        check=True, capture_output=True).stdout
    # It writes into a pipe and leaves the size of the sound open.
    with wave.open(io.BytesIO(spoken)) as sound:
        rate = sound.getframerate()
    samples = np.frombuffer(spoken[44:len(spoken) - len(spoken) % 2], dtype="<i2")
    return resampled(samples.astype(float), rate)


def write(path, samples):
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        sound.writeframes(np.clip(np.round(samples), -32768, 32767).astype("<i2").tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--sounds", type=int, default=40, help="of each voice in each accent")
    parser.add_argument("--words", default=",".join(WORDS), help="to speak, with commas between")
    parser.add_argument("--most", type=int, default=4, help="words of a sound")
    parser.add_argument("--accents", default=",".join(ACCENTS), help="voices of espeak-ng")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    words = [word for word in options.words.split(",") if word]
    if not words or options.most < 1 or options.sounds < 1:
        sys.exit("make_spoken_words.py: nothing to speak")
    for part, voices in (("train", TRAIN_VOICES), ("test", TEST_VOICES)):
        folder = options.folder / part
        folder.mkdir(parents=True, exist_ok=True)
        labels, seconds = [], 0.0
        for accent in options.accents.split(","):
            for voice in voices:
                generator = random.Random(f"{options.seed} {accent} {voice}")
                for number in range(options.sounds):
                    text = " ".join(generator.choice(words)
                                    for _ in range(generator.randint(1, options.most)))
                    samples = speak(text, f"{accent}+{voice}", generator.randint(120, 200),
                                    generator.randint(30, 70))
                    samples *= generator.uniform(0.3, 1)
                    name = f"{accent}-{voice}-{number}.wav"
                    write(folder / name, samples)
                    labels.append(f"{name}\t{text}\n")
                    seconds += len(samples) / RATE
        (folder / "labels.tsv").write_text("".join(labels))
        print(f"{part}: {len(labels)} sounds of {len(voices)} voices, {seconds / 60:.1f} minutes",
              file=sys.stderr)


if __name__ == "__main__":
    main()
