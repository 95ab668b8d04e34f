"""EngineFiles: built engines in a folder, so that a restart need not build them again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import structlog

_DIGEST_BYTES = hashlib.sha256().digest_size
_LOG = structlog.get_logger("shiftnas_serve.engines")


class EngineFiles:
    """One file an engine; processes that share the folder may each write what the others miss.

    What is damaged is built again, and a disk that is full stops nothing: both are logged. An
    engine is a program: whoever may write to the folder decides what the server runs.

    Raises ValueError for a folder that cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"engine_cache: cannot make {folder} ({error.strerror}); name another folder"
            ) from None
        self._folder = folder

    def get(self, *key: str, build: Callable[[], bytes]) -> bytes:
        """The engine that was built for this key, else what ``build`` answers, which is kept.

        key: all that an engine depends on (weights, arch, library, device).
        """
        engine = self.read(*key)
        if engine is None:
            engine = build()
            self.write(engine, *key)
        return engine

    def read(self, *key: str) -> bytes | None:
        """What was kept for this key, if it is there and whole."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _LOG.warning("engine not read", path=str(path), reason=error.strerror)
            return None
        engine = content[_DIGEST_BYTES:]
        if hashlib.sha256(engine).digest() == content[:_DIGEST_BYTES]:
            return engine
        _LOG.warning("engine is damaged and built again", path=str(path))
        return None

    def write(self, engine: bytes, *key: str) -> None:
        """Keep this for the key, in the place of what was there."""
        path = self._path(key)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            partial.write_bytes(hashlib.sha256(engine).digest() + engine)
            partial.replace(path)  # in one step: a reader finds a whole file or none
        except OSError as error:
            _LOG.warning("engine not kept", path=str(path), reason=error.strerror)
            partial.unlink(missing_ok=True)

    def _path(self, key: tuple[str, ...]) -> Path:
        return self._folder / f"{hashlib.sha256(chr(10).join(key).encode()).hexdigest()}.engine"
