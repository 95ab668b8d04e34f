"""ServerState: what one process serves with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from shiftnas_serve.http.keys import ApiKeys
from shiftnas_serve.library import Engine
from shiftnas_serve.metrics import Metrics
from shiftnas_serve.problem import Problem
from shiftnas_serve.settings import Settings


class ServerState:
    """``engine``: None while it loads. ``draining``: the server is about to stop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine: Engine | None = None
        self.draining = False
        self.metrics = Metrics(lambda: self.engine)
        self.keys = ApiKeys(settings.api_keys, "key")
        self.admin_keys = ApiKeys(settings.admin_keys, "admin key")
        # Of long bodies, and what else would hold up the event loop.
        self.threads = ThreadPoolExecutor(2, thread_name_prefix="body")

    def serving(self) -> Engine:
        """The engine. Raises Problem 503 before it is ready, and where it has wedged."""
        engine = self.engine
        if engine is None or engine.wedged is not None:
            reason = "is starting" if engine is None else f"is about to end: {engine.wedged}"
            raise Problem(503, f"the server {reason}", headers={"Retry-After": "1"})
        return engine
