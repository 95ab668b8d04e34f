"""A ladder: one fixed arch for each of some even budgets, the same in every run of an experiment.

Where all runs train and are measured on the same archs, what differs is how often each is drawn.
"""

from __future__ import annotations

import torch

from models.generator.network import ArchitectureGenerator
from models.generator.report import even_budgets
from models.generator.resource_loss import ResourceLoss, fit_to_budgets
from models.space.arch import Arch
from models.space.relaxed import RelaxedFlops
from models.space.search_space import SearchSpace
from trainer.evaluate import answers


def ladder(space: SearchSpace, count: int, seed: int = 0) -> list[Arch]:
    """What a generator answers that knows its budgets and no image, at so many even budgets."""
    torch.manual_seed(seed)
    generator = ArchitectureGenerator(space)
    fit_to_budgets(
        generator,
        ResourceLoss(RelaxedFlops(space.flops_rule)),
        steps=1000,
        learning_rate=3e-3,
        temperatures=(1.0, 0.3),
        rng=torch.Generator().manual_seed(seed),
    )
    return answers(generator, even_budgets(space, count))
