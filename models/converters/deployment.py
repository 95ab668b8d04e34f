"""From a public checkpoint to a bundle, without an image. Uses torch.

Weights come from the checkpoint. The generator learns from the resource loss alone (Eq. 10): it
keeps budgets, but has not learnt which of the archs at a budget is best. BatchNorm takes the
statistics that the checkpoint stores. The bundle's provenance says both.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from models.arch import Arch
from models.bundle import FrontierRow, save_bundle
from models.converters import convert
from models.decode import decode
from models.generator import ArchitectureGenerator
from models.policy import GeneratorPolicy
from models.preprocess import Preprocess
from models.relaxed import RelaxedFlops
from models.resource_loss import ResourceLoss, fit_to_budgets
from models.space import SearchSpace
from models.template import export_template

IMAGENET = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_ratio=0.875)
"""What both public projects evaluate with."""

GENERATOR_STEPS = 1000
_BUDGETS_A_STEP = 32
_CANDIDATES = 400


def convert_to_bundle(
    converter: str, checkpoint: Path, out: Path, *, steps: int = GENERATOR_STEPS
) -> dict[str, object]:
    """Write a bundle that answers as the checkpoint's subnets do; tells what it holds.

    ``steps``: of the generator on the resource loss. Labels are the class numbers: a checkpoint
    has no names. Raises ValueError for a checkpoint that cannot be carried over, before anything
    is written.
    """
    converted = convert(converter, checkpoint)
    space = converted.space
    print(f"{checkpoint} fits {space.name}; training its generator", file=sys.stderr)
    generator = fit_generator(space, steps)
    weights = {name: p.detach().numpy() for name, p in generator.state_dict().items()}
    policy = GeneratorPolicy(space, weights)
    candidates = {}
    for budget in np.linspace(space.min_flops, space.max_flops, _CANDIDATES):
        arch = decode(space, policy.log_probabilities(float(budget)), float(budget))
        candidates[space.flops(arch)] = arch
    ladder = sorted(candidates.items())
    rows = ladder[:: max(len(ladder) // 8, 1)]
    statistics = {arch: converted.arch_statistics(arch) for _, arch in ladder}
    save_bundle(
        out,
        name=f"{converter}-{space.name}",
        space=space,
        preprocess=IMAGENET,
        labels=[str(index) for index in range(space.num_classes)],
        groups=[flops for flops, _ in rows],
        frontier=[_row(space, arch) for _, arch in rows],
        answers=[(float(flops), arch) for flops, arch in ladder] if space.norms else [],
        weights=converted.weights,
        generator=weights,
        statistics=statistics if space.norms else {},
        template=export_template(space),
        provenance={
            "converted_from": converter,
            "checkpoint": checkpoint.name,
            "generator": f"resource loss only, {steps} steps, no images",
            "batch_norm": "the checkpoint's own statistics" if space.norms else None,
        },
    )
    return {
        "bundle": str(out),
        "space": space.name,
        "classes": space.num_classes,
        "flops": {"min": space.min_flops, "max": space.max_flops},
        "generator": "trained on the resource loss only: it keeps budgets, no image was seen",
    }


def fit_generator(space: SearchSpace, steps: int, seed: int = 0) -> ArchitectureGenerator:
    """A generator that keeps budgets over the whole range (L_RC and a little entropy)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = ArchitectureGenerator(space)
    fit_to_budgets(
        generator,
        ResourceLoss(RelaxedFlops(space.flops_rule), budgets=_BUDGETS_A_STEP),
        steps=steps,
        learning_rate=3e-3,
        temperatures=(1.0, 0.3),
        rng=torch.Generator().manual_seed(seed),
    )
    return generator


def _row(space: SearchSpace, arch: Arch) -> FrontierRow:
    flops = space.flops(arch)
    return FrontierRow(float(flops), arch, flops, space.params(arch), None, None)
