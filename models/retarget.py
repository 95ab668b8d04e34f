"""``python -m models retarget``: a bundle that also answers budgets of another cost. Uses torch.

What it holds then is a list of answers by the new cost. FLOPs are answered as before.

A bundle that stores its answers has tried them on images. Without images these are the list, each
by its new cost. With images, and in bundles that store none, a generator answers too. It goes on
from where it learned FLOPs, with the resource loss (Eq. 10) on the new cost and a small reward for
multiply-adds: of archs that take as long, the one that computes more. No image is needed for that.

More multiply-adds in the same time are not more right answers: most archs of a supernet are trained
little (docs/experiments/measured-latency.md). So the generator decides alone only in bundles that
store no answers. Its others are tried on the images: BatchNorm is measured for those that have no
statistics, and of all only those stay that agree with the largest subnet more often than any
cheaper one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from models.bundle.costs import cost_answers
from models.bundle.folder import Bundle, load_bundle, save_with_cost
from models.bundle.value import SHARED
from models.converters.deployment import calibration_batches, measured_statistics, refuse_out
from models.converters.progress import Progress
from models.costs import get_cost
from models.costs.cost import Cost
from models.costs.table import CostTable
from models.generator.answer import answers_within
from models.generator.network import ArchitectureGenerator
from models.generator.report import policy_of, report_generator
from models.generator.resource_loss import ResourceLoss, fit_to_budgets
from models.images.photos import Photos, find_photos, read_photos
from models.onnx.graph import cut_graph
from models.onnx.ort import onnxruntime, session_options
from models.space.arch import Arch
from models.space.relaxed import RelaxedCost
from models.space.weights import Statistics, fold_norms, slice_weights

STEPS = 800
REWARD = 0.3
"""For the largest subnet's multiply-adds, beside the loss: so small that budgets are kept."""

_CANDIDATES = 400
_PHOTOS, _LEAST_PHOTOS = 512, 32


@dataclass(frozen=True)
class RewardingLoss(ResourceLoss):
    """The resource loss, less ``reward`` times the share of the largest subnet's FLOPs."""

    reward: float = REWARD

    def __call__(
        self,
        generator: ArchitectureGenerator,
        drawn: Sequence[float],
        *,
        temperature: float,
        rng: torch.Generator,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        policies, total, resource_loss = super().__call__(
            generator, drawn, temperature=temperature, rng=rng
        )
        space = generator.space
        share = RelaxedCost(space.flops_rule)(policies).mean() / space.max_flops
        return policies, total - self.reward * share, resource_loss


def retarget(
    source: Path,
    table: CostTable,
    out: Path,
    *,
    data: Path | None = None,
    steps: int = STEPS,
) -> dict[str, object]:
    """Write the bundle at ``source`` with answers to budgets of the table's cost; tells of them.

    ``data``: a folder of images, which need no labels, to try the generator's answers on. Raises
    ValueError if ``out`` exists, for a table of another space, for a folder without images, and for
    images where a few archs alone were trained.
    """
    refuse_out(out)
    bundle = load_bundle(source)
    if data is not None and bundle.trained_archs:
        raise ValueError(
            f"--data {data} tries archs that {bundle.name} did not train (it trained "
            f"{len(bundle.trained_archs)} alone): leave out --data"
        )
    cost = get_cost(table.cost, bundle.space, table)
    files = None if data is None else find_photos(data)
    with Progress() as progress:

        def track(every: range) -> Iterable[int]:
            return progress.track(every, f"generator, {cost.name}", len(every))

        generator: ArchitectureGenerator | None = None
        if files is not None or not bundle.answers:
            generator = retargeted_generator(bundle, cost, steps=steps, track=track)
        candidates = candidates_of(bundle, generator)
        statistics: Mapping[Arch, Statistics] = {}
        agreement: Mapping[Arch, float] = {}
        photos: Photos | None = None
        if files is not None:
            sides = {bundle.space.resolution(arch) for arch in candidates}
            photos = read_photos(
                files, bundle.preprocess, sides, at_most=_PHOTOS, least=_LEAST_PHOTOS
            )
            missing = missing_statistics(bundle, candidates)
            statistics = measured_statistics(
                bundle.space,
                bundle.weights,
                progress.track(missing, "BatchNorm statistics", len(missing)),
                lambda side: calibration_batches(photos, side, len(photos)),
            )
            tried = progress.track(candidates, "agreement with the largest", len(candidates))
            agreement = agreements(bundle, tried, statistics, photos)
    answers = cost_answers(bundle.space, table, better(cost, candidates, agreement))
    kept = set(answers.archs())
    statistics = {arch: own for arch, own in statistics.items() if arch in kept}
    report = None if generator is None else report_generator(generator)
    told: dict[str, JsonValue] = {
        "answers": len(answers.answers),
        "of_the_generator": len(kept - set(bundle.archs())),
        "images": len(photos) if photos is not None else None,
        "steps": steps if report is not None else 0,
        "mean_error": None if report is None else round(report.mean_error, 5),
        "measured": json.loads(json.dumps(dict(table.measured))),
    }
    save_with_cost(source, out, answers, statistics, told)
    return {
        "bundle": str(out),
        "cost": cost.name,
        "range": {"min": cost.value(answers.min), "max": cost.value(cost.max), "unit": cost.unit},
        **told,
    }


def retargeted_generator(
    bundle: Bundle,
    cost: Cost,
    *,
    steps: int = STEPS,
    track: Callable[[range], Iterable[int]] = iter,
) -> ArchitectureGenerator:
    """The bundle's generator, after it has learned another cost."""
    generator = ArchitectureGenerator(bundle.space, cost)
    generator.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in bundle.generator.items()})
    fit_to_budgets(
        generator,
        RewardingLoss(budgets=32),
        steps=steps,
        rng=torch.Generator().manual_seed(0),
        track=track,
    )
    return generator


