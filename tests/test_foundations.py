"""The promises of the repository itself: entry points, imports, documents, CI, the image."""

from __future__ import annotations

import http.server
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import shutil
import stat
import subprocess
import sys
import threading
import tomllib
from functools import cache
from pathlib import Path

import pytest

import models
import shiftnas_serve

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
BENCHMARKS = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if "def main(" in path.read_text(encoding="utf-8")
)
# Each with options that its users rely on.
ENTRY_POINTS = {
    "models": ["describe", "generate"],
    "trainer.run": ["--recipe", "--set", "--data", "--out", "--resume", "--json"],
    "trainer.report": ["--json", "--out"],
    "trainer.evaluate": ["--data", "--json", "--plot"],
    "trainer.confidence": ["--data", "--run", "--json"],
    "trainer.quantize": ["--data", "--run", "--out", "--json"],
    "search": ["random", "evolutionary"],
    "shiftnas_serve": ["--bundle", "--port", "--config"],
    "shiftnas_serve.classify": ["--flops", "--csv", "--parquet", "--bundle"],
    "shiftnas_serve.export": ["--flops", "--arch", "--format", "--out", "--json"],
    "benchmarks.experiments": [],
    **{f"benchmarks.{name}": [] for name in BENCHMARKS},
}
WORDS = ("describe", "generate", "measure", "extract", "quantize", "retarget", "convert")
"""Of ``models``: each with options of its own."""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


ASK_ALL = """
import contextlib, importlib, io, json, sys

def ask(command, option):
    module, *words = command.split()
    is_package = hasattr(importlib.import_module(module), "__path__")
    name = COMMANDS.get(module) or (f"{module}.__main__" if is_package else module)
    main, out, err = importlib.import_module(name).main, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([*words, option])
        except SystemExit as exit:
            status = exit.code
    return status, out.getvalue(), err.getvalue()

COMMANDS = {"shiftnas_serve": "shiftnas_serve.command"}
options = ("--help", "--no-such-option", "--version")
print(json.dumps({o: {command: ask(command, o) for command in sys.argv[1:]} for o in options}))
"""


@cache
def ask_all() -> dict[str, dict[str, tuple[int, str, str]]]:
    """Option -> exit status, output and errors of every command.

    In one process, since most import torch.
    """
    commands = (*ENTRY_POINTS, *(f"models {word}" for word in WORDS))
    ended = run(sys.executable, "-c", ASK_ALL, *commands)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def help_of(*command: str) -> str:
    status, out, err = ask_all()["--help"][" ".join(command)]
    assert status == 0, err
    return out


# ----------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_help_names_the_command_and_its_options(module):
    text = help_of(module)
    assert f"python -m {module}" in text
    for option in ENTRY_POINTS[module]:
        assert option in text


# trainer.run and trainer.report.report are started in their own tests
@pytest.mark.parametrize("module", ["models", "shiftnas_serve"])
def test_commands_start(module):
    ended = run(sys.executable, "-m", module, "--help")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == help_of(module)


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_an_unknown_option_is_refused_in_words(module):
    status, _, errors = ask_all()["--no-such-option"][module]
    assert status == 2
    assert "error:" in errors


@pytest.mark.parametrize("module", [m for m in ENTRY_POINTS if not m.startswith("benchmarks")])
def test_commands_tell_their_version(module):
    assert ask_all()["--version"][module] == [0, f"{models.PRODUCT}\n", ""]


def test_a_wheel_has_all_files_of_its_packages():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs the git repository")
    setuptools = PYPROJECT["tool"]["setuptools"]
    packages = tuple(one.rstrip("*") + "/" for one in setuptools["packages"]["find"]["include"])
    data = {
        str(path.relative_to(ROOT))
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    for name in listed.stdout.split():
        # (the README of a folder, and the figures that tests compare with, are no part of it)
        beside = name.endswith("README.md") or name.startswith("models/spaces/published/")
        if name.startswith(packages) and not name.endswith(".py") and not beside:
            assert name in data, f"{name} is in no list of package-data in pyproject.toml"


def test_a_target_of_a_folders_name_says_what_is_meant():
    ended = run("make", "tests")
    assert ended.returncode == 2
    assert "make test" in ended.stderr


def test_every_benchmark_is_listed():
    listed = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for name in BENCHMARKS:
        assert f"benchmarks.{name}" in listed, name


@cache
def make_targets() -> set[str]:
    ended = run("make", "--no-print-directory", "help")
    assert ended.returncode == 0, ended.stderr
    return {line.split()[0] for line in ended.stdout.splitlines()}


def test_makefile_lists_every_target_that_people_use():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY:(.*)$", text, re.MULTILINE)[1].split())
    unlisted = {"lint-format", "lint", "types", "contracts", "help", "tests"}
    assert phony - unlisted <= make_targets()


# --------------------------------------------------------------------- what the server imports


def without_torch() -> list[str]:
    """All of the server but the runtimes that are named for it, and what it takes from models."""
    contracts = {c["name"]: c for c in PYPROJECT["tool"]["importlinter"]["contracts"]}
    server = contracts["the server never imports torch"]
    excepted = {line.split(" -> ")[0] for line in server["ignore_imports"]}
    of_models = contracts["what the server takes from models never imports torch"]
    modules = [
        found.name
        for package in (shiftnas_serve, models)
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if found.name not in excepted
        and any(
            f"{found.name}.".startswith(f"{source}.")
            for source in (*server["source_modules"], *of_models["source_modules"])
        )
    ]
    assert {"shiftnas_serve.app", "shiftnas_serve.library", "models.bundle.folder"} <= set(modules)
    return modules


def test_what_the_server_imports_has_no_torch():
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print([m for m in ('torch', 'torchvision', 'trainer', 'datasets') if m in sys.modules])"
    )
    ended = run(sys.executable, "-c", program, *without_torch(), "models.__main__")
    assert ended.stdout.strip() == "[]", ended.stderr


