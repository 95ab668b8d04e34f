"""CostTable: what was measured of a space's parts, as a file. No torch.

JSON::

    {"format": 1, "cost": "latency_ms", "space": {"name": "cifar-cnn", "num_classes": 10},
     "fixed": 0.021,
     "parts": [{"name": "stages.0.1", "decisions": ["width.1", "depth.0"],
                "values": [[0, 0.011], [0, 0.016]]}, ...],
     "measured": {...}, "prediction": {...}}

Values are in the cost's unit (milliseconds, millijoules): one axis for each decision of the part,
ascending as its choices do. An arch costs ``fixed`` and what its parts do. ``measured`` says on
what and how, ``prediction`` how far off it is for archs that were not measured; both are for
people, and whoever writes a table by hand may leave them out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.costs.cost import Cost
from models.space.arch import Choice
from models.space.rule import Part, cost_rule
from models.space.search_space import SearchSpace

FORMAT = 1
_SCALE = 1_000_000
"""Whole numbers in a unit: nanoseconds in a millisecond."""
_MOST = 1e6
"""Of one value: a quarter of an hour. It keeps sums small."""


@dataclass(frozen=True, eq=False)
class TablePart:
    """A part of the network; ``values``: float64, one axis for each of its decisions."""

    name: str
    decisions: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class CostTable:
    """``space``: the name and the number of classes of what was measured."""

    cost: str
    space: tuple[str, int]
    fixed: float
    parts: tuple[TablePart, ...]
    measured: Mapping[str, object] = field(default_factory=dict)
    prediction: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """As in the file."""
        return {
            "format": FORMAT,
            "cost": self.cost,
            "space": {"name": self.space[0], "num_classes": self.space[1]},
            "fixed": self.fixed,
            "parts": [
                {"name": p.name, "decisions": list(p.decisions), "values": p.values.tolist()}
                for p in self.parts
            ],
            "measured": dict(self.measured),
            "prediction": dict(self.prediction),
        }

    @classmethod
    def from_json(cls, document: object) -> CostTable:
        """The reverse. Raises ValueError naming what is wrong; ``tabulated`` checks the parts."""
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(
                f"this is not a cost table of format {FORMAT}; `models measure` makes one"
            )
        try:
            space = document["space"]
            parts = tuple(
                TablePart(
                    str(part["name"]),
                    tuple(str(name) for name in part["decisions"]),
                    np.asarray(part["values"], np.float64),
                )
                for part in document["parts"]
            )
            return cls(
                str(document["cost"]),
                (str(space["name"]), int(space["num_classes"])),
                float(document["fixed"]),
                parts,
                dict(document.get("measured", {})),
                dict(document.get("prediction", {})),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the cost table cannot be read: {error!r}") from None


def read_table(path: Path) -> CostTable:
    """A table's file. Raises ValueError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    try:
        return CostTable.from_json(document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def tabulated(name: str, unit: str, space: SearchSpace, table: CostTable | None) -> Cost:
    """The cost that a table tells, rounded up to whole numbers.

    Raises ValueError for a table of another cost or space, or one whose parts do not fit.
    """
    if table is None:
        raise ValueError(f"{name} needs a table: `python -m models measure` writes one")
    if table.cost != name:
        raise ValueError(f"the table is of {table.cost}, not of {name}")
    if table.space != (space.name, space.num_classes):
        raise ValueError(
            f"the table is of {table.space[0]} with {table.space[1]} classes, not of {space.name} "
            f"with {space.num_classes}"
        )
    if not any(part.decisions for part in table.parts):
        raise ValueError("no part of the table depends on a decision, so all archs cost the same")
    fixed = _whole("fixed", np.array(table.fixed))
    parts = [Part((), lambda arch: int(fixed)), *(_part(space, part) for part in table.parts)]
    cost = Cost(name, unit, _SCALE, space, cost_rule(space.decisions, parts))
    if cost.min <= 0:
        raise ValueError("the table's cheapest arch costs nothing: give it a cost above 0")
    if cost.max <= cost.min:
        raise ValueError("the table's largest arch costs no more than its cheapest")
    return cost


def _part(space: SearchSpace, part: TablePart) -> Part:
    for name in part.decisions:
        if name not in space.decision:
            raise ValueError(f"part {part.name}: {space.name} has no decision {name!r}")
    axes = [space.decision[name].choices for name in part.decisions]
    shape = tuple(len(choices) for choices in axes)
    if part.values.shape != shape:
        raise ValueError(f"part {part.name}: values have shape {part.values.shape}, not {shape}")
    whole = _whole(f"part {part.name}", part.values)

    def cost(arch: Mapping[str, Choice]) -> int:
        return int(whole[_place(part.decisions, axes, arch)])

    return Part(part.decisions, cost)


def _place(
    names: Sequence[str], axes: Sequence[Sequence[Choice]], arch: Mapping[str, Choice]
) -> tuple[int, ...]:
    return tuple(choices.index(arch[name]) for name, choices in zip(names, axes, strict=True))


def _whole(where: str, values: np.ndarray) -> np.ndarray:
    if not (np.isfinite(values).all() and (values >= 0).all() and (values <= _MOST).all()):
        raise ValueError(f"{where}: a value is negative, not a number, or more than {_MOST:,.0f}")
    return np.ceil(values * _SCALE - 1e-6).astype(np.int64)
