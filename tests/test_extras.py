"""Commands in an environment that ``make serve`` made: what they lack is said in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from models.extras import EXTRAS, require

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {module for modules in EXTRAS.values() for module in modules}

WITHOUT_EXTRAS = f"""
import sys
from importlib.machinery import PathFinder

class Light:
    @staticmethod
    def find_spec(name, path=None, target=None):
        absent = name.partition(".")[0] in {MODULES}
        return None if absent else PathFinder.find_spec(name, path, target)

sys.meta_path = [Light if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> dict[str, str]:
    """Environment variables of processes in which no module of an extra is found."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "sitecustomize.py").write_text(WITHOUT_EXTRAS)
    return os.environ | {"PYTHONPATH": str(folder)}


def start(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("trainer.run", "train"),
        ("trainer.report runs/digits", "train"),
        ("trainer.evaluate --help", "train"),
        ("trainer.confidence --help", "train"),
        ("search evolutionary BUNDLE --flops 8M --data PATH", "train"),
        ("models convert autoformer FILE --out DIR", "train"),
        ("shiftnas_serve.export models/zoo/cifar10-cnn --flops 4M --format torch --out X", "train"),
        ("benchmarks.train_step", "train"),
        ("benchmarks.serve_load", "bench"),
        ("benchmarks.latency_vs_flops --plot latency.png", "bench"),
    ],
)
def test_what_is_not_installed_is_said_in_one_line(light, command, extra):
    ended = start(light, *command.split())
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    named = re.match(r"error: this needs (\w+), which is not installed; `make train` sets up", line)
    assert named, line
    assert named[1] in EXTRAS[extra]
    assert f"pip install -e '.[{extra}]'" in line


@pytest.mark.parametrize(
    "command", ["models describe cifar-cnn", "shiftnas_serve.export --help", "models --help"]
)
def test_what_needs_no_extra_works_without(light, command):
    ended = start(light, *command.split())
    assert ended.returncode == 0, ended.stderr


def test_other_errors_keep_their_traceback(light):
    program = "import sys; sys.argv = ['-m']; import trainer; import no_such_module"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=light, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "No module named 'no_such_module'" in ended.stderr
    assert ended.stderr.startswith("Traceback")


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_extras_are_those_of_the_project(extra):
    declared = {re.match(r"[\w-]+", one)[0] for one in PROJECT["optional-dependencies"][extra]}
    module_of = {"scikit-learn": "sklearn"}
    assert {module_of.get(name, name.replace("-", "_")) for name in declared} == {*EXTRAS[extra]}


def test_what_is_installed_is_not_named():
    require("bench", "httpx", "matplotlib")
