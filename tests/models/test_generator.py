"""The generator, its numpy twin, and the decode that keeps every budget."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle.folder import load_bundle
from models.costs.flops import flops_cost
from models.generator.answer import WITHIN, answer_within, answers_within
from models.generator.network import ArchitectureGenerator
from models.generator.policy import GeneratorPolicy, log_softmax
from models.generator.report import report_generator
from models.generator.resource_loss import ResourceLoss, fit_to_budgets
from models.generator.tail import NEAR, tail_of
from models.spaces import SPACES, get_space

DEFAULT_BUNDLE = Path(__file__).resolve().parents[2] / "models" / "zoo" / "cifar10-cnn"
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
    return GeneratorPolicy(generator.cost, weights)


def test_a_policy_is_one_hot_in_value_and_softmax_in_gradient():
    """Straight-through: from every decision to the budget and to the decisions before it."""
    generator = generator_of(get_space("nano-cnn"), scale=3.0)
    budgets = torch.tensor([1e6, 2e6], dtype=torch.float64, requires_grad=True)
    noise = torch.Generator().manual_seed(7)
    policies, log_probabilities = generator(budgets, temperature=0.6, noise=noise, noisy=1)
    for policy in policies.values():
        value = policy.detach().round()
        torch.testing.assert_close(policy.detach(), value)
        assert value.sum(1).tolist() == [1, 1]
    last = list(policies.values())[-1]
    embedding = generator.embeddings[generator.space.decisions[1].kind].weight
    to_budgets, to_embedding = torch.autograd.grad(last[:, 0].sum(), [budgets, embedding])
    assert (to_budgets != 0).all()
    assert (to_embedding != 0).any()
    for log_p in log_probabilities.values():
        torch.testing.assert_close(log_p.exp().sum(1), torch.ones(2))


@pytest.mark.parametrize("name", SMALL)
def test_the_server_runs_the_same_generator(name):
    space = get_space(name)
    generator = generator_of(space)
    policy = policy_of(generator)
    budgets = np.linspace(space.min_flops, space.max_flops, 7)
    with torch.no_grad():
        _, wanted = generator(torch.from_numpy(budgets))
    for values, of_torch in zip(policy.log_probabilities_of(budgets), wanted.values(), strict=True):
        np.testing.assert_allclose(values, of_torch.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_decode_never_exceeds_a_budget(name):
    space = get_space(name)
    policy = policy_of(generator_of(space))
    rng = np.random.default_rng(0)
    for budget in rng.uniform(space.min_flops, 1.1 * space.max_flops, 300):
        assert space.flops(answer_within(policy, budget)) <= budget
    assert answer_within(policy, space.min_flops) == space.smallest
    with pytest.raises(ValueError, match="below the smallest subnet"):
        answer_within(policy, space.min_flops - 1)
    with pytest.raises(ValueError, match="below the smallest subnet"):
        answer_within(policy, float("nan"))


def joint_log_probabilities(policy, indices, budget):
    """Of whole archs: (archs,)."""
    state, every = policy.begin([budget] * len(indices)), np.arange(len(indices))
    total = np.zeros(len(indices))
    for place in tail_of(policy.cost).decided:
        logits, state = policy.step(state, place)
        total += log_softmax(logits)[every, indices[:, place]]
        state = policy.choose(state, place, every, indices[:, place])
    return total


def test_decode_finds_the_most_probable_arch_within_the_budget():
    """Against brute force over all archs of nano-cnn, for a generator that knows a little."""
    space = get_space("nano-cnn")
    policy = policy_of(taught(space, steps=150))
    indices = np.array(list(itertools.product(*(range(len(d.choices)) for d in space.decisions))))
    flops = space.flops_rule.batch(indices)
    found = 0
    budgets = np.linspace(1.05 * space.min_flops, 0.95 * space.max_flops, 40)
    for budget in budgets:
        arch = answer_within(policy, budget)
        inside = (flops <= budget) & (flops >= (1 - WITHIN) * budget)
        if not inside.any():
            assert space.flops(arch) >= 0.9 * flops[flops <= budget].max()
            found += 1
            continue
        best = joint_log_probabilities(policy, indices[inside], budget).max()
        mine = joint_log_probabilities(policy, np.array([space.indices(arch)]), budget)[0]
        assert mine < best + 1e-4
        found += space.flops(arch) >= (1 - WITHIN) * budget and mine > best - 1e-4
    assert found >= 0.95 * len(budgets)


def test_a_budget_is_a_bound_and_not_a_target():
    """At 8.4 MFLOPs the most probable arch leaves one per cent, and it is what is served."""
    bundle = load_bundle(DEFAULT_BUNDLE)
    arch = answer_within(bundle.policy, 8.4e6)
    assert arch == bundle.answer(8.4e6)
    assert bundle.space.flops(arch) < 0.99 * 8.4e6


def taught(space, steps):
    torch.manual_seed(0)
    generator = ArchitectureGenerator(space)
    rng = torch.Generator().manual_seed(0)
    fit_to_budgets(generator, ResourceLoss(budgets=16), steps=steps, rng=rng)
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
    tail, rng = tail_of(flops_cost(space)), np.random.default_rng(0)
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
    alone = [[rows[0] for rows in policy.log_probabilities_of([budget])] for budget in budgets]
    for decision, rows in enumerate(together):
        np.testing.assert_allclose(rows, np.stack([a[decision] for a in alone]), atol=1e-4)
    assert answers_within(policy, budgets) == [answer_within(policy, budget) for budget in budgets]


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
