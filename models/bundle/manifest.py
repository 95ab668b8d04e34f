"""What ``bundle.json`` says, field by field, each named when it is wrong. No torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from models.bundle.confidence import Confidence
from models.bundle.value import FrontierRow, Json
from models.space.arch import Arch
from models.space.search_space import SearchSpace

FORMAT = 1


def version_of(document: Mapping[str, object]) -> str:
    """The version of a bundle, from all that its manifest says but where it comes from.

    What decides an answer is in it: labels and preprocessing here, the other files by their hashes.
    """
    content = {k: v for k, v in document.items() if k not in ("version", "provenance")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


class Fields:
    """A JSON object whose fields are asked for by name and type, and named when wrong."""

    def __init__(self, document: object, where: str) -> None:
        if not isinstance(document, dict):
            raise ValueError(f"{where} must be an object, not {type(document).__name__}")
        self.document: dict[str, object] = document
        self._where = where

    def value(self, name: str, *kinds: type) -> object:
        if name not in self.document:
            raise ValueError(f"{self._where} has no {name!r}")
        value = self.document[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            allowed = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{self._where}: {name} must be {allowed}, not {value!r:.60}")
        return value

    def text(self, name: str) -> str:
        return str(self.value(name, str))

    def integer(self, name: str) -> int:
        value = self.value(name, int)
        assert isinstance(value, int)
        return value

    def number(self, name: str) -> float:
        value = self.value(name, int, float)
        assert isinstance(value, int | float)
        return float(value)

    def optional_number(self, name: str) -> float | None:
        return None if self.document.get(name) is None else self.number(name)

    def items(self, name: str) -> list[object]:
        value = self.value(name, list)
        assert isinstance(value, list)
        return value

    def part(self, name: str) -> Fields:
        return Fields(self.value(name, dict), f"{self._where}: {name}")

    def rows(self, name: str) -> list[Fields]:
        """A list of objects."""
        where = f"{self._where}: {name}"
        return [Fields(one, f"{where}[{index}]") for index, one in enumerate(self.items(name))]

    def mapping(self, name: str) -> dict[str, object]:
        value = self.value(name, dict)
        assert isinstance(value, dict)
        return value


def frontier_row_to_json(space: SearchSpace, row: FrontierRow) -> dict[str, Json]:
    """A row of the frontier table as plain JSON values."""
    return {
        "budget_flops": row.budget_flops,
        "id": space.arch_id(row.arch),
        "arch": arch_to_json(space, row.arch),
        "flops": row.flops,
        "params": row.params,
        "val_accuracy": row.val_accuracy,
        "test_accuracy": row.test_accuracy,
    }


def arch_to_json(space: SearchSpace, arch: Arch) -> Json:
    """An arch as plain JSON values."""
    return json.loads(json.dumps(space.arch_to_json(arch)))


def _arch(space: SearchSpace, row: Fields) -> Arch:
    arch = space.arch_from_json(row.mapping("arch"))
    if row.text("id") != space.arch_id(arch):
        raise ValueError(f"id {row.text('id')} is not that of its arch ({space.arch_id(arch)})")
    return arch


def answers_from_json(
    space: SearchSpace, entries: Sequence[object]
) -> tuple[tuple[float, Arch], ...]:
    """Budgets and archs. Raises ValueError for one that exceeds its budget or is out of order."""
    answers = []
    for index, entry in enumerate(entries):
        row = Fields(entry, f"answers[{index}]")
        answers.append((row.number("budget_flops"), _arch(space, row)))
    _check_answers(space, answers)
    return tuple(answers)


def frontier_from_json(space: SearchSpace, entries: Sequence[object]) -> tuple[FrontierRow, ...]:
    """The frontier table; FLOPs and parameters are the space's, whatever the entries say."""
    return tuple(
        _frontier_row(space, Fields(entry, f"frontier[{index}]"))
        for index, entry in enumerate(entries)
    )


def confidence_from_json(fields: Fields) -> Confidence:
    """Raises ValueError for what is no temperature, is out of order, or exceeds its budget."""
    temperatures = tuple(
        (row.integer("flops"), row.number("temperature")) for row in fields.rows("temperatures")
    )
    pairs = tuple(
        (row.integer("budget_flops"), row.integer("first_flops"), row.integer("second_flops"))
        for row in fields.rows("pairs")
    )
    if not temperatures or not all(0 < value < math.inf for _, value in temperatures):
        raise ValueError("confidence: temperatures must be there, and more than 0")
    for budget, first, second in pairs:
        if first + second > budget or ((first or second) and not 0 < first < second):
            raise ValueError(f"confidence: {first:,} and {second:,} FLOPs do not share {budget:,}")
    for name, rows in (("temperatures", temperatures), ("pairs", pairs)):
        if any(row[0] >= following[0] for row, following in pairwise(rows)):
            raise ValueError(f"confidence: {name} must ascend")
    return Confidence(temperatures, pairs, fields.integer("images"), fields.text("data"))


def _frontier_row(space: SearchSpace, row: Fields) -> FrontierRow:
    arch = _arch(space, row)
    return FrontierRow(
        budget_flops=row.number("budget_flops"),
        arch=arch,
        flops=space.flops(arch),
        params=space.params(arch),
        val_accuracy=row.optional_number("val_accuracy"),
        test_accuracy=row.optional_number("test_accuracy"),
    )


def _check_answers(space: SearchSpace, answers: Sequence[tuple[float, Arch]]) -> None:
    for index, (budget, arch) in enumerate(answers):
        if space.flops(arch) > budget:
            raise ValueError(f"answers[{index}]: {space.flops(arch):,} FLOPs exceed {budget:,}")
        if index and budget <= answers[index - 1][0]:
            raise ValueError(f"answers[{index}]: budgets must ascend")
    if answers and answers[0][0] != space.flops(answers[0][1]):
        raise ValueError(
            f"answers must begin at their smallest subnet ({space.flops(answers[0][1]):,} FLOPs)"
        )
