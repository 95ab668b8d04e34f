"""Features for dense tasks: of every family, in torch, as a file, and that they carry a task."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from benchmarks.parts.bundles import CIFAR10_CNN
from models.__main__ import main
from models.bundle.folder import load_bundle
from models.nets import build_net
from models.nets.deployed import deployed_net, exported_program, strides
from models.nets.extract import extract
from models.spaces import SPACES, get_space


@pytest.mark.parametrize("name", [n for n in sorted(SPACES) if n.startswith(("nano", "cifar"))])
def test_a_subnet_has_the_features_of_its_supernet(name):
    """Of any batch, square maps whose strides grow; those of the extracted net are the same."""
    space = get_space(name)
    torch.manual_seed(0)
    net = build_net(space).train()
    for arch in (space.smallest, space.largest, space.random_arch(np.random.default_rng(0))):
        side = space.resolution(arch)
        images = torch.randn(2, 3, side, side)
        maps, own = net.features(images, arch), extract(net, arch).features(images)
        sides = [one.shape[-1] for one in maps]
        assert sides == sorted(set(sides), reverse=True)
        assert all(one.ndim == 4 and one.shape[-2] == one.shape[-1] for one in maps)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(maps, own, strict=True))


def test_a_file_of_features_takes_other_sides_and_gives_what_torch_gives(tmp_path, capsys):
    bundle = load_bundle(CIFAR10_CNN)
    arch = bundle.answer(4e6)
    net = deployed_net(bundle, arch)
    path = tmp_path / "maps.onnx"
    asked = ["extract", str(CIFAR10_CNN), "--flops", "4M", "--features", "--out", str(path)]
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out)["id"] == bundle.space.arch_id(arch)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == [f"stride_{s}" for s in strides(net)]
    coarsest = strides(net)[-1]
    for height, width in ((32, 32), (3 * coarsest, 5 * coarsest)):
        images = torch.randn(3, 3, height, width)
        with torch.no_grad():
            wanted = net.features(images)
        for one, given in zip(wanted, session.run(None, {"images": images.numpy()}), strict=True):
            assert one.shape == given.shape
            assert np.abs(one.numpy() - given).max() < 1e-3
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert told["id"] == bundle.space.arch_id(arch)


def test_an_extracted_program_gives_logits_or_features(tmp_path):
    bundle = load_bundle(CIFAR10_CNN)
    arch = bundle.answer(4e6)
    net, images = deployed_net(bundle, arch), torch.randn(3, 3, 32, 32)
    path = tmp_path / "some.pt2"
    for features in (False, True):
        path.write_bytes(exported_program(bundle, arch, features=features))
        with torch.no_grad():
            given = torch.export.load(path).module()(images)
            wanted = net.features(images) if features else net(images)
        for one, other in zip(given, wanted, strict=True):
            assert torch.allclose(one, other, atol=1e-4)


def test_extract_names_what_it_can_write(tmp_path, capsys):
    out = str(tmp_path / "some.txt")
    assert main(["extract", str(CIFAR10_CNN), "--flops", "4M", "--out", out]) == 2
    assert "name a file .onnx, or .pt2" in capsys.readouterr().err


def drawn(count, side, seed):
    """Discs and squares of random colours on a noisy ground: images, and a class for each pixel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    images = rng.normal(0, 0.3, (count, 3, side, side)).astype(np.float32)
    classes = np.zeros((count, side, side), np.int64)
    for image, labels in zip(images, classes, strict=True):
        for kind in rng.permutation([1, 2]):
            cy, cx, radius = rng.integers(12, side - 12), rng.integers(12, side - 12), 9
            distance = (
                np.hypot(y - cy, x - cx) if kind == 1 else np.maximum(abs(y - cy), abs(x - cx))
            )
            image[:, distance < radius] += rng.normal(0, 1.2, (3, 1)).astype(np.float32)
            labels[distance < radius] = kind
    return torch.from_numpy(images), torch.from_numpy(classes)


def mean_iou(predicted, classes):
    shares = []
    for kind in range(3):
        both = ((predicted == kind) & (classes == kind)).sum()
        either = ((predicted == kind) | (classes == kind)).sum()
        shares.append(float(both / either))
    return sum(shares) / 3


def test_a_linear_head_on_frozen_features_segments_drawn_shapes():
    """It tells discs from squares of any colour, which a pixel's own colour cannot."""
    bundle = load_bundle(CIFAR10_CNN)
    net = deployed_net(bundle, bundle.answer(12e6))

    def pixels(images, *, features):
        maps = net.features(images) if features else [images]
        wide = [F.interpolate(one, images.shape[-2:], mode="bilinear") for one in maps]
        stacked = torch.cat(wide, 1).permute(0, 2, 3, 1).flatten(0, 2)
        return torch.cat((stacked, torch.ones(len(stacked), 1)), 1).double()

    (train, classes), (test, wanted) = drawn(32, 48, 0), drawn(12, 48, 1)
    scores = []
    with torch.no_grad():
        for features in (False, True):
            x = pixels(train, features=features)
            y = F.one_hot(classes.flatten(), 3).double()
            head = torch.linalg.solve(x.T @ x + 1e-2 * torch.eye(x.shape[1]).double(), x.T @ y)
            predicted = (pixels(test, features=features) @ head).argmax(1)
            scores.append(mean_iou(predicted, wanted.flatten()))
    assert scores[1] > scores[0] + 0.2, scores
