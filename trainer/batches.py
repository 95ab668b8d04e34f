"""Shuffled, augmented, normalized mini-batches that can be resumed at any (epoch, index)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from trainer.augment import Augment
from trainer.splits import LabelledImages


class Batch(NamedTuple):
    """Batch `index` of epoch `epoch`: images float32 (B, 3, H, W), labels int64 (B,)."""

    epoch: int
    index: int
    images: torch.Tensor
    labels: torch.Tensor


class Batches:
    """Mini-batches whose order and augmentation depend on (seed, epoch, index) alone.

    There is no hidden position: `batch(epoch, index)` is random access, and `epoch` and
    `stream` only call it in order. So a resumed run continues bit for bit, for the price of
    one permutation.

    data: what to draw from; batches are made on the device where its images lie.
    batch_size: images per batch and per rank. mean, std: of the three channels, on images
    scaled to 0..1. augment: None to leave images as they are. shuffle=False keeps the order of
    the data; drop_last=False adds the short last batch. channels_last: memory format of the
    images. prefetch: prepare the next batch in one background thread. rank, world_size: this
    process takes its own slice of every global batch of batch_size * world_size images.

    Raises ValueError if there are fewer images than one global batch needs.
    """

    def __init__(
        self,
        data: LabelledImages,
        batch_size: int,
        *,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment | None = None,
        shuffle: bool = True,
        drop_last: bool = True,
        channels_last: bool = False,
        prefetch: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert 0 <= rank < world_size
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: give 1 or more")
        global_size = batch_size * world_size
        if drop_last and len(data) < global_size:
            raise ValueError(
                f"one batch takes {global_size} images, the data has {len(data)}: "
                "give a smaller batch_size or more images"
            )
        if prefetch and augment is not None and augment.policy is not None:
            # torchvision's policies draw from torch's global generator. In a second thread
            # they would disturb the draws of the training step, and be disturbed by them.
            raise ValueError(
                f"augment.policy {augment.policy!r} cannot run with prefetch: turn one off"
            )
        device = data.images.device
        self._data = data
        self._seed = seed
        self._augment = augment
        self._shuffle = shuffle
        self._prefetch = prefetch
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        # (x / 255 - mean) / std, as one multiplication and one addition.
        mean_0_1 = torch.tensor(mean, dtype=torch.float64).view(3, 1, 1)
        std_0_1 = torch.tensor(std, dtype=torch.float64).view(3, 1, 1)
        self._scale = (1.0 / (255.0 * std_0_1)).to(device, torch.float32)
        self._shift = (-mean_0_1 / std_0_1).to(device, torch.float32)
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        whole, rest = divmod(len(data), global_size)
        self._count = whole if drop_last or rest == 0 else whole + 1
        self._order_of: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        """Batches in one epoch."""
        return self._count

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch `index` (0 <= index < len(self)) of epoch `epoch`."""
        if not 0 <= index < self._count:
            raise IndexError(f"batch {index} of {self._count}")
        start = index * self._batch_size * self._world_size
        stop = start + self._batch_size * self._world_size
        rows = self._order(epoch)[start:stop][self._rank :: self._world_size]
        images = self._data.images[rows]
        if self._augment is None:
            floats = self._normalize(images)
        else:
            generator = _generator(self._seed, 1, epoch, index, self._rank)
            floats = self._normalize(self._augment(images, generator))
            # After normalization, so that what is cut out is the mean: no information.
            floats = self._augment.erase(floats, generator)
        floats = floats.contiguous(memory_format=self._format)
        return Batch(epoch, index, floats, self._data.labels[rows])

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from index `start` on."""
        return self._run((epoch, index) for index in range(start, self._count))

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

    def _normalize(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(torch.float32).mul_(self._scale).add_(self._shift)

    def _run(self, positions: Iterator[tuple[int, int]]) -> Iterator[Batch]:
        if not self._prefetch:
            for position in positions:
                yield self.batch(*position)
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
            pending = None
            for position in positions:
                following = pool.submit(self.batch, *position)
                if pending is not None:
                    yield pending.result()
                pending = following
            if pending is not None:
                yield pending.result()

    def _order(self, epoch: int) -> torch.Tensor:
        """Row numbers in the order of this epoch, (N,) int64, on the data's device."""
        known = self._order_of
        if known is not None and known[0] == epoch:
            return known[1]
        count = len(self._data)
        if self._shuffle:
            order = torch.randperm(count, generator=_generator(self._seed, 0, epoch))
        else:
            order = torch.arange(count)
        order = order.to(self._data.images.device)
        self._order_of = (epoch, order)
        return order


def _generator(*key: int) -> torch.Generator:
    """A generator on the CPU whose stream depends on all of `key` and on nothing else."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
