"""Which archs are worth an answer: those that are nearest to the full network for their FLOPs.

How near is the mean KL divergence of an arch's probabilities from the full network's, on photos.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.parts.lines import read_lines
from models.bundle.files import halved
from models.bundle.folder import Bundle
from models.converters.efficientnet_lite import PREPROCESS
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from trainer.data.reading import read_source
from trainer.engine.log import add_line
from trainer.finish import resolutions_alone

CHOSEN = ("resolution", "depth")
"""What the archs of the space differ in."""
BATCH = 32
SCOUT = 128
"""The resolution at which all combinations of depths are tried."""
NEAR = 1.05
"""Archs that were at most so many times as far as the best of their FLOPs are tried again."""
STEP = 0.97
"""An answer is kept if its divergence is at most so many times that of the next smaller one."""
TEMPERATURES = np.geomspace(0.7, 3.0, 30)


@dataclass(frozen=True, eq=False)
class Photos:
    """Pixels at every resolution, uint8, and classes."""

    pixels: dict[int, np.ndarray]
    labels: np.ndarray
    classes: tuple[str, ...]


def read_photos(path: Path, sides: Sequence[int]) -> Photos:
    """All photos of a labelled source."""
    source = read_source(str(path))
    contents = [source.train.read(index) for index in range(len(source.train))]
    photos = [PREPROCESS.decode(content, max(sides)) for content in contents]
    pixels = {
        side: np.stack([PREPROCESS.pixels(photo, side) for photo in photos]) for side in sides
    }
    return Photos(pixels, source.train.labels, source.classes)


def logits(
    bundle: Bundle, arch: Arch, photos: Photos, some: np.ndarray, threads: int
) -> np.ndarray:
    """What an arch says of some photos, as it is served: (photos, classes)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = bundle.build_onnx(arch).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    pixels = photos.pixels[bundle.space.resolution(arch)][some]
    batches = (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))
    said = [session.run(None, {"images": PREPROCESS.normalize(batch)})[0] for batch in batches]
    return np.concatenate([np.asarray(part) for part in said])


def divergence(full: np.ndarray, other: np.ndarray) -> float:
    """Mean over photos of KL(full, other), nats, from logits, at the best temperature.

    What is asked is what a subnet tells apart, and not how sure it is, which a temperature can set.
    """
    return float(divergences(full, other, best_temperature(full, other)).mean())


def best_temperature(full: np.ndarray, other: np.ndarray) -> float:
    """By what the other's logits are divided where that brings them nearest."""
    each = [divergences(full, other, temperature).mean() for temperature in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(each))])


def divergences(full: np.ndarray, other: np.ndarray, temperature: float) -> np.ndarray:
    """Of each photo: KL(full, other), nats, from logits; the other's divided by a temperature."""
    of_full = _log_softmax(full)
    return (np.exp(of_full) * (of_full - _log_softmax(other / temperature))).sum(1)


def _log_softmax(each: np.ndarray) -> np.ndarray:
    shifted = each - each.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@dataclass(frozen=True, eq=False)
class Search:
    """Divergences of archs from the full network on the photos that choose, each measured once.

    full: what that says of them.
    """

    bundle: Bundle
    photos: Photos
    chooses: np.ndarray
    full: np.ndarray
    file: Path | None
    threads: int
    found: dict[Arch, float] = field(default_factory=dict)

    def read(self) -> None:
        """What the file holds already."""
        if self.file is not None and self.file.is_file():
            for row in read_lines(self.file):
                self.found[self.bundle.space.arch_from_json(row["arch"])] = row["divergence"]

    def measure(self, archs: Iterable[Arch]) -> None:
        """Those that are not known yet."""
        space = self.bundle.space
        new = [arch for arch in dict.fromkeys(archs) if arch not in self.found]
        for number, arch in enumerate(new, start=1):
            said = logits(self.bundle, arch, self.photos, self.chooses, self.threads)
            self.found[arch] = round(divergence(self.full, said), 5)
            document = space.arch_to_json(arch)
            row = {
                "flops": space.flops(arch),
                "divergence": self.found[arch],
                "agrees": round(float((said.argmax(1) == self.full.argmax(1)).mean()), 4),
                "arch": {name: document[name] for name in CHOSEN},
            }
            if self.file is not None:
                add_line(self.file, row)
            if number % 20 == 0 or number == len(new):
                print(f"tried {number} of {len(new)}", file=sys.stderr)

    def front(self, archs: Iterable[Arch], step: float, worst: float = math.inf) -> list[Arch]:
        """By FLOPs: each at most ``step`` times as far from the full network as all smaller ones.

        ``worst``: divergence that the first may have.
        """
        kept: list[Arch] = []
        for arch in sorted(archs, key=self.bundle.space.flops):
            if self.found[arch] <= (step * self.found[kept[-1]] if kept else worst):
                kept.append(arch)
        return kept

    def run(self, others: Iterable[Arch] = (), *, again: Path | None = None) -> list[Arch]:
        """What is worth an answer. others: candidates beside those that are found here.

        again: an earlier search; in place of all depths, what was ``NEAR`` its best is tried.
        """
        space = self.bundle.space
        alone = resolutions_alone(space)
        self.read()
        self.measure((*alone, *others))
        if again is not None:
            self.measure(near_in(space, again))
        else:
            scouts = depths(space, SCOUT)
            self.measure(scouts)
            near, sides = self.front(scouts, 1.0), [space.resolution(arch) for arch in alone]
            self.measure(
                space.arch({**arch, "resolution": side}) for side in sides for arch in near
            )
        return self.front(self.found, STEP, worst=self.found[alone[0]])


def near_in(space: SearchSpace, file: Path) -> list[Arch]:
    """Of an earlier search: what was not much farther than all that was as small."""
    rows = read_lines(file)
    kept: list[Arch] = []
    best = math.inf
    for row in sorted(rows, key=lambda row: row["flops"]):
        best = min(best, row["divergence"])
        if row["divergence"] <= NEAR * best:
            kept.append(space.arch_from_json(row["arch"]))
    return kept


def blended(before: Bundle, after: Bundle, share: float) -> Bundle:
    """The bundle with weights ``share`` of the way from before to after (arXiv 2109.01903).

    Statistics are those of after, under which it learned: with the weights of before they say the
    same as its own. Weights are rounded to half precision, as they are stored.
    """
    weights = {
        name: (1 - share) * weight + share * after.weights[name]
        for name, weight in before.weights.items()
    }
    return replace(before, weights=halved(weights), statistics=after.statistics)


def depths(space: SearchSpace, resolution: int) -> list[Arch]:
    """The archs at a resolution: every combination of depths."""
    elastic = [d for d in space.decisions if d.kind == "depth" and len(d.choices) > 1]
    here = dict(space.largest) | {"resolution": resolution}
    return [
        space.arch(here | {d.name: choice for d, choice in zip(elastic, some, strict=True)})
        for some in itertools.product(*(d.choices for d in elastic))
    ]
