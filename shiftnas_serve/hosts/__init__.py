"""What runs the server's ASGI app. A new host is a file here and a name in ``Settings``."""

from __future__ import annotations

import importlib
from typing import get_args

from shiftnas_serve.settings import Settings

HOSTS: tuple[str, ...] = get_args(Settings.model_fields["server"].annotation)
"""Each a module here, imported when it is asked for. Its ``serve`` is called with the settings,
serves until it is told to stop, and answers the exit status."""


def serve(settings: Settings) -> int:
    """Run the host of that name. Raises ValueError, in one line, for a mistake of the user's."""
    try:
        host = importlib.import_module(f"shiftnas_serve.hosts.{settings.server}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--server {settings.server} needs {error.name}, which is not installed; "
            "deploy/README.md says what installs it, or leave out --server"
        ) from None
    return host.serve(settings)


def refuse_drain(settings: Settings, server: str) -> None:
    """For a host that ends in its own way. Raises ValueError: a setting is never ignored."""
    if settings.drain_s:
        raise ValueError(
            f"drain_s is {settings.drain_s:g}, and {server} cannot wait before it ends; leave out "
            "--drain-s (SHIFTNAS_DRAIN_S), or serve with --server uvicorn"
        )