def candidates_of(bundle: Bundle, generator: ArchitectureGenerator | None) -> list[Arch]:
    """What may be answered: the bundle's own answers, and a generator's over the range.

    None is smaller than the bundle's smallest: it begins there for a reason.
    """
    if generator is None:
        return list(bundle.archs())
    asked = answers_within(policy_of(generator), generator.cost.even(_CANDIDATES))
    found = dict.fromkeys((*bundle.archs(), *asked, bundle.space.largest))
    return [arch for arch in found if bundle.space.flops(arch) >= bundle.min_flops]


def better(cost: Cost, archs: Sequence[Arch], agreement: Mapping[Arch, float]) -> list[Arch]:
    """Those that have more FLOPs than any cheaper one, and agree more often where that is known."""
    flops = cost.space.flops
    kept: list[Arch] = []
    for arch in sorted(archs, key=lambda a: (cost.of(a), -flops(a))):
        if not kept or (
            flops(arch) > flops(kept[-1])
            and (not agreement or agreement[arch] > agreement[kept[-1]])
        ):
            kept.append(arch)
    return kept


def agreements(
    bundle: Bundle,
    archs: Iterable[Arch],
    statistics: Mapping[Arch, Statistics],
    photos: Photos,
) -> dict[Arch, float]:
    """How often each answers what the largest does, as served; ``statistics``: of new ones."""
    space = bundle.space

    def answered(arch: Arch) -> np.ndarray:
        own = statistics[arch] if arch in statistics else bundle.arch_statistics(arch)
        weights = fold_norms(space, slice_weights(space, arch, bundle.weights), own)
        graph = cut_graph(bundle.template, space, arch, weights).SerializeToString()
        options = session_options(1, "cpu", convolutional=bool(space.norms))
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        side = space.resolution(arch)
        return np.concatenate(
            [
                np.asarray(session.run(None, {"images": batch.numpy()})[0]).argmax(1)
                for batch in calibration_batches(photos, side, len(photos))
            ]
        )

    wanted = answered(space.largest)
    return {arch: float((answered(arch) == wanted).mean()) for arch in archs}


def missing_statistics(bundle: Bundle, archs: Sequence[Arch]) -> list[Arch]:
    """Archs that have no BatchNorm statistics in the bundle."""
    if not bundle.space.norms or SHARED in bundle.statistics:
        return []
    return [arch for arch in archs if bundle.space.arch_id(arch) not in bundle.statistics]
