"""What a data set is once it is split: labelled images, in memory or decoded as they are needed."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from models.images.header import ImageError
from models.images.image import decode_image
from models.images.preprocess import Preprocess
from trainer.data.image_policies import random_resized_crop, to_image, to_tensor
from trainer.data.sources import Rows

_LONGEST_BROKEN_STRETCH = 100
_CHUNK = 256  # images per task: enough that the pool's own work does not show
_MAX_PIXELS = 200_000_000  # training images are the user's own: refuse bombs, not panoramas


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
        """(N,) the run of neighbours on disk that each image lies in; None: any order will do."""
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
    """In memory. images: uint8, (N, 3, H, W), RGB. labels: int64, (N,), from 0.

    broken: bool, (N,), which are not what is stored there but the next one, which takes the place
    of a broken one; None: none are.
    """

    images: torch.Tensor
    labels: torch.Tensor
    broken: torch.Tensor | None = None

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
        broken = None if self.broken is None else self.broken[indices]
        return LabelledImages(self.images[indices], self.labels[indices], broken)

    def fetch(
        self, rows: np.ndarray, crops: RandomCrops | None = None, *, fill: bool = True
    ) -> Fetched:
        chosen = torch.from_numpy(rows)
        if self.broken is not None and not fill:
            assert crops is None
            chosen = chosen[~self.broken[chosen]]
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

    def for_random_access(self) -> EncodedImages:
        """The same, made ready for reading in any order."""
        images = self.rows.images.for_random_access()
        return replace(self, rows=Rows(images, self.rows.rows, self.rows.labels))

    def __len__(self) -> int:
        return len(self.rows)

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
                made = self._decode(index, crops, place)
                if not isinstance(made, str):
                    images.append(made)
                    labels.append(int(self.rows.labels[index]))
                    break
                broken.append(made)
            else:
                if fill:
                    raise ValueError(f"{attempts} broken images in a row, the last is {broken[-1]}")
        shape = (0, 3, self.side, self.side)
        pixels = torch.stack(images) if images else torch.empty(shape, dtype=torch.uint8)
        return Fetched(pixels, torch.tensor(labels, dtype=torch.int64), tuple(broken))

    def decoded(self) -> tuple[LabelledImages, tuple[str, ...]]:
        """All of them in memory, decoded by a pool of threads; and the broken ones.

        The next one takes the place of a broken one, as in ``fetch``: rows mean the same.
        Raises ValueError naming the first image that is broken, if those are not skipped, or if all
        of them are; and where the memory of this machine does not take them.
        """
        count, side = len(self), self.side
        needed, installed = count * 3 * side * side, installed_bytes()
        if installed is not None and needed > installed:
            # The system would grant the memory now and kill the run later.
            raise ValueError(
                f"{count:,} images of {side}x{side} take {needed / 1e9:.1f} GB, this machine has "
                f"{installed / 1e9:.1f} GB: set data_in_memory=auto"
            )
        images = torch.empty(count, 3, side, side, dtype=torch.uint8)
        broken: dict[int, str] = {}

        def decode(chunk: range) -> dict[int, str]:
            reasons = {}
            for row in chunk:
                made = self._decode(row)
                if isinstance(made, str):
                    reasons[row] = made
                else:
                    images[row] = made
            return reasons

        chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
        pool = ThreadPoolExecutor(cores())
        try:
            # map() raises in the order of the rows, so the same broken image is named every time.
            for reasons in pool.map(decode, chunks):
                broken |= reasons
        finally:
            pool.shutdown(cancel_futures=True)
        labels = torch.tensor(self.rows.labels, dtype=torch.int64)
        if not broken:
            return LabelledImages(images, labels), ()
        if len(broken) == count:
            raise ValueError(f"all {count} images are broken; the first is {broken[0]}")
        rows = list(broken)
        is_broken = torch.zeros(count, dtype=torch.bool)
        is_broken[rows] = True
        whole = np.flatnonzero(~is_broken)
        next_whole = whole[np.searchsorted(whole, rows) % len(whole)]
        images[rows], labels[rows] = images[next_whole], labels[next_whole]
        return LabelledImages(images, labels, is_broken), tuple(broken.values())

    def _decode(
        self, index: int, crops: RandomCrops | None = None, place: int = 0
    ) -> torch.Tensor | str:
        """The pixels of an image; or what is broken, where such images are skipped."""
        try:
            return self._pixels(self.rows.read(index), crops, place)
        except (ImageError, OSError) as error:
            message = f"{self.rows.where(index)}: {error}"
            if self.skip_broken:
                return message
            advice = "remove it, or train with skip_broken=true to leave such images out"
            raise ValueError(f"{message}; {advice}") from error

    def _pixels(self, content: bytes, crops: RandomCrops | None, place: int) -> torch.Tensor:
        if crops is not None:
            whole = _whole(content, self.preprocess)
            return to_tensor(random_resized_crop(whole, self.side, crops.area, crops.seeds[place]))
        image = self.preprocess.decode(content, self.side, _MAX_PIXELS)
        return torch.from_numpy(self.preprocess.pixels(image, self.side).transpose(2, 0, 1).copy())


def side_of(rows: Rows, preprocess: Preprocess) -> int | None:
    """The side of the first image that can be decoded; None if that one is not square."""
    for row in range(min(len(rows), _LONGEST_BROKEN_STRETCH)):
        try:
            image = _whole(rows.read(row), preprocess)
        except (ImageError, OSError):
            continue
        return image.width if image.width == image.height else None
    return None


def _whole(content: bytes, preprocess: Preprocess) -> Image.Image:
    """Decoded at its own size."""
    return decode_image(content, background=preprocess.background, max_pixels=_MAX_PIXELS)


def installed_bytes() -> int | None:
    """The memory of this machine; None where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Splits:
    """One data set, cut so that no decision ever sees the images that are reported.

    train: what the weights learn from. held_out: of the training images; steers the
    sampling distribution and is used for every decision. test: reported, never used to decide.
    labels: class names, in label order. name: of the file or folder. title: what to write beside a
    figure. has_own_test: its publisher made the test split. passed_over: what lies there and is not
    used, a line each. memory: one line on what is kept in memory. broken: images left out, each
    with its reason, found when decoding what is in memory. test_rows: the test images as they are
    stored, for what is served. fingerprint: of the source (``Source.fingerprint``).
    """

    train: AbstractSplit
    held_out: AbstractSplit
    test: AbstractSplit
    labels: tuple[str, ...]
    name: str
    title: str = ""
    has_own_test: bool = True
    passed_over: tuple[str, ...] = ()
    memory: str = ""
    broken: tuple[str, ...] = ()
    test_rows: Rows | None = None
    fingerprint: str = ""

    def __str__(self) -> str:
        """One line: what was understood."""
        own = "" if self.has_own_test else " (a fifth of all: no test split is there)"
        shown = " … ".join(dict.fromkeys((self.labels[0], self.labels[-1])))
        return (
            f"train {len(self.train):,}, held-out {len(self.held_out):,}, test {len(self.test):,} "
            f"images{own}; {len(self.labels)} classes: {shown}"
        )


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
