"""The generator, its numpy twin, and the decode that keeps every budget."""

import itertools

import numpy as np
import pytest
import torch

from models.generator.decode import SLACK, decode, decode_all
from models.generator.network import ArchitectureGenerator
from models.generator.policy import GeneratorPolicy
from models.generator.report import report_generator
from models.generator.resource_loss import ResourceLoss, fit_to_budgets
from models.generator.tail import NEAR, tail_of
from models.space.relaxed import RelaxedFlops
from models.spaces import SPACES, get_space
from tests.reference.generator import reference_forward

SMALL = [name for name in SPACES if get_space(name).max_flops < 200e6]


def generator_of(space, seed=0, scale=8.0):
    torch.manual_seed(seed)
    generator = ArchitectureGenerator(space)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter *= scale  # fresh logits are nearly uniform; make choices clear
    return generator


def policy_of(generator):
    weights = {name: value.numpy() for name, value in generator.state_dict().items()}
    return GeneratorPolicy(generator.space, weights)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("noisy", [None, 3])
def test_policies_and_every_gradient_are_those_of_plain_torch(name, noisy):
    """To all weights and to the budgets, in double precision; half of the rows are sampled."""
    space = get_space(name)
    generator = generator_of(space, scale=3.0)
    budgets = torch.linspace(1.01 * space.min_flops, space.max_flops, 6).double()
    seeded = torch.Generator().manual_seed(7)
    gumbel = None if noisy is None else generator._gumbel(6, seeded, noisy)
    given = budgets.clone().requires_grad_()
    noise = None if noisy is None else torch.Generator().manual_seed(7)
    mine = generator(given, temperature=0.6, noise=noise, noisy=noisy)
    exact = generator_of(space, scale=3.0).double()
    wanted_at = budgets.clone().requires_grad_()
    wanted = reference_forward(exact, wanted_at, temperature=0.6, gumbel=gumbel)
    rng = torch.Generator().manual_seed(1)
    sums = [0.0, 0.0]
    for outputs, references in zip(mine, wanted, strict=True):
        assert list(outputs) == list(references)
        for key, value in outputs.items():
            torch.testing.assert_close(value.double(), references[key].double(), atol=2e-4, rtol=0)
            weight = torch.randn(value.shape, generator=rng)
            sums[0] = sums[0] + (value * weight).sum()
            sums[1] = sums[1] + (references[key] * weight).sum()
    for total in sums:
        total.backward()
    for (key, own), reference in zip(generator.named_parameters(), exact.parameters(), strict=True):
        if reference.grad is None:
            assert own.grad is None, key
            continue
        error = (own.grad - reference.grad).norm() / reference.grad.norm()
        assert error < 2e-4, (key, float(error))
    least = 1e-3 * float(wanted_at.grad.abs().max())
    torch.testing.assert_close(given.grad, wanted_at.grad, rtol=1e-3, atol=least)


def test_a_pass_is_not_differentiated_with_weights_that_changed_since():
    generator = generator_of(get_space("nano-cnn"))
    policies, _ = generator(torch.tensor([1e6, 2e6]))
    with torch.no_grad():
        generator.start += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        policies["depth.0"].sum().backward()


