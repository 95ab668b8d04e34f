"""Runs without a bundle, each step in the log; also in the processes that torchrun starts.

torchrun --nproc-per-node 2 -m tests.trainer.short_runs '[{"arguments": ["--out", "runs/one"]}]'
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

import trainer.algorithms
import trainer.monitor
import trainer.run


def short_run(arguments: Sequence[str], mischief: Mapping[str, int] | None = None) -> int:
    """As ``python -m trainer.run`` with these arguments; answers its exit status.

    mischief: in one process, from a step on: {"rank": 1, "step": 7, "signal": 15}, or "nan": 1.
    """
    train_step = trainer.algorithms.train_step
    if mischief is not None and mischief["rank"] == trainer.run.ranks_here().rank:
        train_step = _with_mischief(train_step, mischief)
    with (
        patch.object(trainer.monitor, "LOG_EVERY_STEPS", 1),
        patch.object(trainer.run, "finish", lambda *_: {}),
        patch.object(trainer.algorithms, "train_step", train_step),
    ):
        return trainer.run.main(arguments)


def _with_mischief(train_step: Callable, mischief: Mapping[str, int]) -> Callable:
    steps = 0

    def step(net, generator, relaxed_flops, draws, images, *rest, **named):
        nonlocal steps
        steps += 1
        if steps == mischief["step"]:
            if "nan" in mischief:
                images = torch.full_like(images, float("nan"))
            else:
                os.kill(os.getpid(), signal.Signals(mischief["signal"]))
        return train_step(net, generator, relaxed_flops, draws, images, *rest, **named)

    return step


def _own_keys(number: int):
    """Processes find each other by keys in a store, where those of the last run are left."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore(f"run {number}", dist.TCPStore(address, port, is_master=False))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    connect = partial(dist.init_process_group, store=store, rank=rank, world_size=world_size)
    return patch.object(dist, "init_process_group", connect)


def main() -> int:
    """Several runs, one after another: torch takes its time to start.

    Each process writes the exit statuses of its runs to the file that comes second.
    """
    statuses = []
    for number, run in enumerate(json.loads(sys.argv[1])):
        with _own_keys(number):
            statuses.append(short_run(run["arguments"], run.get("mischief")))
    Path(f"{sys.argv[2]}.{os.environ['RANK']}").write_text(json.dumps(statuses))
    return 0


if __name__ == "__main__":
    sys.exit(main())
