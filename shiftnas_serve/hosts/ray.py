"""Ray Serve: the same app in replicas over many machines, as many of them as its queue asks for.

``serve`` runs it on a cluster that is there (``RAY_ADDRESS``), or on one of its own here.
``deploy/ray/`` deploys ``app`` by Ray's own commands, and on Kubernetes. Needs the extra ``ray``.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.schema import LoggingConfig

from shiftnas_serve.app import App, create_app
from shiftnas_serve.hosts import refuse_drain
from shiftnas_serve.hosts.uvicorn import KEEP_ALIVE_S
from shiftnas_serve.settings import Settings, as_environment, load_settings

REQUESTS = 8
"""In a replica, those that run included: with more there should be more replicas."""


def app(arguments: Mapping[str, object]) -> Application:
    """What ``serve deploy`` builds. ``arguments``: settings by name, before the environment's."""
    return application(load_settings(arguments))


def application(settings: Settings) -> Application:
    """From 1 to ``processes`` replicas, each with a core for every thread, or with a GPU.

    Raises ValueError for settings that Ray cannot keep.
    """
    refuse_drain(settings, "Ray Serve")
    deployment: Any = ray_serve.deployment(  # a decorator, by its type
        ray_serve.ingress(_replica)(),
        name="classify",
        autoscaling_config=AutoscalingConfig(
            min_replicas=1, max_replicas=settings.processes, target_ongoing_requests=REQUESTS
        ),
        max_ongoing_requests=settings.max_waiting,
        ray_actor_options={
            "num_cpus": settings.workers * settings.threads,
            "num_gpus": 0 if settings.device == "cpu" else 1,
            "runtime_env": {"env_vars": as_environment(settings)},
        },
        logging_config=_logging(settings),
    )
    return deployment.bind()


def _replica() -> App:
    """Built in the replica, whose environment has the settings."""
    return create_app()


def _logging(settings: Settings) -> LoggingConfig:
    """Requests are in the app's own log."""
    return LoggingConfig(enable_access_log=False, log_level=settings.log_level.upper())


def serve(settings: Settings) -> int:
    """Until it is told to stop: the exit status."""
    # Ray would tell its makers that it is used.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    ray.init(include_dashboard=False, logging_level=level)
    try:
        options = HTTPOptions(
            host=settings.host, port=settings.port, keep_alive_timeout_s=KEEP_ALIVE_S
        )
        ray_serve.start(http_options=options, logging_config=_logging(settings))
        ray_serve.run(application(settings), name="shiftnas", route_prefix="/")
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):  # ray.init has set its own
            signal.signal(number, lambda number, frame: stopped.set())
        while not stopped.wait(1.0):  # a handler runs between two waits
            pass
        ray_serve.shutdown()
    finally:
        ray.shutdown()
    return 0
