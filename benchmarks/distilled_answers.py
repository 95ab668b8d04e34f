"""What distillation brings to each answer of a bundle: the same subnets before and after it.

    python -m benchmarks.distilled_answers models/zoo/imagenet-mobile RUN/bundle --photos PHOTOS

How near an answer is to the whole network as it was: mean KL divergence of probabilities, nats, at
the temperature that is best on every second photo; the others are reported, photo by photo against
the answer before. ``--blend`` also tries weights between the two (arXiv 2109.01903). Reported is
the share at which ``SCOUTS`` are nearest on the photos that choose, of those at which the whole
network moves by at most ``MAY_MOVE``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.parts.nearest import (
    Photos,
    best_temperature,
    blended,
    divergence,
    divergences,
    logits,
    read_photos,
)
from models.bundle.folder import Bundle, load_bundle
from models.command import command_parser, tells_mistakes
from models.interval import paired
from models.space.arch import Arch

ANSWERS = 13
"""About so many that were answered before are measured, beside all that the run trained."""
SCOUTS = 8
"""Of those, by which a share is chosen."""
MAY_MOVE = 0.01
"""Nats by which the whole network may differ from itself."""


@dataclass(frozen=True, eq=False)
class Said:
    """Of each reported photo: how far an answer is from the whole network, and its class."""

    divergence: np.ndarray
    first: np.ndarray


def compare(
    before: Bundle, after: Bundle, photos: Photos, shares: Sequence[float], threads: int
) -> tuple[float, dict[float, list[float]], dict[str, dict[Arch, Said]]]:
    """The share that is nearest, divergences of the scouts at each, and what is said by each."""
    space = before.space
    chooses = np.arange(len(photos.labels)) % 2 == 0
    some = before.archs()[:: -(-len(before.archs()) // ANSWERS)]
    archs = sorted({*some, *after.archs(), space.largest}, key=space.flops)
    full = logits(before, space.largest, photos, np.ones_like(chooses), threads)
    scouts = [archs[at] for at in np.linspace(0, len(archs) - 1, SCOUTS).astype(int)]
    tried: dict[float, list[float]] = {}
    for share in (0.0, *shares):
        bundle = blended(before, after, share)
        each = [logits(bundle, arch, photos, chooses, threads) for arch in scouts]
        tried[share] = [divergence(full[chooses], one) for one in each]
        print(
            f"{share:g} of the way: {np.mean(tried[share]):.4f}, whole {tried[share][-1]:.4f}",
            file=sys.stderr,
        )
    allowed = [share for share in shares if tried[share][-1] <= MAY_MOVE]
    if not allowed:
        raise ValueError(f"--blend {shares}: all move the whole network more than {MAY_MOVE}")
    best = min(allowed, key=lambda share: np.mean(tried[share]))
    found: dict[str, dict[Arch, Said]] = {}
    for name, bundle in (("before", before), ("after", blended(before, after, best))):
        found[name] = {}
        for number, arch in enumerate(archs, start=1):
            its = logits(bundle, arch, photos, np.ones_like(chooses), threads)
            temperature, rest = best_temperature(full[chooses], its[chooses]), ~chooses
            each = divergences(full[rest], its[rest], temperature)
            found[name][arch] = Said(each, its[rest].argmax(1))
            if number % 10 == 0 or number == len(archs):
                print(f"{name}: {number} of {len(archs)} answers", file=sys.stderr)
    return best, tried, found


def with_interval(difference: np.ndarray) -> tuple[float, float, float]:
    """Mean of differences of the same photos, and its 95 % interval."""
    mean, half = paired(difference)
    return mean, mean - half, mean + half


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """The last line is JSON."""
    parser = command_parser("benchmarks.distilled_answers", __doc__, json=False)
    parser.add_argument("before", type=Path, help="a bundle")
    parser.add_argument("after", type=Path, help="that of a run which distilled it")
    parser.add_argument(
        "--photos", type=Path, required=True, help="labelled photos, classes in ImageNet's order"
    )
    parser.add_argument("--blend", nargs="+", type=float, default=[1.0], help="shares to try")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    before, after = load_bundle(options.before), load_bundle(options.after)
    space = before.space
    sides = sorted({space.resolution(arch) for arch in (*before.archs(), *after.archs())})
    photos = read_photos(options.photos, sides)
    share, tried, found = compare(before, after, photos, options.blend, options.threads)
    labels = photos.labels[1::2]
    whole = found["before"][space.largest].first
    rows: list[Mapping[str, object]] = []
    for arch, was in found["before"].items():
        now = found["after"][arch]
        moved = with_interval(now.divergence - was.divergence)
        right = with_interval(1.0 * (now.first == labels) - (was.first == labels))
        shares = [float((s.first == of).mean()) for of in (labels, whole) for s in (was, now)]
        depths = [value for name, value in arch.items() if name.startswith("depth.")][1:-1]
        rows.append(
            {
                "flops": space.flops(arch),
                "arch": space.arch_to_json(arch),
                "divergence": [float(was.divergence.mean()), float(now.divergence.mean())],
                "divergence_moved": moved,
                "right": shares[:2],
                "right_moved": right,
                "agrees": shares[2:],
            }
        )
        print(
            f"| {space.flops(arch) / 1e6:.0f} | {arch['resolution']} "
            f"| {' '.join(map(str, depths))} "
            f"| {was.divergence.mean():.2f} | {now.divergence.mean():.2f} "
            f"| {moved[0]:+.2f} ({moved[1]:+.2f} to {moved[2]:+.2f}) "
            f"| {100 * shares[0]:.1f} | {100 * shares[1]:.1f} "
            f"| {100 * right[0]:+.1f} ({100 * right[1]:+.1f} to {100 * right[2]:+.1f}) "
            f"| {100 * shares[2]:.1f} | {100 * shares[3]:.1f} |",
            file=sys.stderr,
        )
    print(json.dumps({"photos": len(labels), "share": share, "tried": tried, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
