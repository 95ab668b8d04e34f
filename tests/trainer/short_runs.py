"""Runs without a bundle, each step in the log; also in the processes that torchrun starts.

    python -m tests.trainer.short_runs '[{"arguments": ["--out", "runs/one"]}]' statuses

is ``torchrun --nproc-per-node 2`` with a function in place of a program: its processes are forked
from one that has imported torch and read the digits, most of the time that such short runs take.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import trainer.data.run_data
import trainer.loop
import trainer.report.monitor
import trainer.run
from trainer.data.reading import load_splits, read_source


def short_run(arguments: Sequence[str], mischief: Mapping[str, int] | None = None) -> int:
    """As ``python -m trainer.run`` with these arguments; answers its exit status.

    mischief: in one process, from a step on: {"rank": 1, "step": 7, "signal": 15}, or "nan": 1.
    """
    train_step = trainer.loop.train_step
    if mischief is not None and mischief["rank"] == trainer.run.ranks_here().rank:
        train_step = _with_mischief(train_step, mischief)
    with (
        patch.object(trainer.report.monitor, "LOG_EVERY_STEPS", 1),
        patch.object(trainer.run, "finish", lambda *_: {}),
        patch.object(trainer.loop, "train_step", train_step),
    ):
        return trainer.run.main(arguments)


def _with_mischief(train_step: Callable, mischief: Mapping[str, int]) -> Callable:
    steps = 0

    def step(state, batch, *rest):
        nonlocal steps
        steps += 1
        if steps == mischief["step"]:
            if "nan" in mischief:
                batch = batch._replace(images=torch.full_like(batch.images, float("nan")))
            else:
                os.kill(os.getpid(), signal.Signals(mischief["signal"]))
        return train_step(state, batch, *rest)

    return step


def _own_keys(number: int):
    """Processes find each other by keys in a store, where those of the last run are left."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore(f"run {number}", dist.TCPStore(address, port, is_master=False))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    connect = partial(dist.init_process_group, store=store, rank=rank, world_size=world_size)
    return patch.object(dist, "init_process_group", connect)


def _all_runs(runs: Sequence[Mapping[str, Any]]) -> list[int]:
    """In each process, one run after another; answers their exit statuses."""
    statuses = []
    for number, run in enumerate(runs):
        with _own_keys(number):
            statuses.append(short_run(run["arguments"], run.get("mischief")))
    return statuses


def main() -> int:
    """Several runs in two processes. Writes the exit statuses, rank by rank, to the second file."""
    digits = cache(load_splits)
    read_source("digits")  # imports what reads them
    importlib.import_module("torch._dynamo")  # as the first step of an optimizer does
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="short runs",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
    )
    with patch.object(trainer.data.run_data, "load_splits", digits):
        statuses = elastic_launch(agent, _all_runs)(json.loads(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps([statuses[rank] for rank in sorted(statuses)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
