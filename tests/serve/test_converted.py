"""A converted checkpoint in the engine: five budgets, answers as the checkpoint's own.

Each step of the way is held to the one before: the public implementation's logits, our net with
the converted weights (tests/models), the bundle's graphs, what the engine answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import shiftnas_serve
from models.bundle.folder import Bundle, load_bundle
from models.converters import Converted, convert, deployment
from models.converters.deployment import convert_to_bundle
from models.nets import build_net
from models.nets.elastic import AbstractNet
from models.space.arch import Arch
from models.spaces import get_space
from tests.bundles import template_of
from tests.pictures import encoded, picture
from tests.reference.state import inputs, state

REFERENCE = Path(__file__).parents[1] / "reference"
TOLERANCE = 1e-4


@dataclass
class Case:
    """A bundle, and what it was made from."""

    converted: Converted
    folder: Path
    reference: str | None

    @property
    def net(self) -> AbstractNet:
        net = build_net(self.converted.space).eval()
        weights = self.converted.weights
        net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()})
        return net


def small(folder: Path) -> Case:
    """As if a public checkpoint of a small space had been converted."""
    space = get_space("nano-cnn", 10)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = build_net(space)
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    largest = space.largest
    statistics = {
        n.name: (
            np.full(n.size(largest), 0.1, np.float32),
            np.full(n.size(largest), 0.9, np.float32),
        )
        for n in space.norms
    }
    converted = Converted(space, {k: v.numpy() for k, v in net.state_dict().items()}, statistics)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployment, "convert", lambda *_: converted)
        patch.setattr(deployment, "export_template", lambda _: template_of("nano-cnn"))
        convert_to_bundle("attentivenas", folder / "checkpoint.pth", folder / "bundle", steps=20)
    return Case(converted, folder / "bundle", None)


def public(converter: str, reference: str, folder: Path) -> Case:
    """A checkpoint in a public format, of random weights for which reference answers exist."""
    meta = json.loads((REFERENCE / f"{reference}.json").read_text())
    weights = state(meta["state_dict"], meta["seed"])
    checkpoint = folder / "checkpoint.pth"
    torch.save({"model": {k: torch.from_numpy(v) for k, v in weights.items()}}, checkpoint)
    convert_to_bundle(converter, checkpoint, folder / "bundle", steps=100)
    return Case(convert(converter, checkpoint), folder / "bundle", reference)


SLOW = [pytest.mark.slow, pytest.mark.timeout(1200)]
PUBLIC = [pytest.param(name, marks=SLOW) for name in ("attentivenas", "autoformer")]


@pytest.fixture(scope="module", params=["small", *PUBLIC])
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "small":
        return small(folder)
    reference = {"autoformer": "autoformer_T"}.get(request.param, request.param)
    return public(request.param, reference, folder)


@pytest.fixture(scope="module")
def bundle(case) -> Bundle:
    return load_bundle(case.folder)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def reference_arch(space, given) -> Arch:
    if "layer_num" in given:
        given = {
            "embed_dim": given["embed_dim"][0],
            "depth": given["layer_num"],
            "num_heads": given["num_heads"],
            "mlp_ratio": given["mlp_ratio"],
        }
    return space.arch_from_json(given)


def test_five_budgets_over_http_answer_as_the_checkpoint_does(case, bundle):
    space, preprocess = bundle.space, bundle.preprocess
    photo = picture(320, seed=3)
    net = case.net
    with shiftnas_serve.load(case.folder, prebuild=False) as engine:
        served = set()
        for budget in np.linspace(space.min_flops, space.max_flops, 5).astype(int).tolist():
            found = engine.classify(encoded(photo), flops=budget)
            arch = found.subnet.value
            assert found.subnet.flops == space.flops(arch) <= budget
            assert arch == bundle.answer(budget)
            served.add(arch)
            image = preprocess.array(photo, space.resolution(arch))
            statistics = case.converted.arch_statistics(arch) if space.norms else {}
            tensors = {n: tuple(map(torch.from_numpy, parts)) for n, parts in statistics.items()}
            with torch.no_grad():
                logits = net(torch.from_numpy(image[None]), arch, tensors or None)[0].numpy()
            wanted = softmax(logits.astype(np.float64))
            # an error of the logits is one of the same size in the probabilities' logarithms
            wrong = np.abs(found.probabilities - wanted).max()
            assert wrong <= TOLERANCE * np.abs(logits).max()
        assert len(served) == 5
        assert {space.smallest, space.largest} <= served


@pytest.mark.parametrize("case", PUBLIC, indirect=True, scope="module")
def test_graphs_answer_as_the_public_implementation_where_it_was_asked(case, bundle):
    assert case.reference is not None
    space = bundle.space
    meta = json.loads((REFERENCE / f"{case.reference}.json").read_text())
    checked = 0
    for name, given in meta["archs"].items():
        arch = reference_arch(space, given)
        if space.norms and space.arch_id(arch) not in bundle.statistics:
            continue
        side = space.resolution(arch)
        seed = 300 + side if case.reference == "attentivenas" else meta["input_seed"]
        session = onnxruntime.InferenceSession(
            bundle.build_onnx(arch).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        logits = np.asarray(session.run(None, {"images": inputs(seed, side)})[0])
        with np.load(REFERENCE / f"{case.reference}.npz") as answers:
            wanted = answers[name]
        assert np.abs(logits - wanted).max() <= TOLERANCE * np.abs(wanted).max(), name
        checked += 1
    assert checked >= 2


def test_a_thousand_budgets_are_kept(bundle):
    budgets = np.random.default_rng(0).uniform(bundle.min_flops, 1.05 * bundle.max_flops, 1000)
    for budget in [bundle.min_flops, bundle.max_flops, *budgets.tolist()]:
        assert bundle.space.flops(bundle.answer(budget)) <= budget
