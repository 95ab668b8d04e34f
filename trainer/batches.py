"""Shuffled, augmented, normalized mini-batches that can be resumed at any (epoch, index)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from trainer.augment import Augment, crop_and_flip, cutout
from trainer.draws import Draws, generator_of
from trainer.mixing import mix, random_erase
from trainer.order import shuffled, shuffled_in_runs
from trainer.policies import apply_policy
from trainer.splits import AbstractSplit, Fetched, LabelledImages, RandomCrops

SHUFFLE_WINDOW = 50_000

# Streams of random numbers: the order, what is done to pixels, what is done to a whole batch.
_ORDER, _PIXELS, _BATCH = 0, 1, 2
_MOST_WORKERS = 8


class Batch(NamedTuple):
    """Batch `index` of epoch `epoch`.

    images: float32 (B, 3, H, W). labels: int64 (B,); where images are mixed, the share of each
    class in them, float32 (B, classes).
    """

    epoch: int
    index: int
    images: torch.Tensor
    labels: torch.Tensor


class Batches:
    """Mini-batches whose order and augmentation depend on (seed, epoch, index) alone.

    There is no hidden position: `batch(epoch, index)` is random access, and `epoch` and
    `stream` only call it in order. So a resumed run continues bit for bit, for the price of
    one permutation, also from a data set on disk. Neither the number of processes nor that of
    workers changes what becomes of an image.

    data: what to draw from. batch_size: images per batch and per rank. mean, std: of the three
    channels, on images scaled to 0..1. augment: None to leave images as they are. classes: how
    many there are; needed where augment mixes images. shuffle=False keeps the order of the data;
    drop_last=False adds the short last batch, and leaves broken images out where they are
    skipped (else the next one takes their place). channels_last: memory format of the images.
    device: where batches are wanted, and normalized and mixed; None is where the data is.
    workers: processes that decode and augment ahead for `epoch` and `stream`; 0 for none, -1 for
    up to 8 if images are decoded or changed one by one. window: images of a source that is read
    in sequence are mixed over about this many. rank, world_size: this process takes its own
    images of every global batch of batch_size * world_size.

    Attribute broken: the images that were skipped so far, each with its reason, as keys in the
    order in which they were met.

    Raises ValueError if there are fewer images than one global batch needs.
    """

    def __init__(
        self,
        data: AbstractSplit,
        batch_size: int,
        *,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment | None = None,
        classes: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        channels_last: bool = False,
        device: str | None = None,
        workers: int = -1,
        window: int = SHUFFLE_WINDOW,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert 0 <= rank < world_size
        assert classes or augment is None or not augment.mixes
        assert drop_last or augment is None
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: give 1 or more")
        self._global_size = batch_size * world_size
        if drop_last and len(data) < self._global_size:
            raise ValueError(
                f"one batch takes {self._global_size} images, the data has {len(data)}: "
                "give a smaller batch_size or more images"
            )
        self._data = data
        self._seed = seed
        self._augment = augment
        self._classes = classes
        self._shuffle = shuffle
        self._window = window
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._device = data.device if device is None else torch.device(device)
        # (x / 255 - mean) / std, as one multiplication and one addition.
        mean_0_1 = torch.tensor(mean, dtype=torch.float64).view(3, 1, 1)
        std_0_1 = torch.tensor(std, dtype=torch.float64).view(3, 1, 1)
        self._scale = (1.0 / (255.0 * std_0_1)).to(self._device, torch.float32)
        self._shift = (-mean_0_1 / std_0_1).to(self._device, torch.float32)
        self._mine = slice(rank, None, world_size)
        self._maker = _Maker(data, augment, tuple(mean), seed, self._mine, fill=drop_last)
        self._workers = _worker_count(data, augment) if workers < 0 else workers
        whole, rest = divmod(len(data), self._global_size)
        self._count = whole if drop_last or rest == 0 else whole + 1
        self._order_of: tuple[int, np.ndarray] | None = None
        self.broken: dict[str, None] = {}

    def __len__(self) -> int:
        """Batches in one epoch."""
        return self._count

    def batch(self, epoch: int, index: int, *, mixed: bool = True) -> Batch:
        """Batch `index` (0 <= index < len(self)) of epoch `epoch`, made in this process.

        mixed: False leaves out what makes images of no class (cutout, erasing, Mixup, CutMix).
        """
        if not 0 <= index < self._count:
            raise IndexError(f"batch {index} of {self._count}")
        place = self._place(epoch, index)
        return self._finish(place, self._maker.make(place), mixed=mixed)

    def epoch(self, epoch: int, start: int = 0, *, mixed: bool = True) -> Iterator[Batch]:
        """The batches of one epoch from index `start` on. mixed: as in `batch`."""
        return self._run(((epoch, index) for index in range(start, self._count)), mixed=mixed)

    def stream(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Batches without end, from batch `start` of epoch `epoch` on."""

        def positions() -> Iterator[tuple[int, int]]:
            current, first = epoch, start
            while True:
                for index in range(first, self._count):
                    yield current, index
                current, first = current + 1, 0

        assert self._count > 0
        return self._run(positions())

    def __iter__(self) -> Iterator[Batch]:
        """The batches of epoch 0: what an evaluation with shuffle=False goes over."""
        return self.epoch(0)

    def _run(self, positions: Iterator[tuple[int, int]], *, mixed: bool = True) -> Iterator[Batch]:
        if self._workers == 0:
            for position in positions:
                yield self.batch(*position, mixed=mixed)
            return
        places = (self._place(*position) for position in positions)
        for place, made in _made_by_workers(
            self._maker, places, self._workers, pin_memory=self._device.type == "cuda"
        ):
            if isinstance(made, _Failure):
                raise ValueError(made.message)
            yield self._finish(place, made, mixed=mixed)

    def _place(self, epoch: int, index: int) -> _Place:
        start = index * self._global_size
        return _Place(epoch, index, self._order(epoch)[start : start + self._global_size])

    def _finish(self, place: _Place, made: Fetched, *, mixed: bool) -> Batch:
        """What is done to a batch as a whole, on the device that wants it."""
        self.broken |= dict.fromkeys(made.broken)
        images = made.images.to(self._device, non_blocking=True)
        labels = made.labels.to(self._device, non_blocking=True)
        images = images.to(torch.float32).mul_(self._scale).add_(self._shift)
        augment = self._augment
        if augment is not None and mixed:
            generator = generator_of(self._seed, _BATCH, place.epoch, place.index)
            draws = Draws(generator, len(place.rows), self._mine)
            # After normalization, so that what is cut out is the mean: no information.
            if augment.cutout:
                images = cutout(images, augment.cutout, draws)
            if augment.erase:
                images = random_erase(images, augment.erase, draws)
            if augment.mixes:
                images, labels = mix(images, labels, self._classes, augment, draws)
        images = images.contiguous(memory_format=self._format)
        return Batch(place.epoch, place.index, images, labels)

    def _order(self, epoch: int) -> np.ndarray:
        """Row numbers in the order of this epoch, (N,) int64."""
        known = self._order_of
        if known is not None and known[0] == epoch:
            return known[1]
        count = len(self._data)
        generator = generator_of(self._seed, _ORDER, epoch)
        runs = self._data.runs
        if not self._shuffle:
            order = torch.arange(count)
        elif runs is None or self._window == 0:
            order = shuffled(count, generator)
        else:
            order = shuffled_in_runs(runs, self._window, generator)
        if self._augment is not None:
            # Copies follow one another, so that each goes to another rank, as in DeiT.
            order = order.repeat_interleave(self._augment.repeats)[:count]
        self._order_of = (epoch, order.numpy())
        return self._order_of[1]


