"""Provenance: which code, libraries and machine made a run."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from models.measure.machine import processor


def provenance() -> dict[str, str | int | None]:
    """Commit (None outside a checkout, with "+" when files are changed), versions, machine."""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "machine": f"{platform.machine()} {processor()}".strip(),
        "cores": os.cpu_count(),
    }


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    try:
        revision = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
