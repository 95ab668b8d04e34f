"""What runs the server's ASGI app. A new host is a file in this folder and an entry here."""

from __future__ import annotations

import importlib

from shiftnas_serve.settings import Settings

HOSTS: dict[str, str] = {
    "uvicorn": "shiftnas_serve.hosts.uvicorn:serve",
    "litserve": "shiftnas_serve.hosts.litserve:serve",
    "ray": "shiftnas_serve.hosts.ray:serve",
}
"""By name, ``module:function``: called with the settings, it serves until it is told to stop, and
answers the exit status. Imported when it is asked for."""


def serve(settings: Settings) -> int:
    """Run the host of that name. Raises ValueError, in one line, for a mistake of the user's."""
    if settings.server not in HOSTS:
        raise ValueError(f"no server {settings.server!r:.40}; there are: {', '.join(HOSTS)}")
    module, _, function = HOSTS[settings.server].partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{settings.server} is not installed ({error.name} is missing); pip install -e "
            f"'.[{settings.server}]', or leave out --server"
        ) from None
    return getattr(found, function)(settings)
