"""Every registered sampler, and the direction in which the distribution shifts."""

import io
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
import torch

import trainer.engine.horizon
import trainer.report.monitor
import trainer.run
from models.generator.network import ArchitectureGenerator
from models.nets import build_net
from models.spaces import get_space
from tests.trainer.conftest import settings
from tests.trainer.samplers.learning_curves import SyntheticProbe, simulate
from trainer.data.batches import Batch
from trainer.engine.log import read_log
from trainer.engine.probe import BatchProbe
from trainer.recipes.settings import SamplerOptions
from trainer.samplers import SAMPLERS, build_sampler
from trainer.samplers.base import group_budgets
from trainer.samplers.candidates.base import arch_between
from trainer.samplers.scored.regret import lower_hull

SPACE = get_space("nano-cnn")
LOOSE = {"uniform-arch", "fair", "sandwich", "greedy", "focus", "shift", "shift-features"}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def built(name, groups, **options):
    """A sampler with so many groups."""
    if name == "fixed-arch":
        options["archs"] = (SPACE.arch_to_json(SPACE.smallest),)
    return build_sampler(name, SPACE, SamplerOptions(groups=groups, **options))


def learning(name, needs, **options):
    """A sampler with one group for each of the ``needs``."""
    return built(name, len(needs), **options)


@every_sampler
def test_draws_are_archs_or_budgets_of_the_space(name):
    sampler = built(name, 5)
    generator = rng()
    for step in range(50):
        for draw in sampler.draw(generator, step / 50):
            assert (draw.arch is None) != (draw.budget_flops is None)
            if draw.budget_flops is not None:
                assert SPACE.min_flops <= draw.budget_flops <= SPACE.max_flops
            else:
                assert SPACE.flops(draw.arch) <= SPACE.max_flops


@every_sampler
def test_state_continues_the_same_run(name):
    """Also through a file, as a checkpoint keeps it."""
    first, second = built(name, 5), built(name, 5)
    needs = [20, 20, 2000, 20, 20][: len(first.groups)]
    simulate(first, needs, updates=30, steps=5, noise=0.01)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second.load_state(torch.load(file, weights_only=True))
    assert first.probabilities() == second.probabilities()
    runs = [simulate(s, needs, updates=5, steps=5, noise=0.01, seed=7) for s in (first, second)]
    assert runs[0][1] == runs[1][1]
    assert torch.equal(runs[0][0].losses(), runs[1][0].losses())


class GivenArchs:
    """A probe that refuses to ask the generator, and any arch that was not given."""

    compute = 0

    def __init__(self, archs):
        self.archs = set(archs)

    def loss(self, arch, *, before):
        assert arch in self.archs
        return torch.tensor(1.0)

    def level(self, arch):
        return float(self.loss(arch, before=False))

    def influences(self, archs):
        return [self.level(arch) for arch in archs]


@every_sampler
def test_groups_are_the_frozen_archs_where_they_are_given(name):
    """All that is drawn and measured, or a sampler that cannot keep to that says so."""
    archs = [SPACE.smallest, SPACE.largest][: len(built(name, 2).groups)]
    given = {"archs": tuple(SPACE.arch_to_json(arch) for arch in archs)}
    if name in LOOSE:
        with pytest.raises(ValueError, match=f"{name} does not keep to sampler_options.archs"):
            built(name, 8, **given)
        return
    sampler, generator = built(name, 8, **given), rng()
    assert sampler.groups == tuple(SPACE.flops(arch) for arch in archs)
    for _ in range(10):
        assert {draw.arch for draw in sampler.draw(generator)} <= set(archs)
        if sampler.learns:
            sampler.update(GivenArchs(archs), generator)
    with pytest.raises(ValueError, match="rising FLOPs"):
        built("uniform-budget", 2, archs=tuple(map(SPACE.arch_to_json, archs[:1] * 2)))


