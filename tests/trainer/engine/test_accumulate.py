"""A batch in parts comes to the gradients of the batch, at the memory of a part."""

from dataclasses import replace

import pytest
import torch

from trainer.data.run_data import run_data
from trainer.dry_run.activations import ActivationBytes
from trainer.dry_run.measure import dry_run, random_splits
from trainer.engine.optim import Schedule
from trainer.engine.probe import probe_of
from trainer.engine.state import fresh_state
from trainer.engine.step import add_gradients
from trainer.recipes.config import get_recipe, with_settings

SETTINGS = ["space=nano-vit", "batch_size=32", "drop_path=0.3", "augment.mixup=0.8"]
SCHEDULE = Schedule(0.01, 0.01, temperature=0.7, masked=True)


def ready(*more):
    recipe = with_settings(get_recipe("digits"), [*SETTINGS, *more])
    splits = random_splits(recipe, 10, 64)
    return recipe, fresh_state(recipe, splits), run_data(recipe, splits).train.batch(0, 0)


def gradients_of(recipe, state, batch, *, masked):
    torch.manual_seed(3)
    with ActivationBytes(list(state.net.parameters())) as kept:
        result = add_gradients(state, batch, replace(SCHEDULE, masked=masked), recipe)
    named = {**dict(state.net.named_parameters()), **dict(state.generator.named_parameters())}
    found = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
    return result, found, kept.peak, (torch.rand(3), state.rng.get_state())


@pytest.mark.parametrize("sampler", ["shift", "sandwich"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("parts", [4, 5])
def test_gradients_losses_and_what_is_drawn_next_are_the_same(sampler, masked, parts):
    recipe, state, batch = ready(f"sampler={sampler}")
    whole, expected, whole_bytes, drawn_next = gradients_of(recipe, state, batch, masked=masked)
    recipe, state, batch = ready(f"sampler={sampler}", f"accumulate={parts}")
    result, found, part_bytes, after = gradients_of(recipe, state, batch, masked=masked)
    assert result.loss == pytest.approx(whole.loss, rel=1e-5)
    assert [flops for flops, _ in result.drawn] == [flops for flops, _ in whole.drawn]
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, after, drawn_next))
    assert part_bytes < 0.6 * whole_bytes  # what is masked or copied once for a part is not less


def test_updates_of_the_distribution_are_the_same_at_less_memory():
    peaks, probabilities = [], []
    for parts in (1, 4):
        recipe, state, batch = ready("augment.mixup=0", f"accumulate={parts}")
        with torch.no_grad():
            for parameter in state.net.parameters():
                parameter.add_(0.01)
        probe = probe_of(state, batch, SCHEDULE, recipe, [])
        with ActivationBytes(list(state.net.parameters())) as kept:
            state.sampler.update(probe, state.rng)
        peaks.append(kept.peak)
        probabilities.append(state.sampler.probabilities())
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-5)
    assert max(probabilities[0]) > min(probabilities[0])
    assert peaks[1] < 0.5 * peaks[0]


def test_a_dry_run_tells_the_memory_of_a_part():
    recipe = with_settings(get_recipe("digits"), ["batch_size=64", "sampler=uniform-arch"])
    whole, part = (
        dry_run(recipe.replace(accumulate=count), images=4).memory["activations"]
        for count in (1, 4)
    )
    assert part == pytest.approx(whole / 4, rel=0.3)


@pytest.mark.parametrize(("name", "share"), [("sgd", 0.05 * 1.9), ("adamw", 0.05)])
def test_weight_decay_acts_on_what_a_sliced_step_drops_be_it_a_channel_or_a_block(name, share):
    """As docs/deviations.md says. (Nesterov's momentum takes the first step 1.9 times.)"""
    options = [f"optimizer.name={name}", "optimizer.weight_decay=0.5"]
    _, state, batch = ready(*options)
    before = {key: p.detach().clone() for key, p in state.net.named_parameters()}
    state.begin(replace(SCHEDULE, learning_rate=0.1))
    state.net(batch.images, state.net.space.smallest).sum().backward()
    dropped = {key: p for key, p in state.net.named_parameters() if p.grad is None and p.ndim > 1}
    channels = {
        key: p.grad == 0
        for key, p in state.net.named_parameters()
        if p.grad is not None and p.ndim > 1
    }
    state.descend(0.0)
    assert dropped
    for key, parameter in dropped.items():
        torch.testing.assert_close(parameter, before[key] * (1 - share))
    for key, zero in channels.items():
        parameter = dict(state.net.named_parameters())[key]
        torch.testing.assert_close(parameter[zero], before[key][zero] * (1 - share))
