"""``python -m models retarget``: a bundle that also answers budgets of another cost. Uses torch.

The generator goes on from where it learned FLOPs, with the resource loss (Eq. 10) on the new cost
and a small reward for multiply-adds: of archs that take as long, the one that computes more. No
image is needed for that. Its answers over a fine grid of budgets become the bundle's, save those
that have fewer multiply-adds than a cheaper one. FLOPs are answered as before.

BatchNorm's statistics belong to an arch, and most archs of the new answers have none. With images
they are measured. Without, they are estimated from those of the archs that have some
(``estimated_statistics``). A bundle with one set of statistics for all archs needs neither.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from models.bundle.costs import CostAnswers, cost_answers
from models.bundle.folder import Bundle, load_bundle, save_with_cost
from models.bundle.value import SHARED
from models.converters.deployment import calibration_batches, refuse_out
from models.converters.progress import Progress
from models.costs import get_cost
from models.costs.cost import Cost
from models.costs.table import CostTable
from models.generator.decode import decode_all
from models.generator.network import ArchitectureGenerator
from models.generator.report import policy_of, report_generator
from models.generator.resource_loss import ResourceLoss, fit_to_budgets
from models.images.photos import find_photos, read_photos
from models.nets import build_net
from models.nets.calibration import calibrate
from models.space.arch import Arch
from models.space.relaxed import RelaxedCost
from models.space.search_space import SearchSpace
from models.space.sizes import Norm
from models.space.weights import Statistics

STEPS = 800
REWARD = 0.3
"""For the largest subnet's multiply-adds, beside the loss: so small that budgets are kept."""

_CANDIDATES = 400
_PHOTOS, _LEAST_PHOTOS = 512, 32
_RIDGE = 0.05
_LEAST_VARIANCE = 1e-5


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

    ``data``: a folder of images, which need no labels, on which BatchNorm is measured. Raises
    ValueError if ``out`` exists, for a table of another space, and for a folder without images.
    """
    refuse_out(out)
    bundle = load_bundle(source)
    cost = get_cost(table.cost, bundle.space, table)
    files = None if data is None else find_photos(data)
    if files is not None and (not bundle.space.norms or SHARED in bundle.statistics):
        raise ValueError("--data: this bundle has no statistics to measure; leave it out")
    with Progress() as progress:

        def track(every: range) -> Iterable[int]:
            return progress.track(every, f"generator, {cost.name}", len(every))

        generator = retargeted_generator(bundle, cost, steps=steps, track=track)
        answers = answers_of(bundle, generator, table)
        missing = missing_statistics(bundle, answers)
        statistics: Mapping[Arch, Statistics] = {}
        how = "the bundle's own"
        if missing and files is None:
            how = f"estimated for {len(missing)} archs"
            statistics = {arch: estimated_statistics(bundle, arch) for arch in missing}
        elif files is not None:
            sides = {bundle.space.resolution(arch) for arch in missing}
            photos = read_photos(
                files, bundle.preprocess, sides, at_most=_PHOTOS, least=_LEAST_PHOTOS
            )
            how = f"measured for {len(missing)} archs on {len(photos)} images"
            statistics = measured_statistics(
                bundle,
                progress.track(missing, "BatchNorm statistics", len(missing)),
                lambda side: calibration_batches(photos, side, len(photos)),
            )
    report = report_generator(generator)
    told: dict[str, JsonValue] = {
        "answers": len(answers.answers),
        "statistics": how,
        "steps": steps,
        "mean_error": round(report.mean_error, 5),
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
    seed: int = 0,
    track: Callable[[range], Iterable[int]] = iter,
) -> ArchitectureGenerator:
    """The bundle's generator, after it has learned another cost."""
    generator = ArchitectureGenerator(bundle.space, cost)
    generator.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in bundle.generator.items()})
    fit_to_budgets(
        generator,
        RewardingLoss(budgets=32),
        steps=steps,
        learning_rate=3e-3,
        temperatures=(1.0, 0.3),
        rng=torch.Generator().manual_seed(seed),
        track=track,
    )
    return generator