@every_sampler
def test_probabilities_are_of_the_groups_and_draws_follow_them(name):
    sampler = built(name, 4, tilt=(2.0, 2.0))
    probabilities = sampler.probabilities()
    if not probabilities:
        return
    assert len(probabilities) == len(sampler.groups)
    assert sum(probabilities) == pytest.approx(1)
    generator = rng()
    counts = np.zeros(len(probabilities))
    for _ in range(400):
        for draw in sampler.draw(generator):
            counts[draw.group] += 1
    assert counts / counts.sum() == pytest.approx(probabilities, abs=0.08)


def test_a_static_tilt_leans_and_moves_with_the_run():
    sampler = built("static-tilt", 5, tilt=(-3.0, 3.0), bend=1.0)
    generator = rng()
    tables = []
    for progress in (0.0, 0.5, 1.0):
        sampler.draw(generator, progress)
        tables.append(sampler.probabilities())
    first, middle, last = tables
    assert first[0] / first[-1] == pytest.approx(np.exp(3))
    assert last == pytest.approx(first[::-1])
    assert middle[0] == pytest.approx(middle[-1]) == pytest.approx(np.e * middle[2])


def test_regret_is_the_distance_to_the_lower_hull():
    x = torch.tensor([0.0, 1.0, 2.0, 3.0])
    y = torch.tensor([3.0, 2.5, 1.0, 1.2])
    assert (y - lower_hull(x, y)).tolist() == pytest.approx([0, 0.5, 0, 0])


def test_regret_draws_a_dent_more_often():
    sampler = built("regret", 5, groups_per_update=5)
    losses = torch.tensor([1.6, 1.45, 1.52, 1.35, 1.3], dtype=torch.float64)
    probe = SyntheticProbe(SPACE, torch.tensor(sampler.groups).double(), losses, losses)
    for _ in range(10):
        sampler.update(probe, rng())
    assert max(sampler.probabilities()) == sampler.probabilities()[2] > 0.3


@pytest.mark.parametrize("name", ["influence", "learned-tilt"])
def test_where_all_groups_help_alike_the_cheap_ones_are_drawn_more(name):
    sampler = built(name, 5, groups_per_update=5, learning_rate=0.5)
    before, now = torch.full((2, 5), 1.5, dtype=torch.float64) - torch.tensor([[0.0], [0.1]])
    probe = SyntheticProbe(SPACE, torch.tensor(sampler.groups).double(), before, now)
    for _ in range(20):
        sampler.update(probe, rng())
    assert sampler.probabilities() == sorted(sampler.probabilities(), reverse=True)
    assert sampler.probabilities()[0] > 2 * sampler.probabilities()[-1]


@pytest.mark.parametrize(("name", "wins"), [("best-up", min), ("focus", min), ("worst-up", max)])
def test_candidates_of_a_group_keep_its_size_and_the_right_one_trains(name, wins):
    sampler = built(name, 4, groups_per_update=4)

    asked = {}

    class Probe:
        def loss(self, arch, *, before):
            asked[arch] = float(int(SPACE.arch_id(arch), 16) % 997)
            return torch.tensor(asked[arch])

    sampler.update(Probe(), rng())
    lows = (SPACE.min_flops, *sampler.groups)
    for group, (low, high) in enumerate(pairwise(lows)):
        tried = [loss for arch, loss in asked.items() if low <= SPACE.flops(arch) <= high]
        kept = [asked[arch] for arch in sampler.kept(group)]
        assert wins(kept) == wins(tried)
        assert len(kept) <= sampler.size


@pytest.mark.parametrize(("name", "groups"), [("nano-cnn", 8), ("cifar-cnn", 12), ("cifar-vit", 8)])
def test_random_archs_of_a_group_have_its_flops(name, groups):
    space, generator = get_space(name), rng()
    edges = [space.min_flops, *group_budgets(space, groups)]
    for low, high in pairwise(edges):
        found = [space.flops(arch_between(space, low, high, generator)) for _ in range(12)]
        assert low <= min(found)
        assert max(found) <= high
    # nothing lies just below the largest, so the answer is the nearest that was come to
    high = space.max_flops - 1
    assert space.flops(arch_between(space, high, high, generator)) < high


