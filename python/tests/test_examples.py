"""The example scripts run as they are."""

import pathlib
import subprocess
import sys

import pytest

TOUR = pathlib.Path(__file__).parent.parent / "examples" / "tour.py"


def test_tour(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 400)
    done = subprocess.run(
        [sys.executable, TOUR, text, tmp_path / "out", "1"],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "guesses came true" in done.stdout


def test_tour_has_types():
    pytest.importorskip("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", TOUR],
        capture_output=True, text=True, check=False, cwd=TOUR.parent.parent,
    )
    assert done.returncode == 0, done.stdout
