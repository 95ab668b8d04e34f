"""From a public checkpoint to a bundle, without an image or with a folder of some. Uses torch.

Weights come from the checkpoint. The generator learns to keep budgets from the resource loss alone
(Eq. 10). BatchNorm takes the statistics that the checkpoint stores, which serve any arch; with
images they are measured for each arch that is answered. The bundle's provenance says which.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from models.bundle.folder import FrontierRow, save_bundle
from models.converters import convert
from models.converters.progress import Progress
from models.generator.answer import answers_within
from models.generator.network import ArchitectureGenerator
from models.generator.report import even_budgets, policy_of
from models.generator.resource_loss import ResourceLoss, fit_to_budgets
from models.images.photos import Photos, find_photos, read_photos
from models.images.preprocess import Preprocess
from models.nets import build_net
from models.nets.calibration import calibrate
from models.onnx.template import export_template
from models.outputs import refuse_unwritable
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.space.weights import SharedStatistics, Statistics

IMAGENET = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_ratio=0.875)
"""What both public projects evaluate with."""

GENERATOR_STEPS = 600

_BUDGETS_A_STEP = 32
_CANDIDATES = 400
_CALIBRATED_CANDIDATES = 96
"""Where every answer is calibrated, which takes seconds each."""
_PHOTOS, _LEAST_PHOTOS = 256, 32
_CALIBRATION_PHOTOS, _CALIBRATION_BATCH = 128, 32


def convert_to_bundle(
    converter: str,
    checkpoint: Path,
    out: Path,
    *,
    data: Path | None = None,
    steps: int = GENERATOR_STEPS,
    entry: str | None = None,
) -> dict[str, object]:
    """Write a bundle that answers as the checkpoint's subnets do; tells what it holds.

    ``steps``: of the generator on the resource loss. ``data``: a folder of images, which need no
    labels, on which BatchNorm is measured.
    ``entry``: which network of the checkpoint, where it holds several.
    The bundle's labels are the class numbers: a checkpoint has no names. Raises ValueError if
    ``out`` exists or cannot be made, for a checkpoint that cannot be carried over, and for a folder
    without images.
    """
    refuse_out(out)
    files = None if data is None else find_photos(data)
    converted = convert(converter, checkpoint, entry)
    space = converted.space
    if files is not None and not space.norms:
        raise ValueError(f"--data: {space.name} has no BatchNorm to measure; leave it out")
    with Progress() as progress:
        progress.message(f"{checkpoint}, {converted.taken}: fits {space.name}")
        photos = None if files is None else _read(files, space, progress)
        generator = fit_generator(space, steps, progress=progress)
        told: dict[str, JsonValue] = {
            "taken": converted.taken,
            "generator": f"resource loss, {steps} steps",
            "batch_norm": "the checkpoint's own statistics" if space.norms else None,
            "images": None,
        }
        ladder = _answers(generator, few=photos is not None)
        measured: Mapping[Arch, Statistics] | None = None
        if photos is not None:
            measured = measured_statistics(
                space,
                converted.weights,
                progress.track(ladder, "BatchNorm statistics", len(ladder)),
                lambda side: calibration_batches(photos, side, _CALIBRATION_PHOTOS),
            )
            told["images"] = {"read": len(photos), "broken": len(photos.broken)}
            count = min(len(photos), _CALIBRATION_PHOTOS)
            told["batch_norm"] = f"measured for each arch on {count} images"
        progress.message("exporting the graph")
        template = export_template(space)
    rows = ladder[:: max(len(ladder) // 8, 1)]
    save_bundle(
        out,
        name=f"{converter}-{space.name}",
        space=space,
        preprocess=IMAGENET,
        labels=[str(index) for index in range(space.num_classes)],
        groups=[space.flops(arch) for arch in rows],
        frontier=[_row(space, arch) for arch in rows],
        answers=[(float(space.flops(arch)), arch) for arch in ladder] if space.norms else [],
        weights=converted.weights,
        generator={name: p.detach().numpy() for name, p in generator.state_dict().items()},
        statistics=measured,
        shared_statistics=SharedStatistics(converted.statistics) if measured is None else None,
        template=template,
        provenance={"converted_from": converter, "checkpoint": checkpoint.name, **told},
    )
    return {
        "bundle": str(out),
        "space": space.name,
        "classes": space.num_classes,
        "flops": {"min": space.min_flops, "max": space.max_flops},
        **told,
    }


def refuse_out(out: Path) -> None:
    """Raise ValueError unless a new folder can be made there."""
    if out.exists():
        raise ValueError(f"{out} exists; give another place, or remove it first")
    refuse_unwritable(out)


def fit_generator(
    space: SearchSpace, steps: int, *, progress: Progress | None = None
) -> ArchitectureGenerator:
    """A generator that keeps budgets over the whole range (L_RC and a little entropy)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = ArchitectureGenerator(space)

    def track(every: range) -> Iterable[int]:
        text = "generator, resource loss"
        return every if progress is None else progress.track(every, text, len(every))

    fit_to_budgets(
        generator,
        ResourceLoss(budgets=_BUDGETS_A_STEP),
        steps=steps,
        rng=torch.Generator().manual_seed(0),
        track=track,
    )
    return generator


def _read(files: list[Path], space: SearchSpace, progress: Progress) -> Photos:
    """Some of the folder's photos at every resolution of the space; broken ones are named."""
    decisions = [space.decision[name].choices for name in space.resolution.decisions]
    sides = {space.resolution.rule(*choices) for choices in itertools.product(*decisions)}
    progress.message(f"reading up to {_PHOTOS} of {len(files):,} images")
    photos = read_photos(
        files,
        IMAGENET,
        sides,
        at_most=_PHOTOS,
        least=_LEAST_PHOTOS,
        on_broken=lambda what: progress.message(f"left out {what}"),
    )
    if photos.broken:
        progress.message(f"{len(photos.broken)} images were broken; {len(photos)} were read")
    return photos


def _answers(generator: ArchitectureGenerator, *, few: bool) -> list[Arch]:
    """What is answered over the range, each once, by FLOPs."""
    space = generator.space
    budgets = even_budgets(space, _CALIBRATED_CANDIDATES if few else _CANDIDATES)
    asked = answers_within(policy_of(generator), budgets)
    return [arch for _, arch in sorted({space.flops(arch): arch for arch in asked}.items())]


def measured_statistics(
    space: SearchSpace,
    weights: Mapping[str, np.ndarray],
    archs: Iterable[Arch],
    batches: Callable[[int], Iterable[Tensor]],
) -> dict[Arch, Statistics]:
    """BatchNorm statistics of each arch on images; ``batches`` gives them for a resolution."""
    with torch.random.fork_rng(devices=[]):
        net = build_net(space)
    net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()})
    net.requires_grad_(False)
    measured: dict[Arch, Statistics] = {}
    for arch in archs:
        found = calibrate(net, arch, batches(space.resolution(arch)))
        measured[arch] = {n: (mean.numpy(), var.numpy()) for n, (mean, var) in found.items()}
    return measured


def calibration_batches(photos: Photos, resolution: int, count: int) -> Iterable[Tensor]:
    """The first ``count`` photos, as ``models.nets.calibration`` wants them."""
    for start in range(0, min(count, len(photos)), _CALIBRATION_BATCH):
        rows = slice(start, min(start + _CALIBRATION_BATCH, count))
        yield torch.from_numpy(photos.batch(rows, resolution))


def _row(space: SearchSpace, arch: Arch) -> FrontierRow:
    flops = space.flops(arch)
    return FrontierRow(float(flops), arch, flops, space.params(arch), None, None)
