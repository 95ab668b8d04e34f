"""The resource loss L_RC (Eq. 10), and teaching a generator with it alone. Uses torch.

L_RC is the squared distance of the policies' exact costs to their budgets, in units of the space's
range. It needs no image, so it is taken over many budgets at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.generator.network import ArchitectureGenerator, one_numpy_thread
from models.space.relaxed import RelaxedCost


@dataclass(frozen=True)
class ResourceLoss:
    """L_RC over a batch of budgets, and a little entropy.

    weight: lambda of L_RC. budgets: how many, spread over the range. entropy_weight: keeps the
    generator from settling before the supernet can tell archs apart.
    """

    weight: float = 20.0
    budgets: int = 64
    entropy_weight: float = 1e-3

    def __call__(
        self,
        generator: ArchitectureGenerator,
        drawn: Sequence[float],
        *,
        temperature: float,
        rng: torch.Generator,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """One call of the generator: policies, the loss that needs no image, and L_RC alone.

        The batch holds the ``drawn`` budgets first, then those spread over the range. Half
        of the latter are sampled and half are argmax, so that both what trains and what is served
        keeps its budget.
        """
        cost, count = generator.cost, self.budgets
        reach = cost.max - cost.min
        spread = (torch.arange(count) + torch.rand(count, generator=rng)) / count
        spread = spread[torch.randperm(count, generator=rng)].double()
        budgets = torch.cat([torch.tensor(drawn).double(), cost.min + reach * spread])
        policies, log_probabilities = generator(
            budgets, temperature=temperature, noise=rng, noisy=len(drawn) + count // 2
        )
        gap = (RelaxedCost(cost.rule)(policies) - budgets) / reach
        resource_loss = gap.square().mean()
        each = torch.cat(list(log_probabilities.values()), dim=1)
        entropy = -(each.exp() * each).sum(1).mean()
        loss = self.weight * resource_loss - self.entropy_weight * entropy
        return policies, loss, resource_loss


def fit_to_budgets(
    generator: ArchitectureGenerator,
    loss: ResourceLoss,
    *,
    steps: int,
    rng: torch.Generator,
    learning_rate: float = 3e-3,
    temperatures: tuple[float, float] = (1.0, 0.3),
    track: Callable[[range], Iterable[int]] = iter,
    optimizer: torch.optim.Optimizer | None = None,
    first_step: int = 0,
) -> None:
    """Teach the generator to keep budgets; no supernet, no image.

    temperatures: of the Gumbel softmax, first and last. The learning rate (Adam) falls to a tenth.
    track: sees each step (for a progress bar). optimizer, first_step: for a run
    that was interrupted, Adam with what it remembers, and the step to go on from.
    """
    if optimizer is None:
        optimizer = torch.optim.Adam(generator.parameters(), lr=learning_rate, fused=True)
    first, last = temperatures
    with one_numpy_thread():
        for step in track(range(first_step, steps)):
            progress = step / steps
            optimizer.zero_grad()
            _, total, _ = loss(
                generator, (), temperature=first + (last - first) * progress, rng=rng
            )
            total.backward()
            torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - 0.9 * progress)
            optimizer.step()
