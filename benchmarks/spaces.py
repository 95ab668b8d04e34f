"""Are the search spaces those of the papers? Their numbers against the published ones.

    python -m benchmarks.spaces
    python -m benchmarks.spaces --archs 200

First the published subnets (models/spaces/published): FLOPs and parameters against what their
sources say. Then, for random archs of every space and its two ends: our FLOPs against half of what
torch counts while the subnet's operators run (two for a multiply-add), and our parameters against
those of the extracted network. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.parts.timing import machine
from models.command import command_parser, tells_mistakes
from models.nets import build_net
from models.space.arch import Arch
from models.space.describe import describe_arch, read_arch
from models.space.search_space import SearchSpace
from models.spaces import SPACES, get_space
from models.spaces.published import Published, agrees, published


@dataclass(frozen=True)
class PublishedRow:
    """What we count for a published subnet, beside what was published."""

    subnet: str
    space: str
    flops: int
    flops_published: str
    params: int
    params_published: str | None
    equal: bool


@dataclass(frozen=True)
class CountedRow:
    """Archs of a space: how many, and ids of those whose count differs from torch's."""

    space: str
    archs: int
    flops_differ: list[str]
    params_differ: list[str]


def compare_published(entry: Published) -> PublishedRow:
    """As ``python -m models describe`` reads the file and counts."""
    space = get_space(entry.space)
    told = describe_arch(space, read_arch(space, str(entry.arch)))
    flops, params = told["flops"], told["params"]
    assert isinstance(flops, int)
    assert isinstance(params, int)
    equal = agrees(flops, entry.flops) and (entry.params is None or agrees(params, entry.params))
    return PublishedRow(entry.subnet, entry.space, flops, entry.flops, params, entry.params, equal)


def count_operators(space: SearchSpace, arch: Arch) -> tuple[int, int]:
    """FLOPs that torch counts in a forward pass of the extracted subnet, and its parameters.

    On the meta device: operators are dispatched with their shapes, nothing is computed.
    """
    side = space.resolution(arch)
    with torch.device("meta"):
        subnet = build_net(space, arch).train()
        with FlopCounterMode(display=False) as counter:
            subnet(torch.empty(1, 3, side, side))
    return counter.get_total_flops(), sum(p.numel() for p in subnet.parameters())


def compare_counts(space: SearchSpace, archs: int, seed: int) -> CountedRow:
    """Random archs and the two ends of a space."""
    rng = np.random.default_rng(seed)
    chosen = [space.smallest, space.largest, *(space.random_arch(rng) for _ in range(archs))]
    flops_differ: list[str] = []
    params_differ: list[str] = []
    for arch in chosen:
        flops, params = count_operators(space, arch)
        if flops != 2 * space.flops(arch):
            flops_differ.append(space.arch_id(arch))
        if params != space.params(arch):
            params_differ.append(space.arch_id(arch))
    return CountedRow(space.name, len(chosen), flops_differ, params_differ)


def print_published(row: PublishedRow) -> None:
    """One line; a rounded number stands beside ours in full."""
    print(
        f"{row.subnet:34} {row.space:20} {row.flops:14,} {_spaced(row.flops_published):>14} "
        f"{row.params:11,} {_spaced(row.params_published):>11}  {'yes' if row.equal else 'NO'}",
        flush=True,
    )


def _spaced(text: str | None) -> str:
    if text is None:
        return "-"
    return text if text.endswith("M") else f"{int(text):,}"


@tells_mistakes
def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = command_parser("benchmarks.spaces", __doc__)
    parser.add_argument("--archs", type=int, default=4, help="random archs of each space")
    parser.add_argument("--space", choices=sorted(SPACES), help="measure this space only")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.archs < 0:
        raise ValueError("--archs takes 0 or more")
    names = sorted(SPACES) if options.space is None else [options.space]
    start = time.monotonic()
    if not options.json:
        print(f"{'subnet':34} {'space':20} {'FLOPs':>14} {'published':>14} ", end="")
        print(f"{'parameters':>11} {'published':>11}  equal")
    rows: list[PublishedRow] = []
    for entry in published():
        if entry.space in names:
            rows.append(compare_published(entry))
            if not options.json:
                print_published(rows[-1])
    if not options.json:
        print(f"\n{'space':22} archs  FLOPs == operators / 2  parameters == extracted")
    counted: list[CountedRow] = []
    for name in names:
        counted.append(compare_counts(get_space(name), options.archs, options.seed))
        if not options.json:
            told = [f"{len(d)} differ" if d else "all" for d in _differing(counted[-1])]
            print(f"{name:22} {counted[-1].archs:5}  {told[0]:22}  {told[1]}", flush=True)
    equal = all(row.equal for row in rows) and not any(any(_differing(row)) for row in counted)
    result = {
        "benchmark": "spaces",
        "equal": equal,
        "published": [asdict(row) for row in rows],
        "counted": [asdict(row) for row in counted],
        "seed": options.seed,
        "elapsed_s": round(time.monotonic() - start, 1),
        "machine": {**machine(), "torch": torch.__version__},
    }
    print(json.dumps(result))
    return 0 if equal else 1


def _differing(row: CountedRow) -> tuple[list[str], list[str]]:
    return row.flops_differ, row.params_differ


if __name__ == "__main__":
    sys.exit(main())
