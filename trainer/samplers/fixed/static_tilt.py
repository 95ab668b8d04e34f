"""A static distribution over FLOPs groups, leaning to one side: the control of every shift."""

from __future__ import annotations

import torch

from models.space.search_space import SearchSpace
from trainer.recipes.settings import SamplerOptions
from trainer.samplers.base import Draw
from trainer.samplers.fixed.base import AbstractFixedSampler


class StaticTilt(AbstractFixedSampler):
    """Group k of K is drawn with probability proportional to exp(tilt x + bend (2x - 1)^2).

    x = k / (K - 1) goes from 0, the smallest group, to 1, the largest. So ``tilt`` is the logarithm
    of how much more often the largest group is drawn than the smallest; it moves linearly from
    ``tilt[0]`` to ``tilt[1]`` over the run. ``bend`` above 0 is a U: the ends are drawn more often.
    It never looks at a loss: what a learned distribution gains has to be more than this gains.
    """

    def __init__(self, space: SearchSpace, options: SamplerOptions) -> None:
        super().__init__(space, options)
        self.moves = options.tilt[0] != options.tilt[1]
        self._progress = 0.0

    def draw(self, rng: torch.Generator, progress: float = 0.0) -> list[Draw]:
        self._progress = progress
        group = int(torch.multinomial(torch.tensor(self.probabilities()), 1, generator=rng))
        return [self.draw_in(group, rng)]

    def probabilities(self) -> list[float]:
        return tilted(len(self.groups), self.options.tilt, self.options.bend, self._progress)


def tilted(
    groups: int, tilt: tuple[float, float], bend: float, progress: float = 0.0
) -> list[float]:
    """The probabilities of the groups at a share ``progress`` of the run, 0 to 1."""
    x = torch.linspace(0, 1, groups, dtype=torch.float64)
    first, last = tilt
    logits = (first + (last - first) * progress) * x + bend * (2 * x - 1).square()
    return logits.softmax(0).tolist()