class _Place(NamedTuple):
    """Which batch, and the rows of it over all ranks."""

    epoch: int
    index: int
    rows: np.ndarray


@dataclass(frozen=True)
class _Failure:
    """A mistake of the user's that a worker met; an exception would arrive with a traceback."""

    message: str


@dataclass(frozen=True)
class _Maker(Dataset[tuple[_Place, Fetched | _Failure]]):
    """Fetches and augments this rank's images of a batch; travels to the workers."""

    data: AbstractSplit
    augment: Augment | None
    mean: tuple[float, ...]
    seed: int
    mine: slice
    fill: bool

    def __getitem__(self, index: _Place) -> tuple[_Place, Fetched | _Failure]:
        try:
            return index, self.make(index)
        except ValueError as error:
            return index, _Failure(str(error))

    def make(self, place: _Place) -> Fetched:
        rows, augment = place.rows[self.mine], self.augment
        if augment is None:
            return self.data.fetch(rows, fill=self.fill)
        # The last 0 is the rank that such a key once held; recorded runs depend on it.
        generator = generator_of(self.seed, _PIXELS, place.epoch, place.index, 0)
        draws = Draws(generator, len(place.rows), self.mine)
        crops = RandomCrops(augment.crop_area, draws.seeds()) if augment.crop_area else None
        images, labels, broken = self.data.fetch(rows, crops, fill=self.fill)
        if augment.padding or augment.flip:
            images = crop_and_flip(
                images, augment.padding, border=augment.border, flip=augment.flip, draws=draws
            )
        if augment.policy is not None:
            changed = apply_policy(images.cpu(), augment.policy, draws.seeds(), self.mean)
            images = changed.to(images.device)
        return Fetched(images, labels, broken)


def _made_by_workers(
    maker: _Maker, places: Iterable[_Place], workers: int, *, pin_memory: bool
) -> Iterator[tuple[_Place, Fetched | _Failure]]:
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
            # Not a mistake in an image: those come as _Failure.
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(
                f"a process that decodes images has died ({reason}); if memory ran out (in a "
                "container also /dev/shm), resume with a smaller data_workers"
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


def _worker_count(data: AbstractSplit, augment: Augment | None) -> int:
    one_by_one = augment is not None and (augment.policy is not None or augment.crop_area > 0)
    if isinstance(data, LabelledImages) and (not one_by_one or data.device.type != "cpu"):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(0, min(_MOST_WORKERS, (cores or 1) // local_processes() - 1))


def local_processes() -> int:
    """Processes of this run on this machine, as torchrun tells them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
