"""A bundle without BatchNorm: any arch of it may be answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.bundle.folder import Bundle, load_bundle
from tests.bundles import make_bundle


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle("nano-vit", tmp_path_factory.mktemp("vit") / "nano")


@pytest.fixture(scope="session")
def vit(vit_folder: Path) -> Bundle:
    return load_bundle(vit_folder)
