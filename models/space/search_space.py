"""SearchSpace: the decisions, and how large every weight is under them.

This is the single description of a network's sizes. From it follow, for any arch:

- the slice of each supernet weight (``models.space.weights``),
- parameters and FLOPs (``models.space.flops``),
- the masks of the relaxed network (``models.space.relaxed``),
- the ONNX graph of the subnet (``models.onnx.graph``).

The one other thing a space has is its forward pass, a torch module that never names a size
(``models.nets``). No torch here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from models.space.arch import Arch, Choice
from models.space.flops import flops_rule
from models.space.rule import CostRule
from models.space.sizes import Decision, Norm, Product, Size, Weight


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Everything about a family of subnets except its forward pass.

    ``net`` is ``"module:Class"``, the torch module with the forward pass, imported only by those
    who train. ``order`` of ``decisions`` is the order in which the generator decides.
    ``norm_epsilon``: what every BatchNorm adds to a variance.
    """

    name: str
    decisions: tuple[Decision, ...]
    weights: tuple[Weight, ...]
    resolution: Size
    num_classes: int
    net: str
    layout: object = field(repr=False, default=None)
    products: tuple[Product, ...] = ()
    norms: tuple[Norm, ...] = ()
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        names = [decision.name for decision in self.decisions]
        assert len(set(names)) == len(names), "decision names repeat"
        weights = [weight.name for weight in self.weights]
        assert len(set(weights)) == len(weights), "weight names repeat"
        for decision in self.decisions:
            assert list(decision.choices) == sorted(set(decision.choices)), decision

    # -- archs -------------------------------------------------------------------------------

    @cached_property
    def decision(self) -> dict[str, Decision]:
        """Decisions by name."""
        return {decision.name: decision for decision in self.decisions}

    @cached_property
    def weight(self) -> dict[str, Weight]:
        """Weights by name."""
        return {weight.name: weight for weight in self.weights}

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(decision.name for decision in self.decisions)

    def arch(self, choices: Mapping[str, Choice]) -> Arch:
        """An arch from one choice per decision. ValueError names the decision that is wrong.

        Decisions with one choice may be missing. Decisions of dropped blocks may be missing too:
        they become the smallest choice, whatever was given.
        """
        for name in choices:
            if name not in self.decision:
                raise ValueError(
                    f"{self.name} has no decision {name!r}; it has {list(self._names)}"
                )
        picked: dict[str, Choice] = {}
        for decision in sorted(self.decisions, key=lambda d: d.block is not None):
            if decision.block is not None and not decision.block.present(picked):
                picked[decision.name] = decision.choices[0]
                continue
            if len(decision.choices) == 1 and decision.name not in choices:
                picked[decision.name] = decision.choices[0]
                continue
            if decision.name not in choices:
                raise ValueError(
                    f"{self.name}: {decision.name} is missing; "
                    f"choose one of {list(decision.choices)}"
                )
            choice = choices[decision.name]
            if choice not in decision.choices:
                raise ValueError(
                    f"{self.name}: {decision.name} = {choice!r} is not one of "
                    f"{list(decision.choices)}"
                )
            picked[decision.name] = decision.choices[decision.choices.index(choice)]
        return Arch(self._names, tuple(picked[name] for name in self._names))

    def from_indices(self, indices: Iterable[int]) -> Arch:
        """An arch from the position of each choice, in the order of ``decisions``."""
        choices = (d.choices[int(i)] for d, i in zip(self.decisions, indices, strict=True))
        return self.arch(dict(zip(self._names, choices, strict=True)))

    def indices(self, arch: Arch) -> np.ndarray:
        """Positions of an arch's choices, int64 of shape (decisions,)."""
        return np.array(
            [d.choices.index(c) for d, c in zip(self.decisions, arch.choices, strict=True)]
        )

    @cached_property
    def smallest(self) -> Arch:
        return self.arch({d.name: d.choices[0] for d in self.decisions})

    @cached_property
    def largest(self) -> Arch:
        return self.arch({d.name: d.choices[-1] for d in self.decisions})

    def random_arch(self, rng: np.random.Generator) -> Arch:
        """Uniform over every decision's choices (the sampling that the paper argues against)."""
        return self.from_indices(int(rng.integers(len(d.choices))) for d in self.decisions)

    def arch_to_json(self, arch: Arch) -> dict[str, Choice | list[Choice]]:
        """``{"embed_dim": 192, "depth": 13, "num_heads": [3, 3, ...]}``: a list per numbered kind.

        Lists over blocks end where the blocks end.
        """
        document: dict[str, Choice | list[Choice]] = {}
        length: dict[str, int] = {}
        for decision in self.decisions:
            if decision.index is None:
                document[decision.kind] = arch[decision.name]
                continue
            entry = document.setdefault(decision.kind, [])
            assert isinstance(entry, list)
            entry.append(arch[decision.name])
            if decision.block is None or decision.block.present(arch):
                length[decision.kind] = len(entry)
        for kind, entry in document.items():
            if isinstance(entry, list):
                del entry[length.get(kind, 0) :]
        return document

    def arch_from_json(self, document: object) -> Arch:
        """The reverse; ValueError for anything that is not an arch of this space."""
        if not isinstance(document, Mapping):
            raise ValueError("an arch is a JSON object, like the one describe prints")
        choices: dict[str, Choice] = {}
        kinds = {decision.kind for decision in self.decisions}
        for kind, value in document.items():
            members = [d for d in self.decisions if d.kind == kind]
            if kind not in kinds:
                raise ValueError(f"{self.name} has no {kind!r}; an arch has {sorted(kinds)}")
            values: list[object] = [*value] if isinstance(value, list) else [value]
            if len(values) > len(members):
                raise ValueError(
                    f"{self.name}: {kind} has {len(values)} entries, at most {len(members)} fit"
                )
            for decision, choice in zip(members, values, strict=False):
                if isinstance(choice, bool) or not isinstance(choice, int | float):
                    raise ValueError(f"{self.name}: {kind} must be numbers, not {choice!r}")
                choices[decision.name] = choice
        return self.arch(choices)

    def arch_id(self, arch: Arch) -> str:
        """A stable name for an arch, the same in every process: 12 hexadecimal digits."""
        text = json.dumps([self.name, self.arch_to_json(arch)], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    # -- sizes -------------------------------------------------------------------------------

    def params(self, arch: Arch) -> int:
        """Parameters of a subnet, BatchNorm's and biases included."""
        return sum(
            math.prod(weight.shape_at(arch))
            for weight in self.weights
            if weight.block is None or weight.block.present(arch)
        )

    def flops(self, arch: Arch) -> int:
        """Multiply-adds for one image: the rule is in ``models.space.flops``."""
        return int(self.flops_rule.batch(self.indices(arch)[None])[0])

    @cached_property
    def flops_rule(self) -> CostRule:
        return flops_rule(self.decisions, self.weights, self.products)

    @cached_property
    def min_flops(self) -> int:
        return self.flops(self.smallest)

    @cached_property
    def max_flops(self) -> int:
        return self.flops(self.largest)