# ---------------------------------------------------------------------------------- documents

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "deploy" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


@every_document
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text):
        if "://" in target:
            continue
        path = document.parent / target if target else document
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), f"{target}#{anchor}"


def anchors(document: Path) -> set[str]:
    """Those of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_document
def test_commands_exist_with_their_options(document):
    text = document.read_text(encoding="utf-8")
    for module, rest in re.findall(r"python -m ([a-z0-9_.]*[a-z0-9_])([^`#\n|]*)", text):
        if module.partition(".")[0] not in {"models", "trainer", "shiftnas_serve", "benchmarks"}:
            continue
        found = importlib.util.find_spec(module)
        assert found is not None, module
        if found.submodule_search_locations is not None:
            assert importlib.util.find_spec(f"{module}.__main__") is not None, module
        words = re.findall(r"^ ([a-z]+)", rest) if module == "models" else []
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            known = re.findall(r"--[a-z-]+", help_of(module, *words))
            assert option in known, f"{module}{rest}"
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert target in make_targets(), target


@every_document
def test_recipes_and_settings_exist(document):
    from shiftnas_serve.settings import Settings
    from trainer.recipes.config import find_recipe, get_recipe, with_settings

    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"--recipe ([a-z0-9./-]+)", text):
        find_recipe(name)
    for setting in re.findall(r"--set ([a-z_.]+=[^\s`]+)", text):
        with_settings(get_recipe("digits"), [setting])
    for name in re.findall(r"SHIFTNAS_([A-Z_]+)", text):
        assert name.lower() in {*Settings.model_fields, "data"}, name


def python_blocks() -> list[str]:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(python_blocks())))
def test_examples_of_extensions_are_complete(tmp_path, number):
    from models.space.search_space import SearchSpace
    from models.spaces import get_space

    file = tmp_path / "example.py"
    file.write_text(python_blocks()[number], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("example", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = [one for one in vars(module).values() if getattr(one, "__module__", "") == "example"]
    assert own
    for one in own:
        if inspect.isclass(one):
            assert not inspect.isabstract(one), one
        elif "table" in inspect.signature(one).parameters:
            cost = one(get_space("nano-cnn"), None)
            assert 0 < cost.min < cost.max
        else:
            space = one()
            assert isinstance(space, SearchSpace)
            assert space.min_flops < space.max_flops


# ----------------------------------------------------------------------------------------- CI

FAKE_MAKE = """\
#!/usr/bin/env bash
mkdir -p "$VENV"
for target; do :; done
echo "$target" >> calls
case "$target" in
  check) exit "$CHECK" ;;
  test) echo "==== 1 passed in 0.10s ===="
        [ "$TEST" -eq 0 ] || echo "make: Error" >&2
        exit "$TEST" ;;
  test-numbers) echo "==== 2 passed in 0.20s ===="; exit "$NUMBERS" ;;
  test-browser) echo "==== 3 passed in 0.30s ===="; exit "$BROWSER" ;;
  rehearse-gpu) exit "$REHEARSE" ;;
