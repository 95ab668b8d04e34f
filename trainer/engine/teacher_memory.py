"""TeacherMemory: what a teacher has said of each training image, so that it is asked only once."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.engine.checkpoint import State
from trainer.engine.teacher import Teacher
from trainer.recipes.settings import Distillation


class TeacherMemory:
    """The logits of a teacher for each training image, summed over the views it was asked about.

    A teacher is often larger than all that learns from it. Asked about ``views`` random views of
    an image, it then need not run again: an image that is seen later is taught their mean. Unlike
    in "consistent" teaching (arXiv 2106.05237) it does not see what the student sees.

    name: the teacher's, by which a resumed run knows whether these are its answers.
    """

    def __init__(self, name: str, images: int, classes: int, views: int) -> None:
        assert views > 0
        self._name = name
        self._views = views
        self._sums = torch.zeros(images, classes)
        self._asked = torch.zeros(images, dtype=torch.int16)

    def answer(self, rows: Tensor, images: Tensor, teacher: Teacher) -> Tensor:
        """Mean logits (B, classes) for the images at ``rows``, int64 (B,), on their device.

        images: a view of each, of which the teacher sees those that it was not asked about often
        enough.
        """
        new = self._asked[rows] < self._views
        if bool(new.any()):
            said = teacher(images[new.to(images.device)]).detach().float().cpu()
            self._sums.index_add_(0, rows[new], said)
            self._asked.index_add_(0, rows[new], torch.ones_like(self._asked[rows[new]]))
        return (self._sums[rows] / self._asked[rows, None]).to(images.device)

    def state(self) -> State:
        """For a checkpoint."""
        return {"name": self._name, "sums": self._sums, "asked": self._asked}

    def load_state(self, state: State | None) -> None:
        """The reverse of ``state``. Answers of another teacher, or none, are asked for anew."""
        if state is not None and state["name"] == self._name:
            self._sums.copy_(state["sums"])
            self._asked.copy_(state["asked"])


def memory_of(distillation: Distillation, images: int, classes: int) -> TeacherMemory | None:
    """For so many training images, where a recipe keeps a teacher's answers."""
    if not distillation.views:
        return None
    return TeacherMemory(distillation.teacher, images, classes, distillation.views)
