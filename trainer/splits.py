"""What a data set is once it is in memory: labelled images in three splits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class LabelledImages:
    """Images of one size with their classes.

    images: uint8, (N, 3, H, W), RGB. labels: int64, (N,), 0 <= label < number of classes.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8
        assert self.images.ndim == 4
        assert self.labels.dtype == torch.int64
        assert self.labels.shape == self.images.shape[:1]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: torch.Tensor) -> LabelledImages:
        """The images at `indices` (int64), copied."""
        return LabelledImages(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Splits:
    """One data set, cut so that no decision ever sees the images that are reported.

    train: what the weights learn from. steer: held out of the training images; steers the
    sampling distribution and is used for every decision. test: reported, never used to decide.
    labels: class names, in label order. name: what to write beside a figure.
    """

    train: LabelledImages
    steer: LabelledImages
    test: LabelledImages
    labels: tuple[str, ...]
    name: str

    @property
    def resolution(self) -> int:
        """Side of the (square) images, in pixels."""
        return self.train.images.shape[-1]


def stratified_holdout(
    labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cut row numbers into (kept, held out): `share` of every class, at random.

    Every class keeps at least one row, and gives at least one if it has two. (scikit-learn's
    stratified split refuses classes that have one row; a photo folder often has one.) Both
    answers are int64 and ascending, and depend on nothing but the arguments.
    """
    generator = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held[rows[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
