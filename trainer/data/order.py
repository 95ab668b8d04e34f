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
    about together. Runs come in random order, cut into 64 lanes of equal length that advance side
    by side; in a lane, every image waits a random time of up to window / 64 positions. So
    neighbours on disk are spread over about `window` images, a process that takes every n-th
    image reads runs that no other process reads (n a divisor of 64; but for a run at the seam of
    two lanes), and the order of an epoch can be entered anywhere, which the buffer of a stream
    cannot. Answers int64, (N,): each image once.
    """
    known, run_of = np.unique(runs, return_inverse=True)
    rank = torch.randperm(len(known), generator=generator).numpy()[run_of]
    wait = torch.rand(len(runs), generator=generator).numpy() * (window / _LANES)
    lanes = np.array_split(np.argsort(rank, kind="stable"), _LANES)
    order = np.concatenate(
        [rows[np.argsort(np.arange(len(rows)) + wait[rows], kind="stable")] for rows in lanes]
    )
    place = np.concatenate(
        [np.arange(len(rows)) * _LANES + lane for lane, rows in enumerate(lanes)]
    )
    return torch.from_numpy(order[np.argsort(place, kind="stable")])
