"""Every registered sampler, and the direction in which the distribution shifts."""

import numpy as np
import pytest
import torch

from models.generator import ArchitectureGenerator
from models.nets import build_net
from models.spaces import get_space
from trainer.probe import Probe
from trainer.samplers import SAMPLERS, build_sampler
from trainer.samplers.base import SamplerOptions, group_budgets

SPACE = get_space("nano-cnn")
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class FakeArch:
    """Stands for the arch of a budget."""

    def __init__(self, budget):
        self.budget = budget

    def arch(self):
        return self


class FakeProbe:
    """A supernet whose group ``improving`` still learns: its loss fell, that of others did not."""

    def __init__(self, groups, improving):
        self.groups, self.improving = groups, improving

    def generate(self, budget):
        return FakeArch(float(budget))

    def loss(self, arch, *, before):
        learns = arch.budget == self.groups[self.improving]
        return torch.tensor(2.0 if before and learns else 1.0)


class SlopeProbe:
    """A loss that differs between then and now by a known slope along the budget."""

    def generate(self, budget):
        return budget

    def loss(self, budget, *, before):
        # it fell everywhere, and most for large subnets: those are the ones still learning
        return 1e-6 * budget if before else 0.0 * budget


@every_sampler
def test_draws_are_archs_or_budgets_of_the_space(name):
    sampler = build_sampler(name, SPACE, SamplerOptions(groups=5))
    generator = rng()
    for _ in range(50):
        for draw in sampler.draw(generator):
            assert (draw.arch is None) != (draw.budget_flops is None)
            if draw.budget_flops is not None:
                assert SPACE.min_flops <= draw.budget_flops <= SPACE.max_flops
            else:
                assert SPACE.flops(draw.arch) <= SPACE.max_flops


@every_sampler
def test_state_continues_the_same_draws(name):
    first = build_sampler(name, SPACE, SamplerOptions(groups=5))
    if first.learns:
        for _ in range(5):
            first.update(
                FakeProbe(first.groups, 2) if name == "shift-direct" else SlopeProbe(), rng(3)
            )
    second = build_sampler(name, SPACE, SamplerOptions(groups=5))
    second.load_state(first.state())
    assert first.probabilities() == second.probabilities()
    a, b = rng(7), rng(7)
    for _ in range(20):
        assert first.draw(a) == second.draw(b)


@pytest.mark.parametrize("as_printed", [False, True])
def test_groups_whose_loss_still_drops_gain_and_the_printed_sign_is_the_opposite(as_printed):
    options = SamplerOptions(groups=5, learning_rate=0.05, as_printed=as_printed)
    sampler = build_sampler("shift-direct", SPACE, options)
    generator = rng()
    for _ in range(60):
        sampler.update(FakeProbe(sampler.groups, 3), generator)
    probabilities = sampler.probabilities()
    assert sum(probabilities) == pytest.approx(1)
    assert min(probabilities) >= options.floor / 5 - 1e-6
    if as_printed:
        assert probabilities[3] < 0.1
    else:
        assert probabilities[3] > 0.4


@pytest.mark.parametrize("as_printed", [False, True])
def test_through_the_generator_the_distribution_moves_along_the_slope_of_the_drop(as_printed):
    options = SamplerOptions(groups=4, learning_rate=0.02, as_printed=as_printed)
    sampler = build_sampler("shift", SPACE, options)
    generator = rng()
    for _ in range(100):
        sampler.update(SlopeProbe(), generator)
    probabilities = sampler.probabilities()
    rising = probabilities == sorted(probabilities)
    falling = probabilities == sorted(probabilities, reverse=True)
    assert falling if as_printed else rising
    assert max(probabilities) - min(probabilities) > 0.1


def test_the_probe_measures_old_and_new_weights_on_the_same_batch_and_changes_nothing():
    torch.manual_seed(0)
    net = build_net(SPACE)
    generator = ArchitectureGenerator(SPACE)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    now = {name: p.detach().clone() for name, p in net.named_parameters()}
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    probe = Probe(net, generator, before, images, labels, noise=rng(), temperature=1.0)
    arch = SPACE.largest
    old, new = (probe.loss(arch, before=b).detach().item() for b in (True, False))
    assert old != new
    assert all(torch.equal(p, now[name]) for name, p in net.named_parameters())
    net.load_state_dict(before)
    assert probe.loss(arch, before=False).detach().item() == pytest.approx(old, rel=1e-5)


def test_real_probes_give_gradients_to_the_distribution():
    torch.manual_seed(0)
    net, generator = build_net(SPACE), ArchitectureGenerator(SPACE)
    before = {name: p.detach() + 0.05 for name, p in net.named_parameters()}
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    sampler = build_sampler("shift", SPACE, SamplerOptions(groups=4))
    start = sampler.probabilities()
    probe = Probe(net, generator, before, images, labels, noise=rng(), temperature=1.0)
    drops = sampler.update(probe, rng())
    assert sum(drop is not None for drop in drops) == 1
    assert sampler.probabilities() != start


def test_outer_groups_draw_the_ends_themselves():
    sampler = build_sampler("uniform-budget", SPACE, SamplerOptions(groups=4))
    generator = rng()
    budgets = [sampler.draw(generator)[0].budget_flops for _ in range(400)]
    assert 0.06 < np.mean([b == SPACE.min_flops for b in budgets]) < 0.2
    assert 0.06 < np.mean([b == SPACE.max_flops for b in budgets]) < 0.2


def test_groups_span_the_range():
    groups = group_budgets(SPACE, 6)
    assert len(groups) == 6
    assert groups[-1] == SPACE.max_flops
    assert list(groups) == sorted(groups)
    assert groups[0] > SPACE.min_flops


def test_sandwich_runs_the_largest_first_and_the_others_learn_from_it():
    draws = build_sampler("sandwich", SPACE, SamplerOptions()).draw(rng())
    assert draws[0].arch == SPACE.largest
    assert draws[-1].arch == SPACE.smallest
    assert [draw.distil for draw in draws] == [False, True, True, True]


def test_unknown_samplers_are_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'shift'"):
        build_sampler("shfit", SPACE, SamplerOptions())
    with pytest.raises(ValueError, match="at least 2"):
        SamplerOptions(groups=1)
