"""The average of the weights: its arithmetic, and that it is what comes out of a run."""

import numpy as np
import pytest
import torch

import trainer.loop
import trainer.run
from models.bundle.folder import load_bundle
from models.nets import build_net
from models.spaces import get_space
from tests.trainer.conftest import settings
from trainer.data.run_data import read_splits
from trainer.engine.average import WeightAverage
from trainer.engine.checkpoint import load_checkpoint
from trainer.engine.interrupt import Interrupt
from trainer.engine.log import read_log
from trainer.loop import train
from trainer.ranks import Ranks
from trainer.recipes.config import get_recipe, with_settings
from trainer.report.monitor import Silence
from trainer.run import main


def test_the_decay_grows_from_a_tenth_to_what_was_asked():
    net = build_net(get_space("nano-cnn"))
    average = WeightAverage(net, 0.5)
    expected = {name: p.detach().double() for name, p in net.named_parameters()}
    for step in range(12):
        for parameter in net.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        average.update(net)
        decay = min(0.5, (step + 1) / (step + 10))
        for name, parameter in net.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
    for name, parameter in average.net.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-5)
        assert not parameter.requires_grad


def test_an_average_that_starts_late_starts_at_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})
    folder = tmp_path / "run"
    assert main([*settings("epochs=1"), "--out", str(folder)]) == 0
    assert load_checkpoint(folder)["average"] is None
    assert main(["--resume", str(folder), "--set", "epochs=2", "--set", "ema=0.9"]) == 0
    state = load_checkpoint(folder)
    assert state["average"]["updates"] == 5
    for name, value in state["average"]["net"].items():
        # not the untrained weights that the average was built with
        assert (value - state["net"][name]).norm() <= 0.5 * (1 + value.norm())


def test_all_ranks_begin_with_the_average_of_the_first(tmp_path, monkeypatch):
    """Of which others differ where the first alone has fitted a classifier to its start."""

    class Enough(Exception):
        pass

    class Asked(Ranks):
        def begin_alike(self, tensors):
            assert {id(p) for p in averages[0].net.parameters()} <= {id(t) for t in tensors}
            raise Enough

    averages, begun = [], WeightAverage.__init__

    def begin(average, *arguments):
        averages.append(average)
        begun(average, *arguments)

    monkeypatch.setattr(WeightAverage, "__init__", begin)
    monkeypatch.setattr(trainer.loop, "Monitor", lambda *_: Silence())
    recipe = with_settings(get_recipe("digits"), ["ema=0.9", "threads=1", "held_out_share=0.75"])
    with pytest.raises(Enough):
        train(recipe, read_splits(recipe), tmp_path, Interrupt(), resume=False, ranks=Asked())


@pytest.mark.usefixtures("without_plots")
def test_the_average_is_what_is_evaluated_and_bundled(tmp_path, monkeypatch):
    plain, averaged = tmp_path / "plain", tmp_path / "averaged"
    short = settings("epochs=2", "evaluate_every=1")
    assert main([*short, "--set", "ema=0.99", "--out", str(averaged)]) == 0
    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})
    assert main([*short, "--out", str(plain)]) == 0
    without, state = load_checkpoint(plain), load_checkpoint(averaged)
    for name, value in without["net"].items():
        assert torch.equal(value, state["net"][name]), "an average changes no training"
    bundle = load_bundle(averaged / "bundle")
    weights = bundle.weights
    for name, value in state["average"]["net"].items():
        np.testing.assert_array_equal(weights[name], value.numpy())
    assert any(not torch.equal(v, state["net"][n]) for n, v in state["average"]["net"].items())
    said = f"moving average, decay 0.99, {state['step']} updates"
    assert bundle.provenance["weights"] == said
    assert said in (averaged / "report" / "report.html").read_text()

    def accuracies(folder):
        records = read_log(folder / "log.jsonl")
        rows = next(r["rows"] for r in records if r["kind"] == "evaluation")
        return [row["held_out_accuracy"] for row in rows]

    assert accuracies(plain) != accuracies(averaged)


@pytest.mark.parametrize("decay", ["1", "-0.1", "1.5"])
def test_a_decay_is_below_one(capsys, decay):
    assert main([*settings(f"ema={decay}")]) == 2
    assert "ema is" in capsys.readouterr().err.splitlines()[-1]
