"""Seeds of a step: what it draws outside the run's own generator depends on its number alone."""

from __future__ import annotations

import numpy as np
from accelerate.utils import set_seed


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed Python's, numpy's and torch's own generators, on all devices, for one step.

    Subnets come from the run's generator, which all ranks share and a checkpoint keeps. What else
    draws (dropped paths) uses these: different on every rank, and the same after a resume without
    being stored.
    """
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint32)
    set_seed(int(state[0]))
