"""What a subnet learns from a batch: its labels, or what a teacher says of the same images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from models.nets.view import Share
from trainer.ranks import ALONE, Ranks
from trainer.recipes.settings import Distillation
from trainer.samplers.base import Draw


@dataclass(frozen=True)
class MicroBatch:
    """Images that run at once, the ``number``-th of a batch.

    weight: their share of this rank's images, by which their mean loss counts in the batch's.
    rows: where they lie in the training data, int64 (B,), where that is known.
    """

    number: int
    images: Tensor
    labels: Tensor
    share: Share
    weight: float
    rows: Tensor | None = None


def micro_batches(
    images: Tensor,
    labels: Tensor,
    count: int,
    ranks: Ranks = ALONE,
    *,
    rows: Tensor | None = None,
) -> list[MicroBatch]:
    """This rank's images of a batch in ``count`` parts, as even as may be."""
    parts: list[MicroBatch] = []
    start, size = 0, len(images)
    for part, its_labels in zip(
        images.tensor_split(count), labels.tensor_split(count), strict=True
    ):
        if len(part):
            stop = start + len(part)
            its_rows = None if rows is None else rows[start:stop]
            share, weight = ranks.share(start, stop, size), len(part) / size
            parts.append(MicroBatch(len(parts), part, its_labels, share, weight, its_rows))
            start = stop
    return parts


@dataclass
class Task:
    """The loss of every subnet of one step.

    Subnets that distil learn from a teacher, and with the rest of the weight from the labels, as
    all others do. Without a teacher of its own, a step takes its first subnet as the teacher.
    taught: the teacher's probabilities (B, classes) for each micro-batch, by its number.
    """

    label_smoothing: float = 0.0
    distillation: Distillation = field(default_factory=Distillation)
    taught: dict[int, Tensor] = field(default_factory=dict)

    def loss(self, draw: Draw, part: MicroBatch, logits: Tensor) -> Tensor:
        """Mean cross-entropy of logits (B, classes) over a micro-batch, in nats, in fp32."""
        logits = logits.float()
        weight = self.distillation.weight if draw.distil else 0.0
        loss = logits.new_zeros(())
        if draw.distil:
            assert part.number in self.taught, "the first draw of a step is the teacher"
            heat = self.distillation.temperature
            # its gradient shrinks by the square of the temperature, which is given back
            taught = F.cross_entropy(logits / heat, self.taught[part.number])
            loss = loss + weight * heat**2 * taught
        elif part.number not in self.taught:
            self.taught[part.number] = self.taken(logits)
        if weight < 1:
            labels = F.cross_entropy(logits, part.labels, label_smoothing=self.label_smoothing)
            loss = loss + (1 - weight) * labels
        return loss

    def taken(self, logits: Tensor) -> Tensor:
        """What is taken of a teacher's logits: probabilities at the temperature."""
        return (logits.detach().float() / self.distillation.temperature).softmax(1)
