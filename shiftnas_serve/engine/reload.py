"""Reload: another version of a model, loaded beside the one that is served."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from shiftnas_serve.answer import ModelName
from shiftnas_serve.engine.model import Model, load_model
from shiftnas_serve.problem import Problem
from shiftnas_serve.settings import EngineSettings

_LOG = structlog.get_logger("shiftnas_serve.reload")


@dataclass(frozen=True)
class Reloaded:
    """What came of a reload; ``model`` is what is served now."""

    model: ModelName
    previous: ModelName
    changed: bool
    duration_ms: float


def load_beside(served: Model, path: Path, settings: EngineSettings) -> Model:
    """The bundle at ``path``, checked, built and measured while another version is served.

    Raises Problem: 422 what is wrong with the bundle, 500 an error of our own.
    """
    try:
        return load_model(path, settings, busy=True)
    except ValueError as error:
        detail = f"{error}; {served.name.version} is served on"
        raise Problem(422, detail) from None
    except Exception as error:  # what nobody foresaw must not go uncounted
        _LOG.exception("a bundle could not be loaded", bundle=str(path))
        detail = f"{error!r:.200}; {served.name.version} is served on"
        raise Problem(500, detail) from error


def release_memory() -> None:
    """Give back to the system what is free: a version's arrays are large, and were many."""
    gc.collect()
    with suppress(OSError, AttributeError):  # a libc without it
        ctypes.CDLL(None).malloc_trim(0)
