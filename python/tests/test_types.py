"""The types of the package, as mypy sees them."""

import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("mypy")
HERE = pathlib.Path(__file__).parent


def mypy(program):
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", program],
        capture_output=True, text=True, check=False, cwd=HERE.parent,
    )


def test_a_program_passes():
    answer = mypy(HERE / "typed_program.py")
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize(
    "line",
    [
        'model.complete("a", max_token=3)',
        'model.complete("a", temperature="hot")',
        "model.tokenize(3)",
        "number: int = model.config_text",
        'texts: str = model.complete(["a"])',
    ],
)
def test_a_mistake_does_not(tmp_path, line):
    program = tmp_path / "program.py"
    program.write_text(
        f'import pronghorn\n\nmodel = pronghorn.LanguageModel.load("m")\n{line}\n'
    )
    answer = mypy(program)
    assert answer.returncode == 1 and "program.py:4: error" in answer.stdout, answer.stdout
