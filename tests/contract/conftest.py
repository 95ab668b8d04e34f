"""Servers of every host, started once, and what to send them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from models.bundle.folder import Bundle, load_bundle
from tests.contract.hosts import Host, host_parameters
from tests.contract.process import Server, serving

API_KEYS = ("first-key", "schlüssel-Ω")
ADMIN_KEY = "admin-key"


@pytest.fixture(scope="session", params=host_parameters())
def host(request: pytest.FixtureRequest) -> Host:
    return request.param


@pytest.fixture(scope="session")
def other(other_folder: Path) -> Bundle:
    return load_bundle(other_folder)


@pytest.fixture(scope="session")
def server(host: Host, bundle_folder: Path) -> Iterator[Server]:
    """Of each host, for all tests that leave it well. Nobody needs a key."""
    with serving(bundle_folder, command=host.command) as running:
        yield running
        assert "Traceback" not in running.said()


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as one:
        yield one


@pytest.fixture(scope="session")
def keyed(host: Host, bundle_folder: Path) -> Iterator[Server]:
    """Of each host: one that asks for keys, and lets pages of https://example.org ask."""
    with serving(
        bundle_folder,
        *("--cors-origins", "https://example.org"),
        command=host.command,
        SHIFTNAS_API_KEYS=", ".join(API_KEYS),
        SHIFTNAS_ADMIN_KEYS=f"old-admin-key, {ADMIN_KEY}",
    ) as running:
        yield running


@pytest.fixture(scope="session")
def b64(png: bytes) -> str:
    return base64.b64encode(png).decode()
