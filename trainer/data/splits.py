"""What a data set is once it is split: labelled images, in memory or decoded as they are needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from models.images.header import ImageError
from models.images.preprocess import Preprocess
from trainer.data.decoding import decode_for, decode_whole
from trainer.data.image_policies import random_resized_crop, to_image, to_tensor
from trainer.data.sources import Rows

_LONGEST_BROKEN_STRETCH = 100


@dataclass(frozen=True)
class RandomCrops:
    """Random parts of images instead of the centre: the least area, and a seed for each image."""

    area: float
    seeds: Sequence[int]


class Fetched(NamedTuple):
    """Pixels of some images: uint8 (B, 3, R, R); labels, int64 (B,); names of broken ones."""

    images: torch.Tensor
    labels: torch.Tensor
    broken: tuple[str, ...] = ()


class AbstractSplit(ABC):
    """Images of one side with their classes."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def resolution(self) -> int:
        """Side of the (square) images, in pixels."""

    @property
    def device(self) -> torch.device:
        """Where the pixels come out."""
        return torch.device("cpu")

    @property
    def runs(self) -> np.ndarray | None:
        """(N,) the run of neighbours on disk that each image lies in; None: order is no matter."""
        return None

    @abstractmethod
    def fetch(
        self, rows: np.ndarray, crops: RandomCrops | None = None, *, fill: bool = True
    ) -> Fetched:
        """The images at `rows` (int64).

        fill: others take the place of broken ones, if those are skipped at all; else there are
        fewer. Raises ValueError naming a broken image.
        """


@dataclass(frozen=True)
class LabelledImages(AbstractSplit):
    """In memory. images: uint8, (N, 3, H, W), RGB. labels: int64, (N,), from 0."""

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8
        assert self.images.ndim == 4
        assert self.labels.dtype == torch.int64
        assert self.labels.shape == self.images.shape[:1]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def resolution(self) -> int:
        return self.images.shape[-1]

    @property
    def device(self) -> torch.device:
        return self.images.device

    def take(self, indices: torch.Tensor) -> LabelledImages:
        """The images at `indices` (int64), copied."""
        return LabelledImages(self.images[indices], self.labels[indices])

    def fetch(
        self, rows: np.ndarray, crops: RandomCrops | None = None, *, fill: bool = True
    ) -> Fetched:
        chosen = torch.from_numpy(rows)
        images = self.images[chosen]
        if crops is not None:
            for place, seed in enumerate(crops.seeds):
                cropped = random_resized_crop(
                    to_image(images[place].cpu()), self.resolution, crops.area, seed
                )
                images[place] = to_tensor(cropped).to(images.device)
        return Fetched(images, self.labels[chosen])


@dataclass(frozen=True)
class EncodedImages(AbstractSplit):
    """On disk, decoded as they are needed.

    side: they are cropped and resized to, as preprocess says. skip_broken: images that cannot be
    decoded are skipped and named in what fetch answers, instead of raising.
    """

    rows: Rows
    side: int
    preprocess: Preprocess
    skip_broken: bool
    labels: torch.Tensor

    @staticmethod
    def of(rows: Rows, side: int, preprocess: Preprocess, *, skip_broken: bool) -> EncodedImages:
        """From rows of a source, which may have to be made ready for reading in any order."""
        rows = Rows(rows.images.for_random_access(), rows.rows, rows.labels)
        labels = torch.from_numpy(rows.labels.copy())
        return EncodedImages(rows, side, preprocess, skip_broken, labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def resolution(self) -> int:
        return self.side

    @property
    def runs(self) -> np.ndarray | None:
        runs = self.rows.images.runs()
        return None if runs is None else runs[self.rows.rows]

    def fetch(
        self, rows: np.ndarray, crops: RandomCrops | None = None, *, fill: bool = True
    ) -> Fetched:
        images: list[torch.Tensor] = []
        labels: list[int] = []
        broken: list[str] = []
        for place, row in enumerate(rows.tolist()):
            # The next one takes the place of a broken one: the same on every resumed run.
            attempts = _LONGEST_BROKEN_STRETCH if fill else 1
            for candidate in range(row, row + attempts):
                index = candidate % len(self)
                try:
                    images.append(self._decode(index, crops, place))
                    labels.append(int(self.labels[index]))
                    break
                except (ImageError, OSError) as error:
                    message = f"{self.rows.where(index)}: {error}"
                    if not self.skip_broken:
                        raise ValueError(message) from error
                    broken.append(message)
            else:
                if fill:
                    raise ValueError(f"{attempts} broken images in a row, the last is {broken[-1]}")
        shape = (0, 3, self.side, self.side)
        pixels = torch.stack(images) if images else torch.empty(shape, dtype=torch.uint8)
        return Fetched(pixels, torch.tensor(labels, dtype=torch.int64), tuple(broken))

    def _decode(self, index: int, crops: RandomCrops | None, place: int) -> torch.Tensor:
        content = self.rows.read(index)
        if crops is not None:
            whole = decode_whole(content, self.preprocess)
            return to_tensor(random_resized_crop(whole, self.side, crops.area, crops.seeds[place]))
        image = decode_for(self.side, content, self.preprocess)
        return torch.from_numpy(self.preprocess.pixels(image, self.side).transpose(2, 0, 1).copy())


@dataclass(frozen=True)
class Splits:
    """One data set, cut so that no decision ever sees the images that are reported.

    train: what the weights learn from. held_out: of the training images; steers the
    sampling distribution and is used for every decision. test: reported, never used to decide.
    labels: class names, in label order. name: what to write beside a figure. memory: one line on
    what is kept in memory. broken: images left out, each with its reason, found when decoding
    what is in memory.
    """

    train: AbstractSplit
    held_out: AbstractSplit
    test: AbstractSplit
    labels: tuple[str, ...]
    name: str
    memory: str = ""
    broken: tuple[str, ...] = ()

    @property
    def resolution(self) -> int:
        """Side of the (square) images, in pixels."""
        return self.train.resolution


def stratified_holdout(
    labels: np.ndarray, share: float, seed: int, *, count: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Cut row numbers into (kept, held out): `share` of every class, at random.

    Every class keeps at least one row, and gives at least one if it has two. (scikit-learn's
    stratified split refuses classes that have one row; a photo folder often has one.) count: hold
    out this many in all instead, in proportion to the classes, as far as every class keeps one.
    Both answers are int64 and ascending, and depend on nothing but the arguments.
    """
    generator = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    found, sizes = np.unique(labels, return_counts=True)
    if count:
        quotas = _in_proportion(sizes, count)
    else:
        quotas = np.array([min(max(round(share * n), 1), n - 1) for n in sizes.tolist()])
    for label, quota in zip(found, quotas, strict=True):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held[rows[:quota]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _in_proportion(sizes: np.ndarray, count: int) -> np.ndarray:
    """Shares of `count` in proportion to `sizes`: whole numbers, the largest remainders first."""
    exact = sizes * (count / sizes.sum())
    quotas = np.floor(exact).astype(np.int64)
    rest = np.argsort(quotas - exact, kind="stable")[: count - int(quotas.sum())]
    quotas[rest] += 1
    return np.minimum(quotas, sizes - 1)
