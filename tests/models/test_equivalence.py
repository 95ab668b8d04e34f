"""One subnet, five ways: masked, sliced, extracted, folded and as ONNX in ONNX Runtime.

All answer alike within 1e-4 of the largest logit: at both ends of a space, for its published archs
and for random ones, images alone and three together. Every full-scale space in the slow tests.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import models.nets.vit
from models.nets import build_net
from models.nets.calibration import calibrate
from models.nets.elastic import AbstractNet
from models.nets.extract import extract, extract_folded
from models.onnx.graph import cut_graph
from models.onnx.graph_template import INPUT, OUTPUT, Template
from models.onnx.template import export_template
from models.space.arch import Arch
from models.space.search_space import SearchSpace
from models.space.weights import fold_norms, slice_weights
from models.spaces import SPACES, get_space
from models.spaces.published import published
from models.spaces.vit import vit_space
from tests.bundles import template_of
from tests.one_hot import relax

FULL_SCALE = [
    name for name in SPACES if name.partition("-")[0] in ("vit", "bignas", "attentivenas")
]
EXPORTED_SLOWLY = [pytest.param(f"cifar-{kind}", marks=pytest.mark.slow) for kind in ("cnn", "vit")]
TOLERANCE = 1e-4
# Small, but what relative position and a bias of its own for each number of heads can get wrong.
RELATIVE = vit_space(
    "nano-vit-relative",
    image=20,
    patch=4,
    embed_dim=(16, 24),
    depth=(1, 2),
    num_heads=(1, 2, 3),
    mlp_ratio=(1.5, 2),
    head_dim=8,
    num_classes=10,
    relative_position=2,
    stepped_bias=True,
)


def supernet(space: SearchSpace) -> AbstractNet:
    """Random weights, none at zero or one, where a mistake may not show."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = build_net(space)
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return net.eval()


def some_archs(space: SearchSpace, random: int) -> list[Arch]:
    rng = np.random.default_rng(7)
    listed = [
        space.arch_from_json(json.loads(entry.arch.read_text()))
        for entry in published()
        if entry.space == space.name.replace("-autoformer", "-rpe")
    ]
    archs = [
        space.smallest,
        space.largest,
        *listed,
        *(space.random_arch(rng) for _ in range(random)),
    ]
    return list(dict.fromkeys(archs))


def check(space: SearchSpace, template: bytes, archs: list[Arch]) -> None:
    net, parsed = supernet(space), Template.parse(template)
    whole = {name: parameter.detach().numpy() for name, parameter in net.named_parameters()}
    for arch in archs:
        side = space.resolution(arch)
        images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
        measured = calibrate(net, arch, [images, -0.5 * images])
        arrays = {name: (mean.numpy(), var.numpy()) for name, (mean, var) in measured.items()}
        folded = extract_folded(net, arch, arrays)
        weights = fold_norms(space, slice_weights(space, arch, whole), arrays)
        model = cut_graph(parsed, space, arch, weights)
        onnx.checker.check_model(model, full_check=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for batch in (images[:1], images):
            with torch.no_grad():
                # Masks and BatchNorms of one arch go together in training mode only.
                net.train(bool(space.norms))
                wanted = net(batch, arch)
                ways = {
                    "masked": net(batch, relax(space, arch)),
                    "extracted": extract(net, arch)(batch),
                }
                compare(ways, wanted, space, arch)
                net.eval()
                wanted = net(batch, arch, measured or None)
                ways = {
                    "extracted": extract(net, arch)(batch, statistics=measured or None),
                    "folded": folded(batch),
                    "onnx": torch.from_numpy(
                        np.asarray(session.run([OUTPUT], {INPUT: batch.numpy()})[0])
                    ),
                }
                compare(ways, wanted, space, arch)


def compare(
    ways: dict[str, torch.Tensor], wanted: torch.Tensor, space: SearchSpace, arch: Arch
) -> None:
    for way, given in ways.items():
        assert given.shape == wanted.shape
        error = ((given - wanted).abs().max() / wanted.abs().max()).item()
        assert error < TOLERANCE, (way, error, space.arch_to_json(arch))


@pytest.mark.parametrize("name", ["nano-cnn", "nano-vit", *EXPORTED_SLOWLY])
def test_five_ways_of_small_subnets_answer_alike(name):
    space = get_space(name, 10)
    check(space, template_of(name), some_archs(space, random=3))


def test_five_ways_with_relative_position_answer_alike():
    check(RELATIVE, export_template(RELATIVE), some_archs(RELATIVE, random=6))


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SCALE)
def test_five_ways_of_full_scale_subnets_answer_alike(name):
    space = get_space(name)
    check(space, export_template(space), some_archs(space, random=1))


@pytest.mark.parametrize("masked", [True, False])
def test_fused_attention_is_the_plain_products(monkeypatch, masked):
    space = get_space("nano-vit")
    torch.manual_seed(0)
    net, images = build_net(space), torch.randn(4, 3, 16, 16)
    found = []
    for fused in (False, True):
        monkeypatch.setattr(models.nets.vit, "is_fused", lambda _, fused=fused: fused)
        asked = relax(space, space.smallest) if masked else space.smallest
        logits = net(images, asked)
        gradients = torch.autograd.grad(
            logits.square().sum(), [*net.parameters()], allow_unused=True
        )
        found.append([logits, *(g for g in gradients if g is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
