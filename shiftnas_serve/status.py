"""Status: how far the server as a whole is, as files in the folder of this run."""

from __future__ import annotations

from pathlib import Path

_STARTED, _DRAINING, _STOPPING = "started", "draining", "stopping"


def set_started(folder: Path) -> None:
    """From now on the server was complete once."""
    (folder / _STARTED).touch()


def is_started(folder: Path) -> bool:
    """Whether every HTTP process has had every worker."""
    return (folder / _STARTED).exists()


def set_draining(folder: Path) -> None:
    """From now on /readyz says 503; requests are still answered."""
    (folder / _DRAINING).touch()


def is_draining(folder: Path) -> bool:
    """Whether the server is about to stop."""
    return (folder / _DRAINING).exists()


def set_stopping(folder: Path) -> None:
    """From now on the HTTP process obeys a signal to end."""
    (folder / _STOPPING).touch()


def is_stopping(folder: Path) -> bool:
    """Whether the time to drain is over."""
    return (folder / _STOPPING).exists()
