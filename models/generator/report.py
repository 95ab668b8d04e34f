"""How well a trained generator keeps its budgets. Uses torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.generator.decode import decode_all
from models.generator.network import ArchitectureGenerator
from models.generator.policy import GeneratorPolicy
from models.space.search_space import SearchSpace


@dataclass(frozen=True)
class GeneratorReport:
    """How well the generator keeps budgets over the range.

    mean_error: of the plain argmax, |FLOPs - budget| / budget. mean_use, least_use: FLOPs / budget
    of the decoded answers, never above 1.
    """

    mean_error: float
    mean_use: float
    least_use: float


def even_budgets(space: SearchSpace, count: int) -> list[float]:
    """Evenly spaced from the smallest subnet to the largest."""
    low, high = space.min_flops, space.max_flops
    return [low + (high - low) * i / (count - 1) for i in range(count)]


def policy_of(generator: ArchitectureGenerator) -> GeneratorPolicy:
    """The generator as it will be served, in numpy."""
    weights = {name: value.cpu().numpy() for name, value in generator.state_dict().items()}
    return GeneratorPolicy(generator.space, weights)


def report_generator(generator: ArchitectureGenerator, count: int = 100) -> GeneratorReport:
    """Errors over ``count`` evenly spaced budgets."""
    space, policy = generator.space, policy_of(generator)
    budgets = np.array(even_budgets(space, count))
    log_probabilities = policy.log_probabilities_of(budgets.tolist())
    plain = space.flops_rule.batch(np.stack([p.argmax(1) for p in log_probabilities], axis=1))
    decoded = decode_all(policy, budgets.tolist())
    errors = np.abs(plain - budgets) / budgets
    uses = np.array([space.flops(arch) for arch in decoded]) / budgets
    return GeneratorReport(float(errors.mean()), float(uses.mean()), float(uses.min()))
