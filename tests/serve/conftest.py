"""Bundles, a photo, and for what only a process can show, servers (``tests.contract.process``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.bundle.folder import Bundle, load_bundle
from tests.bundles import make_bundle
from tests.contract.process import Server, serving
from tests.pictures import encoded, picture


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle("nano-cnn", tmp_path_factory.mktemp("bundle") / "nano")


@pytest.fixture(scope="session")
def bundle(bundle_folder: Path) -> Bundle:
    return load_bundle(bundle_folder)


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without BatchNorm: any arch of it may be answered."""
    return make_bundle("nano-vit", tmp_path_factory.mktemp("vit") / "nano")


@pytest.fixture(scope="session")
def vit(vit_folder: Path) -> Bundle:
    return load_bundle(vit_folder)


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the same space and name with other weights and labels."""
    folder = tmp_path_factory.mktemp("other") / "nano"
    return make_bundle("nano-cnn", folder, seed=1, label="kind")


@pytest.fixture(scope="session")
def server(bundle_folder: Path) -> Iterator[Server]:
    """One server for all tests that leave it well."""
    with serving(bundle_folder, "--max-body-bytes", "3000000") as running:
        yield running


@pytest.fixture(scope="session")
def keyed_server(bundle_folder: Path) -> Iterator[Server]:
    """One that asks for keys."""
    keys = {"SHIFTNAS_API_KEYS": "first-key, second-key"}
    with serving(bundle_folder, "--prebuild", "no", **keys) as running:
        yield running


@pytest.fixture(scope="session")
def png() -> bytes:
    return encoded(picture())