esac
"""


@pytest.mark.parametrize(
    "failing",
    [
        (),
        ("check",),
        ("test",),
        ("numbers",),
        ("browser",),
        ("rehearse",),
        ("check", "test", "numbers"),
    ],
)
def test_ci_runs_all_parts_and_fails_if_one_does(tmp_path, failing):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    fake = tmp_path / "bin" / "make"
    fake.parent.mkdir()
    fake.write_text(FAKE_MAKE)
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    shutil.copy(fake, fake.with_name("chromium"))  # a browser that is there is not installed
    environment = tmp_path / "environment"
    ended = run(
        str(tmp_path / ".ci" / "run"),
        PATH=f"{fake.parent}{os.pathsep}{os.environ['PATH']}",
        VENV=str(environment),
        TMPDIR=str(tmp_path),
        **{
            part.upper(): "2" if part in failing else "0"
            for part in ("check", "test", "numbers", "browser", "rehearse")
        },
    )
    calls = (tmp_path / "calls").read_text().split()
    assert calls == ["check", "test", "test-numbers", "test-browser", "rehearse-gpu"]
    assert (ended.returncode == 0) == (not failing)
    assert ended.stdout.splitlines()[-1] == "==== 1 passed in 0.10s ===="
    assert not environment.exists()


# ---------------------------------------------------------------------------------- the image


def steps(text: str) -> list[str]:
    """Instructions of a Dockerfile, lines joined, without comments and here-documents."""
    text = re.sub(r"<<'(\w+)'\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [s for s in "\n".join(lines).replace("\\\n", " ").splitlines() if s.strip()]


def image(target: str | None = None) -> list[str]:
    """The instructions that make a target of the Dockerfile; None: the last one."""
    stages: dict[str, list[str]] = {}
    for step in steps(DOCKERFILE):
        if step.startswith("FROM "):
            _, source, *named = step.split()
            name = named[-1] if named else "last"
            stages[name] = list(stages.get(source, []))
        stages[name].append(step)
        copied = re.match(r"COPY --from=(\w+)", step)
        if copied:
            stages[name] += [one for one in stages[copied[1]] if "pip install" in one]
    return stages[target or "last"]


def test_the_image_has_no_torch_and_one_onnxruntime():
    program = re.search(r"RUN python - .*<<'EOF'\n(.*?)^EOF$", DOCKERFILE, re.DOTALL | re.MULTILINE)
    chosen = run(sys.executable, "-c", program[1]).stdout.splitlines()
    names = [re.match(r"[a-z-]+", line)[0] for line in chosen]
    declared = {re.match(r"[a-z-]+", one)[0] for one in PYPROJECT["project"]["dependencies"]}
    assert set(names) == declared - {"onnxruntime-gpu"}
    assert len(names) == len(set(names))
    assert not any(";" in line for line in chosen if line.startswith("onnxruntime"))
    installs = [step for step in image() if "pip install" in step]
    assert len(installs) == 1
    assert "-c constraints.txt -r requirements.txt" in installs[0]
    assert "torch" not in "\n".join([*installs, *chosen])


def test_the_image_serves_the_bundle_in_the_repository_and_not_as_root():
    from shiftnas_serve.settings import DEFAULT_BUNDLE, Settings, load_settings

    final = image()
    assert all(step.split()[1].endswith("-slim") for step in final[:1])
    users = [step.split()[1] for step in final if step.startswith("USER ")]
    assert users
    assert users[-1] not in {"root", "0"}
    assert "COPY models ./models" in final
    assert DEFAULT_BUNDLE.is_relative_to(ROOT / "models")
    assert (DEFAULT_BUNDLE / "bundle.json").exists()

    port = Settings.model_fields["port"].default
    assert f"EXPOSE {port}" in final
    # as settings, which whoever runs the image can replace; an option would win over them
    variables = [one for step in final if step.startswith("ENV ") for one in step.split()[1:]]
    environment = dict(one.split("=", 1) for one in variables)
    assert load_settings({}, environment=environment).host == "0.0.0.0"
    (entry,) = [step for step in final if step.startswith("ENTRYPOINT ")]
    assert entry == 'ENTRYPOINT ["tini", "--", "python", "-m", "shiftnas_serve"]'
    assert any("apt-get install" in step and "tini" in step for step in final)


@pytest.mark.parametrize("ready", [True, False])
def test_the_health_check_asks_the_port_that_is_set(ready):
    (health,) = [step for step in image() if step.startswith("HEALTHCHECK ")]
    python, *arguments = json.loads(health.partition("CMD ")[2])
    assert python == "python"

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/readyz" and ready else 503)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        asked = threading.Thread(target=server.handle_request)
        asked.start()
        ended = run(sys.executable, *arguments, SHIFTNAS_PORT=str(server.server_port))
        asked.join()
    assert (ended.returncode == 0) == ready, ended.stderr


def test_what_the_image_copies_reaches_the_build():
    copied = {
        name
        for step in steps(DOCKERFILE)
        if step.startswith("COPY ") and "--from" not in step
        for name in step.split()[1:-1]
    }
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied
    for name in copied:
        assert f"!{name}" in allowed, name
        assert (ROOT / name).exists(), name
