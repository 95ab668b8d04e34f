"""Activation checkpointing keeps less and changes no gradient."""

import pytest
import torch
import torch.nn.functional as F

from models.generator.network import ArchitectureGenerator
from models.nets import build_net
from models.spaces import get_space
from tests.one_hot import relax
from trainer.dry_run.activations import ActivationBytes
from trainer.engine.probe import BatchProbe

NETS = ["nano-vit", "nano-cnn", "cifar-vit"]


def net_of(name):
    torch.manual_seed(0)
    net = build_net(get_space(name)).train()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.5)
    side = net.space.resolution(net.space.largest)
    return net, torch.randn(8, 3, side, side), torch.arange(8)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
@pytest.mark.parametrize("subnet", ["whole", "sliced", "masked"])
def test_gradients_are_the_same(name, drop_path, subnet):
    net, images, labels = net_of(name)
    found = []
    for recompute in (False, True):
        relaxed = relax(net.space, net.space.largest)
        for policy in relaxed.policies.values():
            policy.requires_grad_()
        arch = {"whole": None, "sliced": net.space.smallest, "masked": relaxed}[subnet]
        net.zero_grad()
        torch.manual_seed(3)
        logits = net(images, arch, drop_path=drop_path, recompute=recompute)
        after = torch.rand(())  # nobody after it draws other numbers
        F.cross_entropy(logits, labels).backward()
        gradients = [p.grad for p in net.parameters()]
        gradients += [policy.grad for policy in relaxed.policies.values()]
        found.append((logits, after, gradients))
    (logits, after, gradients), (logits2, after2, gradients2) = found
    assert torch.equal(logits, logits2)
    assert torch.equal(after, after2)
    assert any(gradient is not None and gradient.any() for gradient in gradients)
    for one, two in zip(gradients, gradients2, strict=True):
        if subnet != "masked":
            assert (one is None and two is None) or torch.equal(one, two)
        elif one is not None:  # a block's masks are its own: a policy's gradients add up otherwise
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_less_is_kept_for_the_backward_pass(name):
    net, images, _ = net_of(name)
    kept = []
    for recompute in (False, True):
        with ActivationBytes(net.parameters()) as counted:
            net(images, relax(net.space, net.space.largest), recompute=recompute).sum()
        kept.append(counted.peak)
    assert kept[1] < 0.5 * kept[0]


def test_the_probe_differentiates_at_the_weights_of_before():
    """They are in the net's place during the forward pass alone."""
    net, images, labels = net_of("nano-vit")
    space = net.space
    torch.manual_seed(1)
    before = {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in net.named_parameters()}
    generator = ArchitectureGenerator(space)
    gradients = []
    for recompute in (False, True):
        noise = torch.Generator().manual_seed(0)
        probe = BatchProbe(
            net, generator, before, images, labels, noise=noise, temperature=1.0,
            recompute=recompute,
        )  # fmt: skip
        budget = torch.tensor(0.6 * space.max_flops, dtype=torch.float64, requires_grad=True)
        loss = probe.loss(probe.generate(budget), before=True)
        (gradient,) = torch.autograd.grad(loss, budget)
        gradients.append(float(gradient))
    assert gradients[0] != 0
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)
