"""In which order an epoch shows the images: a function of (seed, epoch) alone."""

from __future__ import annotations

import numpy as np
import torch

# What one process or machine reads lies in lanes of its own, if 64 is a multiple of their number.
_LANES = 64


def shuffled(count: int, generator: torch.Generator) -> torch.Tensor:
    """Any image may follow any other: int64, (count,)."""
    return torch.randperm(count, generator=generator)


def shuffled_in_runs(runs: np.ndarray, window: int, generator: torch.Generator) -> torch.Tensor:
    """Shuffled, but for a disk that should be read in sequence: a shuffle buffer without state.

    runs: (N,) which run of neighbours on disk each image lies in; images of one run are read
    about together. Runs come in random order, dealt to 64 lanes that advance side by side; in a
    lane, every image waits a random time of up to window / 64 positions. So neighbours on disk
    are spread over about `window` images, a process that takes every n-th image reads runs that
    no other process reads (n a divisor of 64, until the first lanes end), and the order of an
    epoch can be entered anywhere, which the buffer of a stream cannot.
    Answers int64, (N,): each image once.
    """
    known, run_of = np.unique(runs, return_inverse=True)
    rank = torch.randperm(len(known), generator=generator).numpy()[run_of]
    by_run = np.argsort(rank, kind="stable")
    wait = torch.rand(len(runs), generator=generator).numpy() * (window / _LANES)
    order = np.empty(len(runs), dtype=np.int64)
    place = np.empty(len(runs), dtype=np.int64)
    lane_of = rank[by_run] % _LANES
    done = 0
    for lane in range(min(_LANES, len(known))):
        rows = by_run[lane_of == lane]
        rows = rows[np.argsort(np.arange(len(rows)) + wait[rows], kind="stable")]
        order[done : done + len(rows)] = rows
        place[done : done + len(rows)] = np.arange(len(rows)) * _LANES + lane
        done += len(rows)
    return torch.from_numpy(order[np.argsort(place, kind="stable")])