def test_strict_fairness_trains_every_choice_of_a_decision_in_every_step():
    sampler, generator = built("fair", 4), rng()
    for _ in range(20):
        draws = sampler.draw(generator)
        for place, decision in enumerate(SPACE.decisions):
            if decision.block is None:
                chosen = {draw.arch.choices[place] for draw in draws}
                assert chosen == set(decision.choices)


@pytest.mark.parametrize(
    ("name", "slow"), [("shift", 0), ("shift", 4), ("shift-direct", 0), ("shift-direct", 3)]
)
def test_groups_that_still_learn_gain_and_the_printed_sign_does_the_opposite(name, slow):
    needs = [20.0] * 5
    needs[slow] = 2000
    after = {}
    for as_printed in (False, True):
        sampler = learning(name, needs, learning_rate=0.07, as_printed=as_printed)
        net, history = simulate(
            sampler, needs, updates=60, steps=40, warm_up=10, noise=1e-3, common_noise=0.01
        )
        after[as_printed] = history[-1], float(net.losses()[slow])
        assert sum(history[-1]) == pytest.approx(1)
        assert min(map(min, history)) >= sampler.options.floor / 5 - 1e-6
    net, _ = simulate(learning("uniform-budget", needs), needs, updates=60, steps=40, warm_up=10)
    uniform = float(net.losses()[slow])
    (prose, prose_loss), (printed, printed_loss) = after[False], after[True]
    assert prose[slow] == max(prose)
    assert prose[slow] > 0.3
    assert printed[slow] < 0.15
    assert prose_loss < uniform < printed_loss


@pytest.mark.parametrize("seed", range(3))
def test_direct_measurements_of_equal_groups_do_not_drift(seed):
    """Common noise 10 times, own noise 4 times what a group really drops by at an update."""
    needs = [2000.0] * 8
    sampler = learning("shift-direct", needs, learning_rate=0.05)
    _, history = simulate(
        sampler, needs, updates=200, steps=20, noise=0.004, common_noise=0.01, seed=seed
    )
    assert max(map(max, history)) < 0.15


def test_direct_measurements_are_of_every_group_equally_often():
    needs = [2000.0] * 7
    sampler = learning("shift-direct", needs, groups_per_update=3)
    losses = torch.ones(7, dtype=torch.float64)
    probe = SyntheticProbe(SPACE, torch.tensor(sampler.groups).double(), losses, losses)
    generator = rng()
    counts = np.zeros(7, int)
    for _ in range(14):
        counts += [drop is not None for drop in sampler.update(probe, generator)]
    assert counts.tolist() == [6] * 7


def test_a_floor_of_one_keeps_the_distribution_uniform():
    needs = [20.0, 20.0, 2000.0]
    sampler = learning("shift", needs, floor=1.0, learning_rate=0.1)
    _, history = simulate(sampler, needs, updates=20, steps=10)
    assert history[-1] == pytest.approx([1 / 3] * 3)


def test_uniform_archs_pile_up_in_the_middle_and_uniform_budgets_do_not():
    spreads = []
    for name in ("uniform-arch", "uniform-budget"):
        sampler, generator = build_sampler(name, SPACE, SamplerOptions(groups=8)), rng()
        draws = [sampler.draw(generator)[0] for _ in range(400)]
        flops = [SPACE.flops(d.arch) if d.arch else d.budget_flops for d in draws]
        spreads.append(np.std(flops) / (SPACE.max_flops - SPACE.min_flops))
    assert spreads[0] < 0.7 * spreads[1]


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
    probe = BatchProbe(net, generator, before, images, labels, noise=rng(), temperature=1.0)
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
    probe = BatchProbe(net, generator, before, images, labels, noise=rng(), temperature=1.0)
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
    with pytest.raises(ValueError, match="groups"):
        SamplerOptions(groups=1)


