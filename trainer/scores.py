"""Scores: how often answers are right, and how sure that is. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.confidence import interval


@dataclass(frozen=True, eq=False)
class Scores:
    """Of some answers. ``labels``, ``first``: what is right and what was answered, (images,).

    top5: whether the right class is among the first five. probability: that was given to it.
    """

    labels: np.ndarray
    first: np.ndarray
    top5: np.ndarray
    probability: np.ndarray
    classes: int

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray) -> Scores:
        """From logits, (images, classes)."""
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        given = shifted[np.arange(len(labels)), labels] / shifted.sum(1)
        higher = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(1)
        return cls(labels, logits.argmax(1), higher < 5, given, logits.shape[1])

    @property
    def right(self) -> np.ndarray:
        return self.first == self.labels

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, of the accuracy."""
        return interval(self.accuracy, len(self.labels))

    def confusion(self) -> np.ndarray:
        """How often class i was answered with class j: int64, (classes, classes)."""
        counts = np.zeros((self.classes, self.classes), np.int64)
        np.add.at(counts, (self.labels, self.first), 1)
        return counts

    def per_class(self) -> list[tuple[int, int]]:
        """Of each class: how many were right, of how many."""
        seen = np.bincount(self.labels, minlength=self.classes)
        right = np.bincount(self.labels[self.right], minlength=self.classes)
        return list(zip(right.tolist(), seen.tolist(), strict=True))

    def worst(self, count: int) -> list[int]:
        """Images that are wrong, those first whose right class was thought least of."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.argsort(self.probability[wrong], kind="stable")][:count].tolist()


def confused(confusion: np.ndarray) -> list[tuple[int, int, int]]:
    """Pairs of classes (right, answered) that were taken for each other, most often first."""
    wrong = confusion * (1 - np.eye(len(confusion), dtype=np.int64))
    pairs = np.argwhere(wrong)
    counts = wrong[tuple(pairs.T)]
    order = np.argsort(-counts, kind="stable")
    return [(int(pairs[o][0]), int(pairs[o][1]), int(counts[o])) for o in order]
