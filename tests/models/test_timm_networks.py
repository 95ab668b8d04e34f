"""Networks of timm, at random, are archs of the spaces that they are carried into."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from models.converters.timm_networks import fit_deit, fit_efficientnet_b0
from models.nets import build_net
from models.nets.normalize import FrozenStatistics
from models.space.weights import SharedStatistics, weight_slices


def tensors_of(net):
    return {name: value.numpy() for name, value in net.state_dict().items()}


@torch.no_grad()
def supernet_with(found):
    """A supernet at random, with what was found in its place."""
    torch.manual_seed(1)
    net = build_net(found.space).eval()
    slices = weight_slices(found.space, found.part)
    for name, weight in found.weights.items():
        net.get_parameter(name)[slices[name]] = torch.from_numpy(np.ascontiguousarray(weight))
    return net


def test_efficientnet_b0_is_an_arch_of_bignas():
    torch.manual_seed(0)
    theirs = timm.create_model("efficientnet_b0", num_classes=7)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        theirs(torch.randn(4, 3, 64, 64))
    theirs.eval()
    tensors = tensors_of(theirs)
    found = fit_efficientnet_b0(tensors, "bignas")
    names = {}
    for name in found.weights:  # the same numbers lead back to the name of each BatchNorm
        if name.endswith("norm.weight"):
            names[name.removesuffix(".weight")] = name
    norms = [m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)]
    ours = [norm for norm in found.space.norms if f"{norm.name}.weight" in found.weights]
    assert len(norms) == len(ours) == len(names)
    statistics = {
        norm.name: (module.running_mean.numpy(), module.running_var.numpy())
        for norm, module in zip(ours, norms, strict=True)
    }
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        wanted = theirs(images)
        net = supernet_with(found)
        given = net(images, found.part, FrozenStatistics(SharedStatistics(statistics)))
    assert (given - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize(
    ("name", "space"),
    [("deit_tiny_patch16_224", "vit-tiny"), ("deit_small_patch16_224", "vit-small")],
)
def test_deit_is_an_arch_but_for_its_classifier(name, space):
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    found = fit_deit(tensors_of(theirs), space)
    assert not any(key.startswith("classifier.") for key in found.weights)
    net = supernet_with(found)
    images = torch.randn(1, 3, 224, 224)
    width = int(found.part["embed_dim"])
    with torch.inference_mode():
        seen = theirs.forward_features(images)[:, 1:].mean(1)
        classifier = net.get_submodule("classifier")
        wanted = F.linear(seen, classifier.weight[:, :width], classifier.bias)
        given = net(images, found.part)
    assert (given - wanted).abs().max() <= 1e-3 * wanted.abs().max()


def test_what_has_no_place_is_refused_by_name():
    distilled = tensors_of(timm.create_model("deit_tiny_distilled_patch16_224"))
    with pytest.raises(ValueError, match="dist_token"):
        fit_deit(distilled | {"pos_embed": distilled["pos_embed"][:, 1:]}, "vit-tiny")
    with pytest.raises(ValueError, match="embed_dim = 384 is not one of"):
        fit_deit(tensors_of(timm.create_model("deit_small_patch16_224")), "vit-tiny")
    with pytest.raises(ValueError, match=r"no cls_token"):
        fit_deit({}, "vit-tiny")
    with pytest.raises(ValueError, match=r"no classifier\.bias"):
        fit_efficientnet_b0({}, "bignas")
