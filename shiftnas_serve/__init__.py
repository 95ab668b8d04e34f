"""How a bundle is served: budgets, subnets as sessions, HTTP. Never imports torch.

    engine = shiftnas_serve.load("models/zoo/cifar10-cnn")
    result = engine.classify("photo.jpg", flops="4M", latency_ms=20)

Read in this order: ``library`` (what one image goes through), ``planning`` (budget -> subnet),
``scheduling`` (who is next), ``engine`` (what runs it), ``app`` (the same over HTTP).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shiftnas_serve.library import Engine, load
    from shiftnas_serve.problem import Problem

__all__ = ["Engine", "Problem", "load"]


def __getattr__(name: str) -> Any:
    # Only when it is asked for: a server that has just been started must be able to stop at once.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shiftnas_serve import library

    return getattr(library, name)
