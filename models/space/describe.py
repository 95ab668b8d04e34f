"""What spaces and archs are, as JSON; archs from JSON. No torch."""

from __future__ import annotations

import json
import math
from itertools import takewhile
from pathlib import Path

from models.space.arch import Arch
from models.space.flops import product_flops, weight_flops
from models.space.search_space import SearchSpace
from models.space.sizes import Weight


def read_arch(space: SearchSpace, text: str) -> Arch:
    """An arch from JSON, or from a file that holds JSON. Raises ValueError."""
    source = text
    if not text.lstrip().startswith("{"):
        try:
            source = Path(text).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"cannot read {text}: {error.strerror}; give a file or JSON") from None
        except UnicodeDecodeError:
            raise ValueError(f"{text} is not text; give a file with JSON, or JSON") from None
    try:
        document = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the arch is not JSON: {error}") from None
    return space.arch_from_json(document)


def describe_arch(space: SearchSpace, arch: Arch) -> dict[str, object]:
    """One arch: id, multiply-adds, parameters, its choice in each decision."""
    return {
        "id": space.arch_id(arch),
        "flops": space.flops(arch),
        "params": space.params(arch),
        "arch": space.arch_to_json(arch),
    }


def describe_layers(space: SearchSpace, arch: Arch) -> list[dict[str, object]]:
    """Where the multiply-adds of an arch go, by layer in order; they add up to its FLOPs.

    ``name``: of a block (``stages.0.1``), or of what is in no block (``head``). ``flops``: here, 0
    where the block is left out. ``largest``: in the largest subnet.
    """
    layers: dict[str, list[int]] = {}
    for cost in [*space.weights, *space.products]:
        both = layers.setdefault(layer_of(cost.name), [0, 0])
        for place, one in enumerate((arch, space.largest)):
            if cost.block is None or cost.block.present(one):
                both[place] += (
                    weight_flops(cost, one)
                    if isinstance(cost, Weight)
                    else product_flops(cost, one)
                )
    return [
        {"name": name, "flops": here, "largest": most}
        for name, (here, most) in layers.items()
        if most
    ]


def layer_of(name: str) -> str:
    """The layer that a weight or product belongs to: ``stages.0.1.expand.weight``: stages.0.1."""
    first, *rest = name.split(".")
    return ".".join([first, *takewhile(str.isdecimal, rest)])


def describe_space(space: SearchSpace) -> dict[str, object]:
    """A space: its range, how many archs it has, its decisions, its ends."""
    return {
        "space": space.name,
        "flops": {"min": space.min_flops, "max": space.max_flops},
        "params": {"min": space.params(space.smallest), "max": space.params(space.largest)},
        "archs": math.prod(len(decision.choices) for decision in space.decisions),
        "decisions": {d.name: list(d.choices) for d in space.decisions},
        "smallest": describe_arch(space, space.smallest),
        "largest": describe_arch(space, space.largest),
    }