def answers_of(bundle: Bundle, generator: ArchitectureGenerator, table: CostTable) -> CostAnswers:
    """What is answered from the cheapest subnet to the largest.

    The bundle's own answers are among the candidates. None is smaller than the bundle's smallest:
    it begins there for a reason.
    """
    space, cost = bundle.space, generator.cost
    asked = decode_all(policy_of(generator), cost.even(_CANDIDATES))
    candidates = [a for a in (*asked, *bundle.archs()) if space.flops(a) >= bundle.min_flops]
    most = 0
    kept: list[Arch] = []
    for arch in sorted(candidates, key=lambda a: (cost.of(a), -space.flops(a))):
        if space.flops(arch) > most:
            most = space.flops(arch)
            kept.append(arch)
    return cost_answers(space, table, kept)


def missing_statistics(bundle: Bundle, answers: CostAnswers) -> list[Arch]:
    """Archs that are answered and have no BatchNorm statistics in the bundle."""
    if not bundle.space.norms or SHARED in bundle.statistics:
        return []
    return [a for a in answers.archs() if bundle.space.arch_id(a) not in bundle.statistics]


def measured_statistics(
    bundle: Bundle, archs: Iterable[Arch], batches: Callable[[int], Iterable[Tensor]]
) -> dict[Arch, Statistics]:
    """BatchNorm statistics of archs on images; ``batches`` gives them for a resolution."""
    with torch.random.fork_rng(devices=[]):
        net = build_net(bundle.space)
    net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in bundle.weights.items()})
    net.requires_grad_(False)
    measured: dict[Arch, Statistics] = {}
    for arch in archs:
        found = calibrate(net, arch, batches(bundle.space.resolution(arch)))
        measured[arch] = {n: (mean.numpy(), var.numpy()) for n, (mean, var) in found.items()}
    return measured


def estimated_statistics(bundle: Bundle, arch: Arch) -> Statistics:
    """BatchNorm statistics of an arch from those of the archs that have some.

    For each channel, its mean and the logarithm of its variance as a linear function of the choices
    that come before it in the network (ridge regression over the bundle's archs).
    """
    space = bundle.space
    known = {other: bundle.arch_statistics(other) for other in bundle.archs()}
    return {
        norm.name: _estimated(space, norm, arch, known)
        for norm in space.norms
        if norm.block is None or norm.block.present(arch)
    }


def _estimated(
    space: SearchSpace, norm: Norm, arch: Arch, known: Mapping[Arch, Statistics]
) -> tuple[np.ndarray, np.ndarray]:
    channels = norm.size(arch)
    names = [*space.weight[f"{norm.conv}.weight"].decisions]
    names += [] if norm.block is None else [norm.block.depth]
    last = max(i for i, d in enumerate(space.decisions) if d.name in names)
    having = [other for other, own in known.items() if norm.name in own]
    own = np.full((len(having), 2, channels), math.nan)
    for row, other in zip(own, having, strict=True):
        mean, variance = (one[:channels] for one in known[other][norm.name])
        row[:, : len(mean)] = mean, np.log(variance + _LEAST_VARIANCE)
    choices = np.stack([_one_hot(space, other, last) for other in (*having, arch)])
    estimate = np.empty((2, channels))
    there = ~np.isnan(own[:, 0])
    for count in np.unique(there.sum(axis=0)):  # wider channels are those of fewer archs
        columns = np.flatnonzero(there.sum(axis=0) == count)
        rows = there[:, columns[0]]
        wanted = own[rows][:, :, columns].reshape(int(count), -1)
        level, design = wanted.mean(axis=0), choices[:-1][rows]
        penalty = _RIDGE * np.eye(design.shape[1])
        slopes = np.linalg.solve(design.T @ design + penalty, design.T @ (wanted - level))
        estimate[:, columns] = (level + choices[-1] @ slopes).reshape(2, -1)
    variance = np.maximum(np.exp(estimate[1]) - _LEAST_VARIANCE, 0)
    return estimate[0].astype(np.float32), variance.astype(np.float32)


def _one_hot(space: SearchSpace, arch: Arch, last: int) -> np.ndarray:
    """1, and for each decision up to ``last`` which choice it is, the first left out."""
    found = [1.0]
    for decision in space.decisions[: last + 1]:
        found += [float(arch[decision.name] == choice) for choice in decision.choices[1:]]
    return np.array(found)
