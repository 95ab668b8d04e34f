"""The promises of the repository itself: entry points, imports, Dockerfile, documents."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if "def main(" in path.read_text(encoding="utf-8")
)
ENTRY_POINTS = {
    "models": "describe",
    "trainer.run": "--recipe",
    "trainer.report": "--json",
    "shiftnas_serve": "--bundle",
    "shiftnas_serve.export": "--format",
    **{f"benchmarks.{name}": "--json" for name in BENCHMARKS},
}
WITHOUT_TORCH = [
    "benchmarks.latency_vs_flops",
    "models.__main__",
    "models.bundle",
    "models.decode",
    "models.graph",
    "models.policy",
    "models.preprocess",
    "models.spaces",
    "models.weights",
    "shiftnas_serve.__main__",
    "shiftnas_serve.app",
    "shiftnas_serve.host",
    "shiftnas_serve.worker",
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100
    )


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_help_teaches(module):
    ended = run("-m", module, "--help")
    assert ended.returncode == 0, ended.stderr
    assert ENTRY_POINTS[module] in ended.stdout
    assert f"python -m {module}" in ended.stdout


def test_what_the_server_imports_has_no_torch():
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print([m for m in ('torch', 'torchvision', 'trainer', 'datasets') if m in sys.modules])"
    )
    ended = run("-c", program, *WITHOUT_TORCH)
    assert ended.stdout.strip() == "[]", ended.stderr


def test_every_benchmark_is_listed():
    listed = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for name in BENCHMARKS:
        assert f"benchmarks.{name}" in listed, name


def test_dockerfile_keeps_its_promises():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    steps = [line for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    final = steps[max(i for i, step in enumerate(steps) if step.startswith("FROM")) :]
    users = [step for step in final if step.startswith("USER")]
    assert users, "runs as root"
    assert users[-1] != "USER root"
    assert any(step.startswith("HEALTHCHECK") for step in final)
    assert "/readyz" in text
    assert "COPY models ./models" in final  # the bundle lies in models/zoo
    copied = {step.split()[1] for step in steps if step.startswith("COPY") and "--from" not in step}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in copied | {"constraints.txt", "LICENSE"}:
        assert f"!{name}" in ignored, name
    installs = [step for step in steps if "pip install" in step]
    assert not any("[train]" in step or "torch" in step for step in installs)


def test_makefile_lists_its_targets():
    ended = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0
    assert {"serve", "test", "check"} <= {line.split()[0] for line in ended.stdout.splitlines()}


def test_ci_is_executable():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_documents_point_at_what_exists(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), target
    for module in re.findall(r"python -m ([a-z_.]+[a-z_])", text):
        package = importlib.import_module(module)
        is_package = hasattr(package, "__path__")
        assert not is_package or (Path(package.__path__[0]) / "__main__.py").exists(), module
