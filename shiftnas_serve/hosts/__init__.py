"""What runs the server's ASGI app. A new host is a file in this folder and an entry here."""

from __future__ import annotations

import importlib

from shiftnas_serve.settings import Settings

HOSTS = ("uvicorn", "litserve", "ray")
"""Each a module here, imported when it is asked for. Its ``serve`` is called with the settings,
serves until it is told to stop, and answers the exit status."""


def serve(settings: Settings) -> int:
    """Run the host of that name. Raises ValueError, in one line, for a mistake of the user's."""
    if settings.server not in HOSTS:
        raise ValueError(f"no server {settings.server!r:.40}; there are: {', '.join(HOSTS)}")
    try:
        host = importlib.import_module(f"shiftnas_serve.hosts.{settings.server}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{settings.server} is not installed ({error.name} is missing); pip install -e "
            f"'.[{settings.server}]', or leave out --server"
        ) from None
    return host.serve(settings)
