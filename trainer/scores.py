"""Scores: how often answers are right, and how sure that is. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from models.interval import interval

_FITTED_ON, _MOST_TEMPERATURE = 5_000, 20.0


@dataclass(frozen=True, eq=False)
class Scores:
    """Of some answers. ``labels``, ``first``: what is right and what was answered, (images,).

    top5: whether the right class is among the first five. probability: that was given to it.
    confidence: the probability of what was answered, of logits divided by ``temperature``.
    """

    labels: np.ndarray
    first: np.ndarray
    top5: np.ndarray
    probability: np.ndarray
    confidence: np.ndarray
    temperature: float
    classes: int

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> Scores:
        """From logits, (images, classes)."""
        shifted = logits - logits.max(1, keepdims=True)
        given = np.exp(shifted[np.arange(len(labels)), labels]) / np.exp(shifted).sum(1)
        confidence = 1 / np.exp(shifted / temperature).sum(1)
        higher = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(1)
        first, classes = logits.argmax(1), logits.shape[1]
        return cls(labels, first, higher < 5, given, confidence, temperature, classes)

    @classmethod
    def fitted(cls, logits: np.ndarray, labels: np.ndarray) -> Scores:
        """As ``of``, with the temperature that fits these images."""
        return cls.of(logits, labels, fit_temperature(logits, labels))

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


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """By what logits are divided so that their probabilities are most true of these labels.

    Least negative log-likelihood (Guo et al., 2017), from 1/20 to 20; on up to 5,000 of the images.
    Of n images, 1 / (n + 2) of each is spread over all classes, as Platt (1999) smooths targets:
    else a subnet that has them all right would be sure of everything.
    """
    from scipy.optimize import minimize_scalar

    some = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), _FITTED_ON)).astype(np.int64))
    logits, labels = logits[some].astype(np.float64), labels[some]
    shifted = logits - logits.max(1, keepdims=True)
    spread = 1 / (len(labels) + 2)
    right = (1 - spread) * shifted[np.arange(len(labels)), labels] + spread * shifted.mean(1)

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float((np.log(np.exp(scale * shifted).sum(1)) - scale * right).mean())

    most = math.log(_MOST_TEMPERATURE)
    return math.exp(minimize_scalar(loss, bounds=(-most, most), method="bounded").x)


def confused(confusion: np.ndarray) -> list[tuple[int, int, int]]:
    """Pairs of classes (right, answered) that were taken for each other, most often first."""
    wrong = confusion * (1 - np.eye(len(confusion), dtype=np.int64))
    pairs = np.argwhere(wrong)
    counts = wrong[tuple(pairs.T)]
    order = np.argsort(-counts, kind="stable")
    return [(int(pairs[o][0]), int(pairs[o][1]), int(counts[o])) for o in order]
