"""One set of BatchNorm statistics for all archs: masked == sliced == folded under it."""

import copy

import numpy as np
import pytest
import torch

from models.nets import build_net
from models.nets.extract import extract_folded
from models.nets.normalize import FrozenStatistics
from models.space.weights import SharedStatistics, slice_weights
from models.spaces import get_space
from tests.one_hot import relax

SPACE = get_space("nano-cnn")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = build_net(SPACE)
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.fixture(scope="module")
def shared():
    rng = np.random.default_rng(0)

    def some(size, least, most):
        return rng.uniform(least, most, size).astype(np.float32)

    widest = {norm.name: norm.size(SPACE.largest) for norm in SPACE.norms}
    norms = {name: (some(n, -1, 1), some(n, 0.5, 2)) for name, n in widest.items()}
    projects = [name for name in SPACE.weight if name.endswith(".project.weight")]
    reads = {name: SPACE.weight[name].shape_at(SPACE.largest)[1] for name in projects}
    return SharedStatistics(
        norms, {name.removesuffix(".weight"): some(n, 0, 2) for name, n in reads.items()}
    )


def archs():
    rng = np.random.default_rng(1)
    return [SPACE.smallest, SPACE.largest, *(SPACE.random_arch(rng) for _ in range(4))]


@pytest.mark.parametrize("arch", archs())
def test_masked_sliced_and_folded_answer_alike(net, shared, arch):
    side = SPACE.resolution(arch)
    images = torch.randn(3, 3, side, side)
    frozen = FrozenStatistics(shared)
    arrays = {name: p.detach().numpy() for name, p in net.named_parameters()}
    own = shared.of(SPACE, arch, slice_weights(SPACE, arch, arrays))
    with torch.no_grad():
        sliced = net(images, arch, frozen)
        for other in (
            net(images, relax(SPACE, arch), frozen),
            extract_folded(net, arch, own)(images),
        ):
            assert (other - sliced).abs().max() <= 1e-5 * sliced.abs().max()


def test_what_is_centred_changes_nothing_where_no_channel_is_missing(net, shared):
    """The mean is then that of the centred output."""
    arrays = {name: p.detach().numpy() for name, p in net.named_parameters()}
    whole = shared.of(SPACE, SPACE.largest, arrays)
    plain = FrozenStatistics(SharedStatistics(whole))
    side = SPACE.resolution(SPACE.largest)
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        wanted = net(images, statistics=plain)
        given = net(images, statistics=FrozenStatistics(shared))
    assert (given - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_weights_learn_through_given_statistics_as_differences_say(net, shared):
    """The gradient of every kind of weight, in double precision, by moving it a little."""
    wide = SharedStatistics(
        {name: (m.astype(float), v.astype(float)) for name, (m, v) in shared.norms.items()},
        {name: centre.astype(float) for name, centre in shared.centres.items()},
    )
    net, frozen = copy.deepcopy(net).double(), FrozenStatistics(wide)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)

    def loss():
        return net(images, SPACE.largest, frozen).square().mean()

    loss().backward()
    rng, step = np.random.default_rng(0), 1e-6
    for name, parameter in net.named_parameters():
        place = rng.integers(parameter.numel())
        with torch.no_grad():
            kept = parameter.view(-1)[place].item()
            ends = []
            for sign in (1, -1):
                parameter.view(-1)[place] = kept + sign * step
                ends.append(float(loss()))
            parameter.view(-1)[place] = kept
        slope = (ends[0] - ends[1]) / (2 * step)
        given = float(parameter.grad.view(-1)[place])
        assert given == pytest.approx(slope, rel=1e-4, abs=1e-7), name
