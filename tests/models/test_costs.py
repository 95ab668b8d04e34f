"""What holds for every cost model and every space. A cost model joins by being registered."""

import json

import numpy as np
import pytest
import torch

from models.costs import COSTS, get_cost
from models.costs.table import CostTable, TablePart, read_table
from models.generator.answer import answer_within
from models.generator.network import ArchitectureGenerator
from models.generator.policy import GeneratorPolicy
from models.generator.report import report_generator
from models.generator.resource_loss import ResourceLoss, fit_to_budgets
from models.measure.layers import all_forms, features, layers_of
from models.space.relaxed import RelaxedCost
from models.spaces import SPACES, get_space
from tests.one_hot import relax


def made_up_table(space, cost="latency_ms", seed=0):
    """Grows with the work, but for a third up or down: larger choices may cost less."""
    rng = np.random.default_rng(seed)
    parts = []
    for layer in layers_of(space):
        forms = all_forms(space, layer)
        work = np.array([features(form)[:5].sum() if form else 0.0 for form in forms.ravel()])
        noise = rng.uniform(0.7, 1.3, forms.shape)
        parts.append(
            TablePart(layer.name, layer.decisions, work.reshape(forms.shape) * noise / 1e6)
        )
    return CostTable(cost, (space.name, space.num_classes), 0.01, tuple(parts))


def cost_of(name, space):
    try:
        return get_cost(name, space)
    except ValueError as error:
        assert "needs a table" in str(error)
        return get_cost(name, space, made_up_table(space, name))


every_cost = pytest.mark.parametrize("name", COSTS)
LARGE = {name for name in SPACES if get_space(name).max_flops > 200e6}
every_space = pytest.mark.parametrize(
    "space", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in SPACES]
)


def untrained(cost):
    torch.manual_seed(0)
    generator = ArchitectureGenerator(cost.space, cost)
    return GeneratorPolicy(cost, {k: p.numpy() for k, p in generator.state_dict().items()})


@every_cost
@every_space
def test_no_answer_costs_more_than_its_budget(name, space):
    cost = cost_of(name, get_space(space))
    policy, rng = untrained(cost), np.random.default_rng(0)
    assert cost.min <= cost.of(cost.space.smallest)
    for budget in (*rng.uniform(cost.min, 1.1 * cost.max, 3), cost.min + 1):
        assert cost.of(answer_within(policy, budget)) <= budget
    assert cost.of(answer_within(policy, cost.min)) <= cost.min
    assert answer_within(policy, cost.max) == cost.space.largest
    with pytest.raises(ValueError, match="below the smallest subnet"):
        answer_within(policy, cost.min - 1)


@every_cost
@every_space
def test_policies_cost_what_their_archs_do_and_gradients_what_other_choices_would(name, space):
    cost = cost_of(name, get_space(space))
    space, rng = cost.space, np.random.default_rng(3)
    arch = space.random_arch(rng)
    policies = {
        k: p[None].double().requires_grad_() for k, p in relax(space, arch).policies.items()
    }
    relaxed = RelaxedCost(cost.rule)(policies)
    assert relaxed.tolist() == [cost.of(arch)]
    relaxed.sum().backward()
    here = space.indices(arch)
    for place in rng.choice(len(here), 4):
        decision = space.decisions[place]
        there = here.copy()
        there[place] = rng.integers(len(decision.choices))
        wanted = np.diff(cost.rule.batch(np.stack([here, there])))[0]
        if len(decision.choices) > 1:
            gradient = policies[decision.name].grad[0]
            assert int(gradient[there[place]] - gradient[here[place]]) == wanted, decision.name


@every_cost
def test_a_generator_learns_to_keep_budgets_of_any_cost(name):
    cost = cost_of(name, get_space("nano-cnn"))
    torch.manual_seed(0)
    generator = ArchitectureGenerator(cost.space, cost)
    before = report_generator(generator, 20).mean_error
    fit_to_budgets(
        generator,
        ResourceLoss(budgets=16),
        steps=40,
        rng=torch.Generator().manual_seed(0),
    )
    assert report_generator(generator, 20).mean_error < 0.7 * before


@every_space
def test_parameters_are_those_of_the_space(space):
    space = get_space(space)
    cost, rng = get_cost("params", space), np.random.default_rng(1)
    for arch in (space.smallest, space.largest, *(space.random_arch(rng) for _ in range(5))):
        assert cost.of(arch) == space.params(arch)


def test_a_table_is_summed_as_it_is_written(tmp_path):
    """Against the sum over parts, by hand; and through a file."""
    space = get_space("nano-cnn")
    table = made_up_table(space)
    file = tmp_path / "table.json"
    file.write_text(json.dumps(table.to_json()))
    cost = get_cost("latency_ms", space, read_table(file))
    arch = space.random_arch(np.random.default_rng(2))
    parts = [
        part.values[tuple(space.decision[d].choices.index(arch[d]) for d in part.decisions)]
        for part in table.parts
    ]
    assert cost.value(cost.of(arch)) == pytest.approx(table.fixed + sum(parts), abs=1e-4)
    assert cost.value(cost.of(arch)) >= table.fixed + sum(parts) - 1e-9  # never rounded down


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "format 1"),
        ({"cost": "energy_mj"}, "of energy_mj, not of latency_ms"),
        ({"space": {"name": "nano-vit", "num_classes": 10}}, "is of nano-vit"),
        ({"fixed": -1}, "fixed: a value is negative"),
        ({"fixed": float("nan")}, "fixed: a value is negative, not a number"),
        ({"parts": []}, "all archs cost the same"),
        ({"parts": [{"name": "a", "decisions": ["b"], "values": []}]}, "no decision 'b'"),
        ({"parts": [{"name": "a", "decisions": ["width.0"], "values": [1]}]}, "not \\(2,\\)"),
        ({"parts": [{"name": "a"}]}, "cannot be read: KeyError"),
        ({"fixed": 10**400}, "cannot be read: OverflowError"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, change, says):
    space = get_space("nano-cnn")
    file = tmp_path / "table.json"
    file.write_text(json.dumps(made_up_table(space).to_json() | change))
    with pytest.raises(ValueError, match=says):
        get_cost("latency_ms", space, read_table(file))


def test_an_unknown_cost_names_what_is_near():
    with pytest.raises(ValueError, match="did you mean 'flops'"):
        get_cost("flop", get_space("nano-cnn"))
