"""Seeds of a step: what it draws outside the run's own generator depends on its number alone."""

from __future__ import annotations

import numpy as np
from accelerate.utils import set_seed


def seed_step(seed: int, step: int) -> None:
    """Seed Python's, numpy's and torch's own generators, on all devices, for one step.

    Subnets come from the run's generator, which a checkpoint keeps. What else draws (dropped
    paths) uses these: the same after a resume without being stored, and the same on every rank,
    since each draws for all images of a batch.
    """
    # The 0 is the rank that such a key once held; recorded runs depend on it.
    state = np.random.SeedSequence((seed, step, 0)).generate_state(1, np.uint32)
    set_seed(int(state[0]))
