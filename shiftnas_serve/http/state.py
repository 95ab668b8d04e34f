"""ServerState: what one process serves with."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from shiftnas_serve.admission.keys import ApiKeys
from shiftnas_serve.admission.rate import RateLimit
from shiftnas_serve.http.body import BodyLimits
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
        self.keys = ApiKeys([key.get_secret_value() for key in settings.api_keys])
        admin = [key.get_secret_value() for key in settings.admin_keys]
        self.admin_keys = ApiKeys(admin, "admin key")
        self._rate: RateLimit | None = None
        if settings.rate_per_s is not None:
            self._rate = RateLimit(settings.rate_per_s, settings.rate_burst)
        self.body_limits = BodyLimits(settings.max_body_bytes, settings.timeout_s)
        # Of long bodies, and what else would hold up the event loop.
        self.threads = ThreadPoolExecutor(2, thread_name_prefix="body")

    def serving(self) -> Engine:
        """The engine. Raises Problem 503 before it is ready, and where it has wedged."""
        engine = self.engine
        if engine is None or engine.wedged is not None:
            reason = "is starting" if engine is None else "is about to end: " + str(engine.wedged)
            raise Problem(503, f"the server {reason}", headers={"Retry-After": "1"})
        return engine

    def charge(self, headers: Mapping[bytes, bytes], images: int) -> None:
        """Check the key, and count images against its rate. Raises Problem 401, 429."""
        key = self.keys.check(headers)
        if self._rate is not None and key is not None and images:
            self._rate.take(key, images)
