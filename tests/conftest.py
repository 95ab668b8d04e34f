"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from models.bundle.folder import Bundle
    from tests.contract.process import Server

# Hypothesis fails an example that takes longer than 200 ms, which on a busy machine says nothing
# about the code. Everything else stays as it was, so that CI still repeats the same examples.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

TESTS = Path(__file__).resolve().parent
TEMPLATES = "TESTED_TEMPLATES"
"""In the environment: the folder of templates that were exported in this session."""


@pytest.fixture(scope="session", autouse=True)
def _templates(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    folder /= "templates"
    folder.mkdir(exist_ok=True)
    os.environ[TEMPLATES] = str(folder)


@cache
def no_gpu() -> str | None:
    """Why tests marked gpu cannot run here; None where they can."""
    import torch

    return None if torch.cuda.is_available() else "needs a CUDA device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever is tested of models and training is made of computed numbers."""
    for item in items:
        if item.path.is_relative_to(TESTS / "models") or item.path.is_relative_to(
            TESTS / "trainer"
        ):
            item.add_marker(pytest.mark.numbers)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (reason := no_gpu()):
        pytest.skip(reason)


# What follows imports torch and more, which most tests do without.


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It knows how sure it is; that of ``other_folder`` does not."""
    from tests.bundles import make_bundle, make_sure

    return make_sure(make_bundle("nano-cnn", tmp_path_factory.mktemp("bundle") / "nano"))


@pytest.fixture(scope="session")
def bundle(bundle_folder: Path) -> Bundle:
    from models.bundle.folder import load_bundle

    return load_bundle(bundle_folder)


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the same space and name with other weights and labels."""
    from tests.bundles import make_bundle

    folder = tmp_path_factory.mktemp("other") / "nano"
    return make_bundle("nano-cnn", folder, seed=1, label="kind")


@pytest.fixture(scope="session")
def alone(bundle_folder: Path) -> Iterator[Server]:
    """A server on the default host, for all tests that leave it well."""
    from tests.contract.process import serving

    with serving(bundle_folder) as running:
        yield running
        assert "Traceback" not in running.said()


@pytest.fixture(scope="session")
def png() -> bytes:
    from tests.pictures import encoded, picture

    return encoded(picture())
