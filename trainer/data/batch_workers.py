"""Making the images of a batch: fetched and augmented here, or ahead in processes that do it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from models.bundle.disk import reason
from trainer.data.augment import crop_and_flip
from trainer.data.draws import Draws, generator_of
from trainer.data.image_policies import apply_policy
from trainer.data.splits import AbstractSplit, Fetched, LabelledImages, RandomCrops, cores
from trainer.recipes.settings import Augment

_PIXELS, _SIDES = 1, 3
"""Streams of random numbers: for what is done to pixels, and for which side an image shows first.
trainer.data.batches has two others."""


class Place(NamedTuple):
    """Which batch, and the rows of it over all ranks."""

    epoch: int
    index: int
    rows: np.ndarray


@dataclass(frozen=True)
class Failure:
    """A mistake of the user's that a worker met; an exception would arrive with a traceback."""

    message: str


@dataclass(frozen=True)
class Maker(Dataset[tuple[Place, Fetched | Failure]]):
    """Fetches and augments this rank's images of a batch; travels to the workers."""

    data: AbstractSplit
    augment: Augment | None
    mean: tuple[float, ...]
    seed: int
    mine: slice
    fill: bool

    def __getitem__(self, index: Place) -> tuple[Place, Fetched | Failure]:
        try:
            return index, self.make(index)
        except ValueError as error:
            return index, Failure(str(error))

    def make(self, place: Place) -> Fetched:
        rows, augment = place.rows[self.mine], self.augment
        if augment is None:
            return self.data.fetch(rows, fill=self.fill)
        # The last 0 is the rank that such a key once held; recorded runs depend on it.
        generator = generator_of(self.seed, _PIXELS, place.epoch, place.index, 0)
        draws = Draws(generator, len(place.rows), self.mine)
        crops = RandomCrops(augment.crop_area, draws.seeds()) if augment.crop_area else None
        images, labels, broken = self.data.fetch(rows, crops, fill=self.fill)
        if augment.padding or augment.flip:
            flip: bool | torch.Tensor = augment.flip
            if augment.alternate_flips:
                first = mirrored_first(len(self.data), self.seed)[torch.from_numpy(rows)]
                flip = (first ^ bool(place.epoch % 2)).view(-1, 1)
            images = crop_and_flip(
                images, augment.padding, border=augment.border, flip=flip, draws=draws
            )
        if augment.policy is not None:
            changed = apply_policy(images.cpu(), augment.policy, draws.seeds(), self.mean)
            images = changed.to(images.device)
        return Fetched(images, labels, broken)


@lru_cache(maxsize=1)
def mirrored_first(count: int, seed: int) -> torch.Tensor:
    """Which of so many images are mirrored in even epochs, and not in odd ones: bool (N,)."""
    return torch.rand(count, generator=generator_of(seed, _SIDES)) < 0.5


def made_by_workers(
    maker: Maker, places: Iterable[Place], workers: int, *, pin_memory: bool
) -> Iterator[tuple[Place, Fetched | Failure]]:
    """In order, made ahead. Raises ValueError when a worker has died."""
    loader = DataLoader(
        maker,
        sampler=places,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_run,
        pin_memory=pin_memory,
        # Its own: drawing from torch's global generator would change the run's numbers.
        generator=torch.Generator(),
    )
    with _child_signals_as_they_were():
        made = iter(loader)
    while True:
        try:
            one = next(made)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            # Not a mistake in an image: those come as Failure.
            raise ValueError(
                f"a process that decodes images has died ({reason(error)}); if memory ran out (in "
                "a container also /dev/shm), resume with a smaller data_workers"
            ) from error
        yield one


@contextmanager
def _child_signals_as_they_were() -> Iterator[None]:
    """Undo the handler with which torch raises for a dead worker, whatever runs at that moment.

    Without it the next batch that is asked for raises, within seconds.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if before is not None and signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before)


def _as_it_is(made: Any) -> Any:
    return made


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal, and the run still wants its batch.

    A SIGTERM handler inherited from the run would keep a worker from being ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def worker_count(data: AbstractSplit, augment: Augment | None) -> int:
    """How many help: none for what is in memory and changed as a whole."""
    one_by_one = augment is not None and (augment.policy is not None or augment.crop_area > 0)
    if isinstance(data, LabelledImages) and (not one_by_one or data.device.type != "cpu"):
        return 0
    return max(0, cores() // local_processes() - 1)


def local_processes() -> int:
    """Processes of this run on this machine, as torchrun tells them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
