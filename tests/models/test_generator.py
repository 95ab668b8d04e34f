"""The generator, its numpy twin, and the decode that keeps every budget."""

import itertools

import numpy as np
import pytest
import torch

from models.decode import SLACK, decode
from models.generator import ArchitectureGenerator
from models.generator_report import report_generator
from models.policy import GeneratorPolicy
from models.relaxed import RelaxedFlops
from models.spaces import SPACES, get_space
from trainer.recipe import GeneratorOptions
from trainer.step import pretrain_generator

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


@pytest.mark.parametrize("name", SMALL)
def test_numpy_runs_the_same_generator(name):
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
    """Against brute force over all archs of nano-cnn."""
    space = get_space("nano-cnn")
    policy = policy_of(generator_of(space, scale=4.0))
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


def test_a_generator_learns_budgets_without_images():
    space = get_space("nano-vit")
    torch.manual_seed(0)
    generator = ArchitectureGenerator(space)
    options = GeneratorOptions(pretrain_steps=300, resource_batch=32)
    untrained = report_generator(generator).mean_error
    rule = RelaxedFlops(space.flops_rule)
    pretrain_generator(generator, rule, options, torch.Generator().manual_seed(0))
    report = report_generator(generator)
    assert report.mean_error < 0.5 * untrained
    assert report.mean_use > 0.95


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
