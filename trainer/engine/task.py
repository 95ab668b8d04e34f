"""What a subnet learns from a batch: its labels, or what a teacher says of the same images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from models.nets.view import Share
from trainer.ranks import ALONE, Ranks
from trainer.samplers.base import Draw


@dataclass(frozen=True)
class MicroBatch:
    """Images that run at once, the ``number``-th of a batch.

    weight: of their mean loss in that of the batch, their share of the images here.
    """

    number: int
    images: Tensor
    labels: Tensor
    share: Share
    weight: float


def micro_batches(
    images: Tensor, labels: Tensor, count: int, ranks: Ranks = ALONE
) -> list[MicroBatch]:
    """This rank's images of a batch in ``count`` parts, as even as may be."""
    parts: list[MicroBatch] = []
    start, size = 0, len(images)
    for part, its_labels in zip(
        images.tensor_split(count), labels.tensor_split(count), strict=True
    ):
        if len(part):
            share = ranks.share(start, start + len(part), size)
            parts.append(MicroBatch(len(parts), part, its_labels, share, len(part) / size))
            start += len(part)
    return parts


@dataclass
class Task:
    """The loss of every subnet of one step.

    The first subnet of a step learns from the labels, and is the teacher of those that distil.
    taught: a teacher's probabilities (B, classes) for each micro-batch, by its number.
    """

    label_smoothing: float = 0.0
    taught: dict[int, Tensor] = field(default_factory=dict)

    def loss(self, draw: Draw, part: MicroBatch, logits: Tensor) -> Tensor:
        """Mean cross-entropy of logits (B, classes) over a micro-batch, in nats, in fp32."""
        logits = logits.float()
        if draw.distil:
            assert part.number in self.taught, "the first draw of a step is the teacher"
            return F.cross_entropy(logits, self.taught[part.number])
        if part.number not in self.taught:
            self.taught[part.number] = logits.detach().softmax(1)
        return F.cross_entropy(logits, part.labels, label_smoothing=self.label_smoothing)
