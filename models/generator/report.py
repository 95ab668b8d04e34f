"""How well a trained generator keeps its budgets. Uses torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.costs.flops import flops_cost
from models.generator.answer import answers_within
from models.generator.network import ArchitectureGenerator
from models.generator.policy import GeneratorPolicy
from models.space.search_space import SearchSpace


@dataclass(frozen=True)
class GeneratorReport:
    """How well the generator keeps budgets over the range.

    mean_error: of the plain argmax, |cost - budget| / budget. mean_use, least_use: cost / budget
    of the answers, never above 1.
    """

    mean_error: float
    mean_use: float
    least_use: float


def even_budgets(space: SearchSpace, count: int) -> list[float]:
    """FLOPs, evenly spaced from the smallest subnet to the largest."""
    return flops_cost(space).even(count)


def policy_of(generator: ArchitectureGenerator) -> GeneratorPolicy:
    """The generator as it will be served, in numpy."""
    weights = {name: value.cpu().numpy() for name, value in generator.state_dict().items()}
    return GeneratorPolicy(generator.cost, weights)


def report_generator(generator: ArchitectureGenerator, count: int = 100) -> GeneratorReport:
    """Errors over ``count`` evenly spaced budgets."""
    cost, policy = generator.cost, policy_of(generator)
    budgets = np.array(cost.even(count))
    log_probabilities = policy.log_probabilities_of(budgets.tolist())
    plain = cost.rule.batch(np.stack([p.argmax(1) for p in log_probabilities], axis=1))
    answers = answers_within(policy, budgets.tolist())
    errors = np.abs(plain - budgets) / budgets
    uses = np.array([cost.of(arch) for arch in answers]) / budgets
    return GeneratorReport(float(errors.mean()), float(uses.mean()), float(uses.min()))
