"""Drop path: training leaves out residual branches, and nothing else sees it."""

import pytest
import torch

from models.nets import build_net
from models.nets.elastic import ElasticBatchNorm
from models.nets.view import DropPath, Share, Whole
from models.spaces import get_space
from tests.one_hot import relax

every_family = pytest.mark.parametrize("name", ["nano-vit", "nano-cnn"])


def net_of(name):
    torch.manual_seed(0)
    net = build_net(get_space(name)).train()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:  # a residual branch starts as nothing: its last norm is zero
                parameter.fill_(0.5)
    images = torch.randn(64, 3, 16, 16)
    return net, images


@every_family
def test_branches_are_dropped_image_by_image_and_at_rate_zero_never(name):
    net, images = net_of(name)
    arch = net.space.largest
    for subnet in (arch, relax(net.space, arch)):
        whole = net(images, subnet)
        assert torch.equal(net(images, subnet, drop_path=0.0), whole)
        torch.manual_seed(1)
        dropped = net(images, subnet, drop_path=0.5)
        assert not torch.allclose(dropped, whole)
        torch.manual_seed(1)
        assert torch.equal(net(images, subnet, drop_path=0.5), dropped)


@every_family
def test_every_branch_is_asked_once(name):
    net, images = net_of(name)
    asked = []

    class Counting(DropPath):
        def gate(self, residual, block):
            asked.append(block)
            return super().gate(residual, block)

    net.run(images, Counting(Whole(net.own_arch), 0.5, net.branches), None)
    assert len(asked) == net.branches > 1


def test_the_first_branch_stays_the_last_goes_at_the_rate_and_the_mean_is_kept():
    torch.manual_seed(0)
    view = DropPath(Whole(get_space("nano-vit").largest), 0.4, 3)
    residual = torch.ones(20_000, 2, 2)
    first, middle, last = (view.gate(residual, None) for _ in range(3))
    assert torch.equal(first, residual)
    for gated, rate in ((middle, 0.2), (last, 0.4)):
        assert gated.amax(dim=(1, 2)).eq(gated.amin(dim=(1, 2))).all()  # an image as a whole
        assert gated.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
        assert gated.eq(0).float().mean().item() == pytest.approx(rate, abs=0.02)
        assert gated.mean().item() == pytest.approx(1, abs=0.02)


@every_family
def test_what_an_image_loses_does_not_depend_on_who_else_runs_here(name):
    net, images = net_of(name)
    net.eval()  # statistics of a batch would differ by share
    statistics = {
        module.name: (torch.zeros_like(module.weight), torch.ones_like(module.weight))
        for module in net.modules()
        if isinstance(module, ElasticBatchNorm)
    }

    def run(rows, share):
        torch.manual_seed(1)
        return net(images[rows], net.own_arch, statistics, drop_path=0.5, share=share)

    whole = run(slice(None), None)
    assert not torch.allclose(whole, net(images, net.own_arch, statistics))
    for rows in (slice(0, None, 2), slice(1, None, 2), slice(3, 27, 3)):
        torch.testing.assert_close(run(rows, Share(len(images), rows)), whole[rows])
