"""Extras: what some commands need beside the base installation, said in one line."""

from __future__ import annotations

import importlib.util
import sys
from types import TracebackType

EXTRAS: dict[str, tuple[str, ...]] = {
    "train": (
        "torch",
        "torchvision",
        "accelerate",
        "datasets",
        "jinja2",
        "matplotlib",
        "onnx_ir",
        "onnxscript",
        "psutil",
        "rich",
        "sklearn",
        "tensorboard",
        "threadpoolctl",
        "timm",
    ),
    "bench": ("httpx", "matplotlib", "scipy"),
    "parquet": ("pyarrow",),
}
"""Extra of ``pyproject.toml`` -> the modules that it installs."""


def require(extra: str, *modules: str) -> None:
    """Call first where a command imports these modules only later.

    Raises ValueError naming the first that is not installed.
    """
    assert set(modules) <= set(EXTRAS[extra]), f"{modules} are not all in [{extra}]"
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ValueError(_advice(module, extra))


def explain_missing(*extras: str) -> None:
    """Call in a package whose programs need some of these extras: what is missing costs one line.

    Programs import at their top, so nothing has been done when a module is found missing. Does
    nothing unless the process was started with ``python -m``, and is still looking for its program.
    """
    if sys.argv[:1] != ["-m"]:
        return

    def show(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        module = error.name if isinstance(error, ModuleNotFoundError) else None
        for extra in extras:
            if module in EXTRAS[extra]:
                print(f"error: {_advice(module, extra)}", file=sys.stderr)
                raise SystemExit(2)
        sys.__excepthook__(kind, error, traceback)

    sys.excepthook = show


def _advice(module: str | None, extra: str) -> str:
    return (
        f"this needs {module}, which is not installed; `make train` sets up all of it, "
        f"or install the [{extra}] extra: pip install -e '.[{extra}]'"
    )
