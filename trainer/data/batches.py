"""Shuffled, augmented, normalized mini-batches that can be resumed at any (epoch, index)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from trainer.data.augment import cutout
from trainer.data.batch_workers import Failure, Maker, Place, made_by_workers, worker_count
from trainer.data.draws import Draws, generator_of
from trainer.data.mixing import mix, random_erase
from trainer.data.order import shuffled, shuffled_in_runs
from trainer.data.splits import AbstractSplit, Fetched
from trainer.recipes.settings import Augment

SHUFFLE_WINDOW = 50_000

# Streams of random numbers beside that of pixels: the order, what is done to a whole batch.
_ORDER, _BATCH = 0, 2


class Batch(NamedTuple):
    """Batch `index` of epoch `epoch`.

    images: float32 (B, 3, H, W). labels: int64 (B,); where images are mixed, the share of each
    class in them, float32 (B, classes). rows: where each image lies in the data, int64 (B,); None
    where broken ones are left out.
    """

    epoch: int
    index: int
    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor | None = None


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
    as many as cores if images are decoded or changed one by one. window: images of a source that
    is read in sequence are mixed over about this many. rank, world_size: this process takes its own
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
        self._maker = Maker(data, augment, tuple(mean), seed, self._mine, fill=drop_last)
        self._workers = worker_count(data, augment) if workers < 0 else workers
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
        for place, made in made_by_workers(
            self._maker, places, self._workers, pin_memory=self._device.type == "cuda"
        ):
            if isinstance(made, Failure):
                raise ValueError(made.message)
            yield self._finish(place, made, mixed=mixed)

    def _place(self, epoch: int, index: int) -> Place:
        start = index * self._global_size
        return Place(epoch, index, self._order(epoch)[start : start + self._global_size])

    def _finish(self, place: Place, made: Fetched, *, mixed: bool) -> Batch:
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
        rows = torch.from_numpy(place.rows[self._mine]) if self._maker.fill else None
        return Batch(place.epoch, place.index, images, labels, rows)

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