@pytest.mark.parametrize("name", SMALL)
def test_the_server_runs_the_same_generator(name):
    space = get_space(name)
    generator = generator_of(space)
    policy = policy_of(generator)
    for budget in np.linspace(space.min_flops, space.max_flops, 7):
        with torch.no_grad():
            _, wanted = generator(torch.tensor([budget]))
        for decision, values in zip(space.decisions, policy.log_probabilities(budget), strict=True):
            np.testing.assert_allclose(values, wanted[decision.name][0].numpy(), atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_decode_never_exceeds_a_budget(name):
    space = get_space(name)
    policy = policy_of(generator_of(space))
    rng = np.random.default_rng(0)
    for budget in rng.uniform(space.min_flops, 1.1 * space.max_flops, 300):
        assert space.flops(decode(space, policy.log_probabilities(budget), budget)) <= budget
    log_probabilities = policy.log_probabilities(space.min_flops)
    assert decode(space, log_probabilities, space.min_flops) == space.smallest
    with pytest.raises(ValueError, match="below the smallest subnet"):
        decode(space, log_probabilities, space.min_flops - 1)
    with pytest.raises(ValueError, match="below the smallest subnet"):
        decode(space, log_probabilities, float("nan"))


def test_decode_finds_the_most_probable_arch_in_the_window():
    """Against brute force over all archs of nano-cnn, for a generator that knows a little."""
    space = get_space("nano-cnn")
    policy = policy_of(taught(space, steps=150))
    indices = np.array(list(itertools.product(*(range(len(d.choices)) for d in space.decisions))))
    flops = space.flops_rule.batch(indices)
    found = 0
    budgets = np.linspace(1.05 * space.min_flops, 0.95 * space.max_flops, 40)
    for budget in budgets:
        log_probabilities = policy.log_probabilities(budget)
        score = sum(lp[indices[:, i]] for i, lp in enumerate(log_probabilities))
        inside = (flops <= budget) & (flops >= (1 - SLACK) * budget)
        arch = decode(space, log_probabilities, budget)
        if not inside.any():
            best = flops[flops <= budget].max()
            assert space.flops(arch) >= 0.9 * best
            found += 1
            continue
        mine = space.indices(arch)
        joint = sum(lp[mine[i]] for i, lp in enumerate(log_probabilities))
        in_window = space.flops(arch) >= (1 - SLACK) * budget
        found += in_window and joint >= score[inside].max() - 0.5
    assert found >= 0.8 * len(budgets)


def taught(space, steps):
    torch.manual_seed(0)
    generator = ArchitectureGenerator(space)
    loss = ResourceLoss(RelaxedFlops(space.flops_rule), budgets=16)
    rng = torch.Generator().manual_seed(0)
    temperatures = (1.0, 0.3)
    fit_to_budgets(
        generator, loss, steps=steps, learning_rate=3e-3, temperatures=temperatures, rng=rng
    )
    return generator


def test_a_generator_learns_budgets_without_images():
    space = get_space("nano-vit")
    torch.manual_seed(0)
    untrained = report_generator(ArchitectureGenerator(space)).mean_error
    report = report_generator(taught(space, steps=100))
    assert report.mean_error < 0.5 * untrained
    assert report.mean_use > 0.95


def test_after_a_hundred_steps_the_argmax_is_within_half_a_percent_of_budgets():
    """Without an image, on the space of the bundle in models/zoo; its archs stay diverse."""
    space = get_space("cifar-cnn")
    generator = taught(space, steps=100)
    assert report_generator(generator).mean_error < 0.005
    budgets = torch.linspace(space.min_flops, space.max_flops, 12, dtype=torch.float64)
    noise = torch.Generator().manual_seed(0)
    sampled = [generator(budgets, noise=noise)[0] for _ in range(20)]
    chosen = torch.stack([torch.stack([p.argmax(1) for p in s.values()], dim=1) for s in sampled])
    distinct = [len(chosen[:, group].unique(dim=0)) for group in range(12)]
    assert min(distinct[1:-1]) >= 3
    flops = space.flops_rule.batch(chosen.reshape(-1, chosen.shape[2]).numpy())
    errors = np.abs(flops / budgets.repeat(20).numpy() - 1)
    assert np.median(errors) < 0.005  # of sampled archs too


@pytest.mark.parametrize("name", SPACES)
def test_a_tail_ends_as_near_to_the_budget_as_it_can(name):
    """When all before is decided and nothing is preferred: brute force finds nothing nearer."""
    space = get_space(name)
    tail, rng = tail_of(space), np.random.default_rng(0)
    assert sorted(tail.order) == list(range(len(space.decisions)))
    assert tail.order[-len(tail.decisions) :] == tail.decisions
    archs = np.stack([space.indices(space.random_arch(rng)) for _ in range(5)])
    budgets = space.flops_rule.batch(archs) * rng.uniform(0.98, 1.02, 5)
    gaps = tail.gaps(archs, budgets)
    for place in tail.decisions:
        toll = tail.toll(gaps)
        assert (toll.min(axis=1) == 0).all()
        archs[:, place] = toll.argmin(axis=1)
        gaps = tail.after(gaps, archs[:, place])
    flops = space.flops_rule.batch(archs)
    for arch, budget, found in zip(archs, budgets, flops, strict=True):
        ends = space.flops_rule.batch(tail.all_ends(arch[None]))
        gap, gaps_of_all = abs(budget - found) / budget, np.abs(budget - ends) / budget
        assert gap <= 2 * gaps_of_all.min() + NEAR + 1e-9


@pytest.mark.parametrize("name", SMALL)
def test_many_budgets_are_answered_as_one_by_one(name):
    space = get_space(name)
    policy = policy_of(generator_of(space))
    budgets = np.linspace(space.min_flops, space.max_flops, 12).tolist()
    together = policy.log_probabilities_of(budgets)
    alone = [policy.log_probabilities(budget) for budget in budgets]
    for decision, rows in enumerate(together):
        np.testing.assert_allclose(rows, np.stack([a[decision] for a in alone]), atol=1e-4)
    archs = [decode(space, one, budget) for one, budget in zip(alone, budgets, strict=True)]
    assert decode_all(space, together, budgets) == archs


def test_policies_are_one_hot_and_sampled_only_where_asked():
    space = get_space("nano-cnn")
    generator = ArchitectureGenerator(space)
    budgets = torch.full((6,), 1e6)
    noise = torch.Generator().manual_seed(0)
    policies, _ = generator(budgets, noise=noise, noisy=3)
    for policy in policies.values():
        assert torch.all(
            policy.detach().round()
            == torch.nn.functional.one_hot(policy.argmax(1), policy.shape[1])
        )
        assert torch.allclose(policy[3], policy[4])
    arch = [tuple(int(p[i].argmax()) for p in policies.values()) for i in range(3)]
    assert len(set(arch)) > 1
