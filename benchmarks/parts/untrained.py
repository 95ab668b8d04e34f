"""Bundles of spaces that nobody has trained here: random weights, an untrained generator.

They run as long as trained ones and answer nonsense. ``write_published`` also fills in the table:
subnets that others trained, with the accuracy that they published. So it can be seen what serving
makes of a trained supernet; the weights in the bundle do not have that accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from models.bundle.folder import FrontierRow, save_bundle
from models.generator.answer import answer_within
from models.generator.network import ArchitectureGenerator
from models.generator.policy import GeneratorPolicy
from models.images.preprocess import Preprocess
from models.nets import build_net
from models.nets.calibration import calibrate
from models.onnx.template import export_template
from models.space.arch import Arch
from models.space.describe import read_arch
from models.space.search_space import SearchSpace
from models.spaces import get_space
from models.spaces.published import published

_ANSWERS = 16
"""Archs with BatchNorm statistics; without BatchNorm any arch can be answered."""


Answer = tuple[float, Arch, float | None]
"""Budget in FLOPs, arch, accuracy."""

PUBLISHED_ACCURACY: Mapping[str, Mapping[str, float]] = {
    # ImageNet, top 1: github.com/facebookresearch/AttentiveNAS, README
    "attentivenas": {
        "attentivenas-a0": 0.773,
        "attentivenas-a1": 0.784,
        "attentivenas-a2": 0.788,
        "attentivenas-a3": 0.791,
        "attentivenas-a4": 0.798,
        "attentivenas-a5": 0.801,
        "attentivenas-a6": 0.807,
    }
}
"""By space and published arch (``models.spaces.published``)."""


def write_untrained(space_name: str, folder: Path, seed: int) -> None:
    """A valid bundle for timing. Raises ValueError for an unknown space."""
    space = get_space(space_name)
    budgets = np.linspace(space.min_flops, space.max_flops, _ANSWERS if space.norms else 2).tolist()

    def answers(policy: GeneratorPolicy) -> list[Answer]:
        return [(b, answer_within(policy, b), None) for b in budgets]

    _write(space, folder, f"untrained-{space.name}", answers, seed)


def write_published(space_name: str, folder: Path, seed: int) -> None:
    """A bundle of published subnets only, each answered from its own FLOPs on.

    Raises ValueError for a space without published accuracies.
    """
    if space_name not in PUBLISHED_ACCURACY:
        known = ", ".join(PUBLISHED_ACCURACY)
        raise ValueError(f"no published accuracies for {space_name!r}; there are: {known}")
    space, accuracy = get_space(space_name), PUBLISHED_ACCURACY[space_name]
    files = {entry.arch.stem: entry.arch for entry in published()}
    archs = [(read_arch(space, str(files[name])), accuracy[name]) for name in accuracy]
    answers = sorted((float(space.flops(arch)), arch, right) for arch, right in archs)
    _write(space, folder, f"published-{space.name}", lambda _: answers, seed)


def _write(
    space: SearchSpace,
    folder: Path,
    name: str,
    answers_of: Callable[[GeneratorPolicy], Sequence[Answer]],
    seed: int,
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, generator = build_net(space), ArchitectureGenerator(space)
        side = space.resolution(space.largest)
        images = torch.randn(4, 3, side, side)
    weights = {name: p.detach().numpy() for name, p in generator.state_dict().items()}
    answers = answers_of(GeneratorPolicy(generator.cost, weights))
    statistics = {}
    for _, arch, _ in answers if space.norms else ():
        side = space.resolution(arch)
        measured = calibrate(net, arch, [images[:, :, :side, :side]])
        statistics[arch] = {n: (m.numpy(), v.numpy()) for n, (m, v) in measured.items()}
    save_bundle(
        folder,
        name=name,
        space=space,
        preprocess=Preprocess((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        labels=[str(index) for index in range(space.num_classes)],
        groups=[space.max_flops],
        frontier=[
            FrontierRow(budget, arch, space.flops(arch), space.params(arch), accuracy, None)
            for budget, arch, accuracy in answers
        ],
        answers=[(b, arch) for b, arch, _ in answers] if space.norms else (),
        weights={n: p.detach().numpy() for n, p in net.named_parameters()},
        generator=weights,
        statistics=statistics,
        template=export_template(space),
        provenance={"recipe": "untrained", "seed": seed},
    )
