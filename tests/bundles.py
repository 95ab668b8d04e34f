"""Untrained but valid bundles for tests: random weights, real statistics, a trivial generator.

python -m tests.bundles    # record the committed templates anew, when the exporter means to change
"""

from __future__ import annotations

import fcntl
import json
import os
from functools import cache
from pathlib import Path

import torch

from models.bundle.confidence import Confidence
from models.bundle.folder import FrontierRow, add_confidence, load_bundle, save_bundle
from models.generator.answer import answer_within
from models.generator.network import ArchitectureGenerator
from models.generator.policy import GeneratorPolicy
from models.images.preprocess import Preprocess
from models.nets import build_net
from models.nets.calibration import calibrate
from models.onnx.template import export_template
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.spaces import get_space
from tests.conftest import TEMPLATES

ANSWERS = 12
RECORDED = {
    name: Path(__file__).parent / "reference" / f"{name}.onnx" for name in ("nano-cnn", "nano-vit")
}
"""Templates that most tests need; a slow test exports them and compares."""


@cache
def template_of(space_name: str) -> bytes:
    """Exporting takes seconds; all processes of a test session together do it once for a space.

    For any number of classes: cuts take the shapes of weights from the weights.
    """
    if space_name in RECORDED:
        return RECORDED[space_name].read_bytes()
    path = Path(os.environ[TEMPLATES]) / f"{space_name}.onnx"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.write_bytes(export_template(get_space(space_name, 10)))
        return path.read_bytes()


def make_bundle(
    space_name: str, folder: Path, num_classes: int = 10, seed: int = 0, label: str = "class"
) -> Path:
    """Write a bundle into ``folder`` and answer it. ``label``: how labels begin."""
    space = get_space(space_name, num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_net(space)
        for parameter in net.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        generator = ArchitectureGenerator(space)
        images = torch.randn(
            16, 3, space.resolution(space.largest), space.resolution(space.largest)
        )
    weights = {name: p.detach().numpy() for name, p in net.named_parameters()}
    generator_weights = {name: p.detach().numpy() for name, p in generator.state_dict().items()}
    answers = _answers(space, GeneratorPolicy(generator.cost, generator_weights))
    statistics = {}
    for _, arch in answers:
        side = space.resolution(arch)
        measured = calibrate(net, arch, [images[:, :, :side, :side]])
        statistics[arch] = {n: (m.numpy(), v.numpy()) for n, (m, v) in measured.items()}
    save_bundle(
        folder,
        name=f"test-{space_name}",
        space=space,
        preprocess=Preprocess(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        labels=[f"{label} {i}".strip() for i in range(num_classes)],
        groups=[space.max_flops],
        frontier=[
            FrontierRow(budget, arch, space.flops(arch), space.params(arch), 0.1, None)
            for budget, arch in answers
        ],
        answers=answers,
        weights=weights,
        generator=generator_weights,
        statistics=statistics,
        template=template_of(space_name),
        provenance={"recipe": "untrained", "seed": seed},
    )
    return folder


def say_trained_alone(folder: Path, arch: Arch) -> Path:
    """Let a bundle be one of ``trainer.run --arch``."""
    document = json.loads((folder / "bundle.json").read_text())
    archs = [load_bundle(folder).space.arch_to_json(arch)]
    document["provenance"]["trained_with"] = {"recipe": {"sampler_options": {"archs": archs}}}
    (folder / "bundle.json").write_text(json.dumps(document))
    return folder


def make_sure(folder: Path, *, temperature: float = 1.0) -> Path:
    """Let a bundle know how sure it is: larger budgets are shared by larger subnets."""
    bundle = load_bundle(folder)
    flops = sorted({bundle.space.flops(arch) for arch in bundle.archs()})
    shared = [(flops[0], second) for second in flops[1:]] + [(flops[1], flops[-1])]
    pairs = tuple((first + second, first, second) for first, second in shared)
    temperatures = tuple((one, temperature) for one in flops)
    add_confidence(folder, Confidence(temperatures, pairs, images=25, data="none"))
    return folder


def _answers(space: SearchSpace, policy: GeneratorPolicy) -> list[tuple[float, Arch]]:
    low, high = space.min_flops, space.max_flops
    budgets = [low + (high - low) * i / (ANSWERS - 1) for i in range(ANSWERS)]
    return [(b, answer_within(policy, b)) for b in budgets]


if __name__ == "__main__":
    for name, file in RECORDED.items():
        file.write_bytes(export_template(get_space(name, 10)))
