"""A latency table: from timings to what layers take, and the command."""

import json

import numpy as np
import pytest

from models.__main__ import main
from models.bundle.folder import load_bundle
from models.costs import get_cost
from models.costs.table import read_table
from models.measure.design import chosen_archs, spread_archs
from models.measure.fit import Forms, fit
from models.measure.measure import measure
from models.measure.timing import Setup, level
from models.spaces import get_space
from tests.bundles import make_bundle


@pytest.mark.parametrize("name", ["cifar-cnn", "mobile", "vit-tiny"])
def test_the_fit_finds_what_layers_take_from_timings_of_whole_subnets(name):
    """Forms that take a third more or less than their work says, and timings off by 1 %."""
    space, rng = get_space(name), np.random.default_rng(0)
    forms = Forms.of(space)
    each = forms.features() @ np.array([1, 6, 1.5, 1, 20, 0, 1e3]) / 1e6
    each *= rng.uniform(0.7, 1.3, len(each))
    archs = chosen_archs(forms, 2 * len(forms.forms), rng)
    ms = (0.02 + forms.counts(archs) @ each) * rng.normal(1, 0.01, len(archs))
    fitted = fit(forms, archs, ms)
    unseen = spread_archs(space, 60, rng)
    errors = np.abs(fitted.predict(unseen) / (0.02 + forms.counts(unseen) @ each) - 1)
    assert np.median(errors) < 0.015
    assert errors.max() < 0.05


def test_archs_that_are_timed_have_almost_every_form():
    """At random, the forms of the ends would be rare."""
    forms = Forms.of(get_space("cifar-cnn"))
    rng = np.random.default_rng(0)
    counts = forms.counts(chosen_archs(forms, 60, rng))
    assert (counts.sum(axis=0) > 0).mean() > 0.95


def test_slow_rounds_do_not_count():
    """A third of the rounds take up to thrice as long; each call is found within 1 %."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.2, 2, 20)
    pace = np.where(rng.random((90, 1)) < 0.33, rng.uniform(1.5, 3, (90, 1)), 1)
    found = level(truth * pace * rng.normal(1, 0.02, (90, 20)))
    for ms, timing in zip(truth, found, strict=True):
        assert timing.ms == pytest.approx(ms, rel=0.02)
        assert timing.low_ms < timing.ms < timing.high_ms


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle("nano-cnn", tmp_path_factory.mktemp("measured") / "bundle")


class Stopped(Exception):
    pass


def test_a_measurement_that_was_stopped_goes_on(bundle, tmp_path):
    out, loaded, said = tmp_path / "table.json", load_bundle(bundle), []

    def stop_after_two(text):
        said.append(text)
        if len(said) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        measure(loaded, Setup(), out, minutes=0, archs=40, say=stop_after_two)
    assert not out.exists()
    said.clear()
    table = measure(loaded, Setup(), out, minutes=0, archs=40, say=said.append)
    assert "2 of 4 groups are there" in said[0]
    assert len(said) == 3
    assert [*tmp_path.iterdir()] == [out]
    assert table.prediction["archs"] == 30
    cost = get_cost("latency_ms", loaded.space, read_table(out))
    assert 0 < cost.min < cost.max
    with pytest.raises(ValueError, match="exists"):
        measure(loaded, Setup(), out)
    (tmp_path / "other.json.partial").write_text("{}")
    with pytest.raises(ValueError, match="of another measurement"):
        measure(loaded, Setup(), tmp_path / "other.json", minutes=0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--device", "tpu"], "'tpu' is not one of: cpu, cuda"),
        (["--threads", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(bundle, tmp_path, capsys, wrong, says):
    assert main(["measure", str(bundle), "--out", str(tmp_path / "t.json"), *wrong]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_says_how_far_off_its_table_is(bundle, tmp_path, capsys):
    out = tmp_path / "table.json"
    assert main(["measure", str(bundle), "--out", str(out), "--minutes", "0.02"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["table"] == str(out)
    assert printed["prediction"]["median_error"] < 0.25
    assert len(printed["prediction"]["rows"]) == 30
