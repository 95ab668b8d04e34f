"""Draws: the random numbers of one batch, the same however many processes share it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


class Draws:
    """Random numbers for all images of a global batch, of which this process keeps its own.

    Every process draws for the whole batch and looks at its rows alone: an image is changed in
    the same way on 1 GPU and on 64. generator: lives on the CPU. total: images of the batch over
    all processes. mine: which of them are here.
    """

    def __init__(self, generator: torch.Generator, total: int, mine: slice | None = None) -> None:
        self._generator = generator
        self._total = total
        self._mine = slice(None) if mine is None else mine

    def integers(self, low: int, high: int) -> torch.Tensor:
        """One integer per image in low..high-1: (B, 1), int64."""
        values = torch.randint(low, high, (self._total, 1), generator=self._generator)
        return values[self._mine]

    def uniform(self) -> torch.Tensor:
        """One number per image in [0, 1): (B, 1), float32."""
        return torch.rand(self._total, 1, generator=self._generator)[self._mine]

    def beta(self, alpha: float) -> torch.Tensor:
        """One number per image from Beta(alpha, alpha): (B, 1), float32."""
        # numpy's: torch has none that takes a generator
        seed = int(torch.randint(2**62, (1,), generator=self._generator))
        values = np.random.default_rng(seed).beta(alpha, alpha, (self._total, 1))
        return torch.from_numpy(values.astype(np.float32))[self._mine]

    def seeds(self) -> list[int]:
        """One seed per image, for what is done image by image."""
        values = torch.randint(2**62, (self._total,), generator=self._generator)
        return values[self._mine].tolist()


def generator_of(*key: int) -> torch.Generator:
    """A generator on the CPU whose stream depends on all of `key` and on nothing else."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def seed_global_generators(seed: int) -> None:
    """Seed the generators that libraries draw from: Python's, numpy's and torch's on the CPU.

    Not torch.manual_seed, which would seed every GPU too. Inside `global_generators_kept` only.
    """
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - timm draws from the global one
    random.seed(seed)


@contextmanager
def global_generators_kept() -> Iterator[None]:
    """Put the generators that `seed_global_generators` seeds back as they were."""
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 - as above
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002 - as above