def test_the_probe_answers_what_the_new_samplers_ask():
    """Influences are products of gradients; what mixes features has the slope of the generator."""
    torch.manual_seed(0)
    net, generator = build_net(SPACE), ArchitectureGenerator(SPACE)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    probe = BatchProbe(net, generator, before, images, labels, noise=rng(), temperature=1.0)
    probe.fixed = [Batch(0, 0, images, labels)]
    archs = [SPACE.smallest, SPACE.largest]
    assert probe.level(archs[1]) == pytest.approx(
        float(probe.loss(archs[1], before=False).detach())
    )

    spent = probe.compute
    found = probe.influences(archs)
    assert probe.compute - spent == 3 * 16 * sum(map(SPACE.flops, archs))
    gradients = {}
    for arch in archs:
        for half in (0, 1):
            net.zero_grad()
            seen = images[half::2], labels[half::2]
            BatchProbe(net, generator, before, *seen, noise=rng(), temperature=1.0).loss(
                arch, before=False
            ).backward()
            gradients[arch, half] = {
                name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None
            }
    for arch, value in zip(archs, found, strict=True):
        own = gradients[arch, 0]
        expected = sum(
            float((own[name] * of[name]).sum()) / 2
            for of in (gradients[other, 1] for other in archs)
            for name in own.keys() & of.keys()
        )
        assert value == pytest.approx(expected, rel=1e-3)

    budgets = group_budgets(SPACE, 4)
    relaxed = probe.generate(torch.tensor(float(budgets[1]), dtype=torch.float64))
    _, slopes = probe.mixing_gradient(relaxed, budgets, before=False)
    loss = probe.loss(relaxed, before=False)
    (to_weight, to_bias) = torch.autograd.grad(
        loss, [generator.encode.weight, generator.encode.bias]
    )
    # the features of the drawn budget are what the first layer's gradient is made of
    place = int(to_bias.abs().argmax())
    features = to_weight[place] / to_bias[place]
    expected = features @ (generator.encode.weight.detach().T @ to_bias)
    assert float(slopes[1]) == pytest.approx(float(expected), rel=1e-3)
    assert len({round(float(slope / slopes[0]), 3) for slope in slopes}) == 4


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "fixed-arch"])
def test_every_sampler_trains_a_supernet_within_its_compute(name, tmp_path):
    """Few steps, with updates; what it asks of the supernet is counted."""
    chosen = settings(f"sampler={name}", "compute=6e8", "sampler_options.groups=3", "batch_size=32")
    with (
        patch.object(trainer.run, "finish", lambda *_: {}),
        patch.object(trainer.report.monitor, "LOG_EVERY_STEPS", 1),
        patch.object(trainer.engine.horizon, "DRAWS", 20),  # nobody looks at the mean here
    ):
        assert trainer.run.main([*chosen, "--out", str(tmp_path / "run")]) == 0
    records = read_log(tmp_path / "run" / "log.jsonl")
    *_, before, last = (record for record in records if record["kind"] == "step")
    trained = sum(3 * 32 * flops for r in records for flops in r.get("drawn_flops", ()))
    assert before["compute"] < 6e8 <= last["compute"]
    assert all(np.isfinite(loss) for r in records for loss in r.get("drawn_losses", ()))
    learns = built(name, 3).learns
    assert learns == any(record["kind"] == "groups" for record in records)
    if learns:
        assert last["compute"] > trained


@pytest.mark.parametrize(("name", "directions"), [("shift", 1), ("shift-features", 2)])
def test_a_scalar_budget_leaves_the_gradient_of_b_one_direction(name, directions):
    """For one Gumbel draw: whatever the losses are, ``shift`` moves B along the same line."""
    found = []
    for drops in ([0.3, 0.1, 0.2, 0.0], [0.0, 0.4, 0.1, 0.3], [0.1, 0.3, 0.55, 0.2]):
        sampler = built(name, 4)
        before = torch.full((4,), 2.0, dtype=torch.float64)
        now = before - torch.tensor(drops, dtype=torch.float64)
        probe = SyntheticProbe(SPACE, torch.tensor(sampler.groups).double(), before, now)
        direction, _ = sampler.measure(probe, rng())
        found.append(direction / direction.norm())
    assert torch.linalg.matrix_rank(torch.stack(found), atol=1e-3) >= directions
    assert (torch.linalg.matrix_rank(torch.stack(found), atol=1e-3) == 1) == (directions == 1)
