"""Pairs: a small subnet first, and a larger one where it is not sure. What that wins. No torch.

For a wish c, an image is answered by the first subnet if the probability of its answer, of logits
divided by the subnet's temperature, is at least c; else by the second. What is spent on it is the
sum of what ran.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np

from models.bundle.confidence import Confidence
from models.bundle.value import Bundle
from models.interval import Z, interval
from models.space.arch import Arch
from trainer.scores import Scores

CHOSEN_BY = (0.5, 0.6, 0.7, 0.8, 0.9)
"""A pair is chosen by what it wins at these, on average."""
LOSES_AT_MOST = 0.005
"""Accuracy at the last of them, beside that of the largest subnet within the budget."""
STAYS_WITHIN = 0.002
"""Accuracy by which another pair must win more before larger budgets get it."""
SHOWN_AT = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def fit_confidence(scores: Mapping[int, Scores], data: str) -> Confidence:
    """Temperatures, and which subnets share a budget, from what subnets say to held-out images.

    scores: by FLOPs. The pair of a budget is the one that gains most over a single subnet of as
    many FLOPs as the pair spends on average. A pair
    that wins nothing, or is less right than the largest subnet of the budget alone, is not used.
    """
    flops = np.array(sorted(scores))
    ordered = [scores[int(one)] for one in flops]
    accuracy, spent = _measured(flops, ordered)
    alone = np.maximum.accumulate([one.accuracy for one in ordered])
    wins = (accuracy - np.interp(spent, flops, alone)).mean(0)
    wins[np.tril_indices(len(flops))] = -1.0
    sums = flops[:, None] + flops
    pairs: list[tuple[int, int, int]] = []
    now: tuple[int, int] | None = None
    for budget in np.unique([*flops, *sums[wins > 0]]):
        largest = int(np.searchsorted(flops, budget, side="right")) - 1
        good = accuracy[-1] >= ordered[largest].accuracy - LOSES_AT_MOST
        won = np.where(good & (sums <= budget), wins, -1.0)
        best = np.unravel_index(int(won.argmax()), won.shape)
        if won[best] <= 0:
            chosen = None
        elif now is None or won[best] > won[now] + STAYS_WITHIN:
            chosen = int(best[0]), int(best[1])
        else:
            chosen = now
        if chosen != now:
            first, second = (0, 0) if chosen is None else (flops[chosen[0]], flops[chosen[1]])
            pairs.append((int(budget), int(first), int(second)))
            now = chosen
    temperatures = tuple((int(f), s.temperature) for f, s in zip(flops, ordered, strict=True))
    return Confidence(temperatures, tuple(pairs), len(ordered[0].labels), data)


def _measured(flops: np.ndarray, scores: Sequence[Scores]) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and mean FLOPs: (confidences, first subnets, second subnets)."""
    right = np.stack([one.right for one in scores]).astype(np.float64)
    accuracy = np.zeros((len(CHOSEN_BY), len(flops), len(flops)))
    spent = np.zeros_like(accuracy)
    for place, wish in enumerate(CHOSEN_BY):
        for first, one in enumerate(scores):
            unsure = one.confidence < wish
            accuracy[place, first] = (right @ unsure + right[first] @ ~unsure) / len(unsure)
            spent[place, first] = flops[first] + unsure.mean() * flops
    return accuracy, spent


@dataclass(frozen=True)
class Point:
    """What a pair does at one confidence: mean FLOPs and accuracy, with 95 % intervals.

    sure: the share of images that the first subnet answers. alone: the accuracy of one subnet of
    ``spent_flops``, between the two nearest on the frontier. gain: by how much the pair is better,
    its interval from differences image by image.
    """

    confidence: float
    sure: float
    spent_flops: float
    accuracy: float
    accuracy_95: tuple[float, float]
    alone: float
    gain: float
    gain_95: tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """Of the pair that shares a budget (None: without bound): what it does at every confidence."""

    budget_flops: int | None
    first_flops: int
    second_flops: int
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, object]:
        """For logs and commands."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Curve:
        """The reverse. Raises ValueError for other text."""
        return msgspec.convert(row, cls)


def drawn_budgets(bundle: Bundle) -> dict[int | None, tuple[Arch, Arch]]:
    """The pairs to draw: without a budget (None), and within the largest subnet if that differs."""
    if bundle.confidence is None:
        return {}
    asked: dict[int | None, float] = {bundle.max_flops: float(bundle.max_flops), None: math.inf}
    drawn: dict[int | None, tuple[Arch, Arch]] = {}
    for budget, bound in asked.items():
        pair = bundle.pair(bound)
        if pair is not None and pair not in drawn.values():
            drawn[budget] = pair
    return drawn


def curve(scores: Mapping[int, Scores], budget_flops: int | None, pair: Sequence[int]) -> Curve:
    """What a pair does, beside the frontier of all ``scores``, by FLOPs; all on the same images."""
    first, second = pair
    flops, rights = _frontier(scores)
    sure, right_first, right_second = (
        scores[first].confidence,
        scores[first].right,
        scores[second].right,
    )
    points = []
    for wish in SHOWN_AT:
        unsure = sure < wish
        spent = first + second * unsure
        right = np.where(unsure, right_second, right_first)
        accuracy, mean = float(right.mean()), float(spent.mean())
        place = int(np.clip(np.searchsorted(flops, mean), 1, len(flops) - 1)) if flops[1:] else 0
        low, high = rights[max(place - 1, 0)], rights[place]
        width = flops[place] - flops[place - 1] if place else 1
        share = min(max((mean - flops[place - 1]) / width, 0.0), 1.0) if place else 1.0
        alone = (1 - share) * low + share * high
        # What is spent is measured too: an image that spends more moves along the frontier.
        slope = (high.mean() - low.mean()) / width if 0 < share < 1 else 0.0
        difference = right - alone - slope * (spent - mean)
        gain, spread = accuracy - float(alone.mean()), Z * float(difference.std())
        spread /= len(right) ** 0.5
        points.append(
            Point(
                confidence=wish,
                sure=1 - float(unsure.mean()),
                spent_flops=mean,
                accuracy=accuracy,
                accuracy_95=interval(accuracy, len(right)),
                alone=float(alone.mean()),
                gain=gain,
                gain_95=(gain - spread, gain + spread),
            )
        )
    return Curve(budget_flops, first, second, tuple(points))


def _frontier(scores: Mapping[int, Scores]) -> tuple[list[int], list[np.ndarray]]:
    """FLOPs, and what is right, of subnets that no smaller one beats."""
    flops: list[int] = []
    rights: list[np.ndarray] = []
    for one in sorted(scores):
        right = scores[one].right.astype(np.float64)
        if not rights or right.mean() > rights[-1].mean():
            flops.append(one)
            rights.append(right)
    return flops, rights
