"""What a bundle answers to budgets of another cost than FLOPs, such as milliseconds. No torch.

A file of its own beside the manifest, ``NAME.cost.json``: the table, and the archs that may be
answered, each with the cost from which on. FLOPs are answered as before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from models.costs import get_cost
from models.costs.cost import Cost
from models.costs.table import CostTable
from models.mistake import in_words
from models.space.arch import Arch
from models.space.search_space import SearchSpace

ENDING = ".cost.json"


@dataclass(frozen=True, eq=False)
class CostAnswers:
    """``answers``: whole numbers of the cost and the arch that costs so much, ascending.

    FLOPs ascend with them: an answer never has fewer than a cheaper one.
    """

    cost: Cost
    table: CostTable
    answers: tuple[tuple[int, Arch], ...]

    @property
    def min(self) -> int:
        """What the cheapest answer costs."""
        return self.answers[0][0]

    def answer(self, budget: float) -> Arch:
        """The arch for a budget in the cost's unit: it never costs more by the table.

        Raises ValueError below the cheapest answer.
        """
        if not budget >= self._costs[0]:
            raise ValueError(
                f"a budget of {budget:.15g} {self.cost.unit} is below the cheapest subnet: budgets "
                f"start at {self.cost.written(self.min)}"
            )
        return self.answers[bisect_right(self._costs, budget) - 1][1]

    def archs(self) -> list[Arch]:
        """All that may be answered."""
        return [arch for _, arch in self.answers]

    def to_json(self) -> dict[str, object]:
        """As in the file."""
        space = self.cost.space
        answers = [
            {"id": space.arch_id(arch), "arch": space.arch_to_json(arch)} for arch in self.archs()
        ]
        return {"table": self.table.to_json(), "answers": answers}

    @cached_property
    def _costs(self) -> list[float]:
        """In the unit, as they are told: whoever asks for what an answer costs gets it."""
        return [self.cost.value(whole) for whole, _ in self.answers]


def cost_answers(space: SearchSpace, table: CostTable, archs: Sequence[Arch]) -> CostAnswers:
    """Archs as answers by what they cost; of two that cost the same, the larger one."""
    cost = get_cost(table.cost, space, table)
    by_cost = {cost.of(arch): arch for arch in sorted(archs, key=space.flops)}
    return CostAnswers(cost, table, tuple(sorted(by_cost.items())))


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True)
    id: str
    arch: dict[str, Any]


class _File(BaseModel):
    model_config = ConfigDict(strict=True)
    table: dict[str, Any]
    answers: list[_Answer]


def read_cost_answers(space: SearchSpace, name: str, text: str) -> CostAnswers:
    """What the file called ``name`` says. Raises ValueError naming what is wrong."""
    try:
        said = _File.model_validate_json(text)
        table = CostTable.from_json(said.table)
        if name != table.cost + ENDING or not said.answers:
            raise ValueError(f"it is of {table.cost}, with {len(said.answers)} answers")
        found = []
        for entry in said.answers:
            found.append(space.arch_from_json(entry.arch))
            if entry.id != space.arch_id(found[-1]):
                raise ValueError(f"id {entry.id} is not that of its arch")
        answers = cost_answers(space, table, found)
        flops = [space.flops(arch) for arch in answers.archs()]
        if flops != sorted(set(flops)):
            raise ValueError("answers that cost more must have more FLOPs")
        return answers
    except ValidationError as error:
        raise ValueError(f"{name}: {in_words(error)}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
