"""Bundles of spaces that nobody has trained here: random weights, an untrained generator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from models.bundle import FrontierRow, save_bundle
from models.calibration import calibrate
from models.decode import decode
from models.generator import ArchitectureGenerator
from models.nets import build_net
from models.policy import GeneratorPolicy
from models.preprocess import Preprocess
from models.spaces import get_space
from models.template import export_template

_ANSWERS = 16
"""Archs with BatchNorm statistics; without BatchNorm any arch can be answered."""


def write_untrained(space_name: str, folder: Path, seed: int) -> None:
    """A valid bundle for timing. Raises ValueError for an unknown space."""
    space = get_space(space_name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, generator = build_net(space), ArchitectureGenerator(space)
        side = space.resolution(space.largest)
        images = torch.randn(4, 3, side, side)
    policy_weights = {name: p.detach().numpy() for name, p in generator.state_dict().items()}
    policy = GeneratorPolicy(space, policy_weights)
    budgets = np.linspace(space.min_flops, space.max_flops, _ANSWERS if space.norms else 2).tolist()
    answers = [(b, decode(space, policy.log_probabilities(b), b)) for b in budgets]
    statistics = {}
    for _, arch in answers if space.norms else ():
        side = space.resolution(arch)
        measured = calibrate(net, arch, [images[:, :, :side, :side]])
        statistics[arch] = {n: (m.numpy(), v.numpy()) for n, (m, v) in measured.items()}
    save_bundle(
        folder,
        name=f"untrained-{space.name}",
        space=space,
        preprocess=Preprocess((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        labels=[str(index) for index in range(space.num_classes)],
        groups=[space.max_flops],
        frontier=[
            FrontierRow(budget, arch, space.flops(arch), space.params(arch), None, None)
            for budget, arch in answers
        ],
        answers=answers if space.norms else (),
        weights={name: p.detach().numpy() for name, p in net.named_parameters()},
        generator=policy_weights,
        statistics=statistics,
        template=export_template(space),
        provenance={"recipe": "untrained", "seed": seed},
    )
