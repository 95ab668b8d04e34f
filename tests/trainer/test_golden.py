"""A refactor that should change no number changes none: what every machine can tell.

``python -m tests.trainer.golden --against COMMIT`` tells the rest, bit for bit, on one machine.
"""

import json

import pytest

import trainer.loop
from tests.trainer.golden import CURVES, FILE, FIRST, differences, portable, run_curve


@pytest.mark.parametrize("name", CURVES)
def test_a_run_draws_what_it_drew_and_begins_with_the_losses_it_had(tmp_path, monkeypatch, name):
    """Steps whose losses nobody compares are not computed; their learning rates are compared."""
    train_step, last = trainer.loop.train_step, []

    def step(state, *arguments):
        if state.step < FIRST:
            last[:] = [train_step(state, *arguments)]
        else:
            state.step += 1
        return last[0]

    monkeypatch.setattr(trainer.loop, "train_step", step)
    recorded = json.loads(FILE.read_text())[name]
    curve = portable(run_curve(name, tmp_path / name, "evaluate_every=0"))
    assert curve["draws"] == recorded["draws"]
    assert curve["learning_rates"] == pytest.approx(recorded["learning_rates"], rel=1e-12)
    for found, expected in zip(curve["losses"], recorded["losses"], strict=True):
        loss, resource_loss = expected
        assert found[0] == pytest.approx(loss, rel=1e-4)
        # a choice that two logits tie for may fall the other way for one of its 64 budgets
        assert found[1] == pytest.approx(resource_loss, rel=0.1)


def test_differences_are_named():
    before = {"paper": {"steps": [[1, 2.5], [2, 2.4]], "net": {"stem": "ab"}}}
    after = {"paper": {"steps": [[1, 2.5], [2, 2.3]], "net": {"stem": "ac"}}}
    assert [*differences(before, before)] == []
    assert [*differences(before, after)] == [
        "paper.steps[1][1]: 2.4 became 2.3",
        "paper.net.stem: 'ab' became 'ac'",
    ]
