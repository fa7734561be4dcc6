#!/usr/bin/env python3
"""Writes tests/formats/golden/log_mel.json: log-mel spectrograms in float64, from the definition.

    scripts/make_log_mel_golden.py [FILE]

Needs NumPy and nothing else. Filters are those of librosa.filters.mel(sr, n_fft, n_mels) with its
defaults (Slaney's scale and normalisation); the rest is whisper.log_mel_spectrogram
(arXiv 2212.04356, section 2.2): a periodic Hann window, frames centred with mirrored ends, the last
one left out, log10, at most `range` below the loudest, (x + 4) / 4. As there, ends are mirrored with
np.pad(mode="reflect").
"""
import json
import pathlib
import sys

import numpy as np

DEFAULT = pathlib.Path(__file__).parent.parent / "tests/formats/golden/log_mel.json"


def slaney_hz(mels):
    linear = 200.0 / 3 * mels
    return np.where(mels >= 15, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)), linear)


def slaney_mel(hz):
    return 15 + np.log(hz / 1000) / (np.log(6.4) / 27) if hz >= 1000 else hz / (200.0 / 3)


def filters(rate, window, mels):
    hz = np.arange(window // 2 + 1) * rate / window
    corners = slaney_hz(np.linspace(0, slaney_mel(rate / 2), mels + 2))
    ramps = corners[:, None] - hz[None, :]
    widths = np.diff(corners)
    rising = -ramps[:-2] / widths[:-1, None]
    falling = ramps[2:] / widths[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return triangles * (2 / (corners[2:] - corners[:-2]))[:, None]


def log_mel(samples, rate, window, hop, mels, decades):
    padded = np.pad(samples, window // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    frames = [padded[t * hop:t * hop + window] * hann for t in range(len(samples) // hop)]
    power = np.abs(np.fft.rfft(np.array(frames), axis=1)) ** 2
    spectrum = np.log10(np.maximum(power @ filters(rate, window, mels).T, 1e-10))
    if decades > 0:
        spectrum = np.maximum(spectrum, spectrum.max() - decades)
    return (spectrum + 4) / 4


def main():
    generator = np.random.default_rng(7)
    count = 1000
    # A tone that rises, noise that fades, and silence at the end.
    time = np.arange(count) / 16000
    wave = 0.4 * np.sin(2 * np.pi * (300 + 20000 * time) * time)
    wave += 0.2 * generator.standard_normal(count) * np.exp(-60 * time)
    wave[-200:] = 0
    samples = np.clip(np.round(32768 * wave), -32768, 32767).astype(int)
    kinds = [
        {"sample_rate": 16000, "window": 400, "hop": 160, "mels": 80, "range": 8},
        {"sample_rate": 16000, "window": 512, "hop": 200, "mels": 40, "range": 0},
        {"sample_rate": 8000, "window": 90, "hop": 45, "mels": 13, "range": 1.5},
    ]
    for kind in kinds:
        spectrum = log_mel(samples / 32768, kind["sample_rate"], kind["window"], kind["hop"],
                           kind["mels"], kind["range"])
        kind["frames"] = [[round(value, 7) for value in frame] for frame in spectrum.tolist()]
    path = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    document = {"samples": samples.tolist(), "kinds": kinds}
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
