"""What a pretrained network bears without training: order of channels, centring, statistics, depth.

    python -m benchmarks.untrained_subnets --photos PHOTOS.parquet

Each line is a subnet of EfficientNet-Lite0 at one resolution, and the share of photos that it
answers as the whole network does there. Statistics that are measured anew see other photos.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.converters import Converted
from models.converters.checkpoint import read_checkpoint
from models.converters.efficientnet_lite import (
    PREPROCESS,
    fit_efficientnet_lite0,
    packaged_weights,
)
from models.nets import build_net
from models.nets.calibration import calibrate
from models.nets.elastic import AbstractNet
from models.nets.normalize import BatchStatistics, FrozenStatistics
from models.space.arch import Arch
from models.space.weights import SharedStatistics
from trainer.data.reading import read_source
from trainer.start.order import centred, in_order

RESOLUTION, BATCH = 160, 32
SMALLER = {
    "a third of stage 3's expanded channels": {"expand_ratio.3": 4},
    "a third of all expanded channels": {f"expand_ratio.{stage}": 4 for stage in range(1, 7)},
    "5x5 kernels": {f"kernel_size.{stage}": 3 for stage in (2, 4, 5)},
    "the last block of each stage": {
        **{f"depth.{stage}": 1 for stage in (1, 2)},
        **{f"depth.{stage}": 2 for stage in (3, 4)},
        "depth.5": 3,
    },
}
"""What is left out -> what an arch has instead."""


@torch.inference_mode()
def answers(net: AbstractNet, arch: Arch, how: BatchStatistics, images: Tensor) -> Tensor:
    """The class of each image."""
    return torch.cat([net(some, arch, how).argmax(1) for some in images.split(BATCH)])


def load(converted: Converted) -> AbstractNet:
    """The supernet with these weights, in evaluation mode."""
    net = build_net(converted.space).eval()
    net.load_state_dict({k: torch.from_numpy(np.array(w)) for k, w in converted.weights.items()})
    return net


def main(arguments: Sequence[str] | None = None) -> int:
    """The last line is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--count", type=int, default=240)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    source = read_source(str(options.photos))
    count = min(options.count, len(source.train))
    decoded = [PREPROCESS.decode(source.train.read(i), RESOLUTION) for i in range(count)]
    pixels = np.stack([PREPROCESS.pixels(photo, RESOLUTION) for photo in decoded])
    images = torch.from_numpy(PREPROCESS.normalize(pixels))
    others, images = images[: count // 2], images[count // 2 :]

    plain = fit_efficientnet_lite0(
        read_checkpoint(packaged_weights()).tensors, "efficientnet-lite0"
    )
    space, shared = plain.space, SharedStatistics(plain.statistics)
    weights, moved = in_order(space, plain.weights, shared)
    assert moved is not None
    ordered = load(replace(plain, weights=weights))
    as_it_is = load(plain)
    whole = space.arch(dict(space.largest) | {"resolution": RESOLUTION})
    wanted = answers(as_it_is, whole, FrozenStatistics(shared), images)
    rows: list[dict[str, object]] = []

    def row(left_out: str, how: str, net: AbstractNet, arch: Arch, by: BatchStatistics) -> None:
        share = float((answers(net, arch, by, images) == wanted).float().mean())
        rows.append({"without": left_out, "how": how, "flops": space.flops(arch), "agrees": share})
        print(f"{100 * share:5.1f} %  {left_out}: {how}", file=sys.stderr)

    anew = "statistics measured anew"
    row("nothing", anew, ordered, whole, calibrate(ordered, whole, others.split(len(others))))
    for left_out, choices in SMALLER.items():
        arch = space.arch(dict(whole) | choices)
        row(left_out, "as it is", as_it_is, arch, FrozenStatistics(shared))
        row(left_out, "in order", ordered, arch, FrozenStatistics(moved))
        by = FrozenStatistics(centred(space, weights, moved))
        row(left_out, "in order, centred", ordered, arch, by)
        row(left_out, anew, ordered, arch, calibrate(ordered, arch, others.split(len(others))))
    print(json.dumps({"images": len(images), "resolution": RESOLUTION, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
