"""What does each elastic dimension of EfficientNet-Lite0 cost alone, untrained and distilled?

    python -m benchmarks.elastic_dimensions --photos PHOTOS
    python -m benchmarks.elastic_dimensions --photos PHOTOS --distilled RUN/bundle --blend 0.25

Each line is a subnet that has less in one dimension, and how near its answers are to those of the
whole network at 224 pixels: the share of photos with the same first class, and the divergence of
probabilities (mean KL at the best temperature, nats). Every second photo is reported; statistics
are measured anew on some of the others (``benchmarks.imagenet_mobile`` cuts them alike).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.parts.nearest import Photos, divergence, read_photos
from models.bundle.folder import load_bundle
from models.bundle.value import unpack_shared
from models.command import command_parser, tells_mistakes
from models.converters.checkpoint import read_checkpoint
from models.converters.efficientnet_lite import (
    PREPROCESS,
    fit_efficientnet_lite0,
    packaged_weights,
)
from models.interval import interval
from models.nets import build_net
from models.nets.calibration import calibrate
from models.nets.elastic import AbstractNet
from models.nets.normalize import BatchStatistics, FrozenStatistics
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.space.weights import SharedStatistics
from trainer.start.order import centred, in_order

SPACE = "efficientnet-lite0"
RESOLUTION, BATCH = 160, 40
CALIBRATION_PHOTOS = 100
DIMENSIONS: tuple[tuple[str, str, dict[str, int]], ...] = (
    ("", "nothing", {}),
    ("resolution", "144 pixels", {"resolution": 144}),
    ("resolution", "128 pixels", {"resolution": 128}),
    ("depth", "a block of stage 3", {"depth.3": 2}),
    ("depth", "a block of stages 3 and 4", {"depth.3": 2, "depth.4": 2}),
    (
        "depth",
        "a block of every stage",
        {"depth.1": 1, "depth.2": 1, "depth.3": 2, "depth.4": 2, "depth.5": 3},
    ),
    ("kernel", "5x5 kernels", {f"kernel_size.{stage}": 3 for stage in (2, 4, 5)}),
    ("expansion", "a third of stage 3's channels", {"expand_ratio.3": 4}),
    ("expansion", "a third of stages 3 and 4", {"expand_ratio.3": 4, "expand_ratio.4": 4}),
    ("expansion", "a third of all", {f"expand_ratio.{stage}": 4 for stage in range(1, 7)}),
)
"""The dimension, what is left out, and what an arch has instead."""


@dataclass(frozen=True, eq=False)
class Way:
    """One way to run a subnet of the supernet. calibrates: measure statistics for each subnet."""

    name: str
    net: AbstractNet
    by: BatchStatistics
    calibrates: bool = False


def load(space: SearchSpace, weights: dict[str, np.ndarray]) -> AbstractNet:
    """The supernet with these weights, in evaluation mode."""
    net = build_net(space).eval()
    net.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in weights.items()})
    return net


def untrained_ways() -> list[Way]:
    """The public weights: as they are, and with channels in order of importance."""
    tensors = read_checkpoint(packaged_weights()).tensors
    plain = fit_efficientnet_lite0(tensors, SPACE)
    space, shared = plain.space, SharedStatistics(plain.statistics)
    weights, moved = in_order(space, plain.weights, shared)
    assert moved is not None
    ordered = load(space, weights)
    return [
        Way("as it is", load(space, dict(plain.weights)), FrozenStatistics(shared)),
        Way("in order", ordered, FrozenStatistics(moved)),
        Way("in order, centred", ordered, FrozenStatistics(centred(space, weights, moved))),
        Way("statistics measured anew", ordered, None, calibrates=True),
    ]


def distilled_way(folder: Path, share: float) -> Way:
    """A share of the way to the weights of a run, with the statistics under which they learned."""
    bundle = load_bundle(folder)
    if bundle.space.name != "mobile":
        raise ValueError(f"{folder} is of space {bundle.space.name}: give a run of mobile")
    public = fit_efficientnet_lite0(read_checkpoint(packaged_weights()).tensors, "mobile").weights
    weights = {k: (1 - share) * w + share * bundle.weights[k] for k, w in public.items()}
    shared = unpack_shared(bundle.space, bundle.statistics)
    return Way("distilled", load(bundle.space, weights), FrozenStatistics(shared))


@torch.inference_mode()
def said(way: Way, arch: Arch, photos: Photos) -> np.ndarray:
    """Logits of the photos that are reported."""
    pixels = photos.pixels[way.net.space.resolution(arch)]
    images = torch.from_numpy(PREPROCESS.normalize(pixels))
    by = way.by
    if way.calibrates:
        by = calibrate(way.net, arch, images[::2][:CALIBRATION_PHOTOS].split(CALIBRATION_PHOTOS))
    return torch.cat([way.net(some, arch, by) for some in images[1::2].split(BATCH)]).numpy()


def arch_of(space: SearchSpace, choices: dict[str, int]) -> Arch:
    """The whole network at 160 pixels but for these choices."""
    return space.arch(dict(space.largest) | {"resolution": RESOLUTION} | choices)


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """The last line is JSON."""
    parser = command_parser("benchmarks.elastic_dimensions", __doc__, json=False)
    parser.add_argument(
        "--photos", type=Path, required=True, help="labelled photos, classes in ImageNet's order"
    )
    parser.add_argument(
        "--distilled", type=Path, metavar="BUNDLE", help="of a run of the recipe imagenet-mobile"
    )
    parser.add_argument("--blend", type=float, default=1.0, help="how far to go to its weights")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ways = untrained_ways()
    space = ways[0].net.space
    if options.distilled is not None:
        ways.append(distilled_way(options.distilled, options.blend))
    sides = {space.resolution(arch_of(space, choices)) for _, _, choices in DIMENSIONS}
    photos = read_photos(options.photos, sorted({*sides, space.resolution(space.largest)}))
    labels = photos.labels[1::2]
    whole = said(ways[0], space.largest, photos)
    rows: list[dict[str, object]] = []
    for dimension, left_out, choices in DIMENSIONS:
        for way in ways:
            if dimension != "expansion" and way.name.startswith("in order"):
                continue  # which changes nothing where all channels stay
            if dimension and way.calibrates:
                continue  # worse already where nothing is missing
            its_space = way.net.space
            if not all(v in its_space.decision[name].choices for name, v in choices.items()):
                continue  # the space of what was distilled does not choose this
            arch = arch_of(its_space, choices)
            its = said(way, arch, photos)
            agrees = float((its.argmax(1) == whole.argmax(1)).mean())
            right = float((its.argmax(1) == labels).mean())
            low, high = interval(agrees, len(its))
            row: dict[str, object] = {
                "dimension": dimension,
                "without": left_out,
                "flops": its_space.flops(arch),
                "how": way.name,
                "right": right,
                "agrees": agrees,
                "agrees_95": [low, high],
                "divergence": divergence(whole, its),
            }
            rows.append(row)
            print(
                f"{dimension:11}{left_out:32}{its_space.flops(arch) / 1e6:5.0f} M  {way.name:26}"
                f"agrees {100 * agrees:5.1f} % ({100 * low:.0f} to {100 * high:.0f}), "
                f"divergence {row['divergence']:.2f}, right {100 * right:.1f} %",
                file=sys.stderr,
            )
    print(json.dumps({"photos": len(labels), "resolution": RESOLUTION, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
