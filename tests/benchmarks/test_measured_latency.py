"""Budgets in milliseconds are asked of a server that runs, and what is plotted of them."""

from types import SimpleNamespace

import pytest

from benchmarks import measured_latency
from benchmarks.measured_latency import HELD, over_http
from tests.pictures import encoded, picture


@pytest.mark.slow
def test_every_budget_that_is_asked_for_is_counted_once(bundle_folder):
    told = over_http(bundle_folder, encoded(picture()), threads=1, rounds=2)
    assert told["requests"] == 2 * HELD
    assert told["in_time"] + told["late"] + told["refused"] == pytest.approx(1)
    assert told["by_client"] <= told["in_time"]
    assert 0 <= told["mean_flops"] <= 1
    low, high = told["budgets_ms"]
    assert 0 < low < high


def test_threads_without_accuracies_have_no_panel(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        measured_latency, "plot_panels", lambda path, title, rows: drawn.append(rows)
    )
    rows = [{"budget_ms": 1.0, "flops": {"accuracy": 0.5}, "retargeted": {"accuracy": 0.75}}]
    told = {"bundle": "one", "threads 1": {"accuracy": {"rows": rows}}, "threads 2": {"hold": {}}}
    measured_latency.plot(tmp_path / "a.png", told, [1, 2])
    (((panel,),),) = drawn
    assert panel.series == {"by the table": [(1.0, 25.0)], "without the table": [(1.0, 50.0)]}
    with pytest.raises(ValueError, match="nothing to plot"):
        measured_latency.plot(tmp_path / "a.png", told, [2])


def test_a_folder_of_other_settings_is_refused(bundle_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measured_latency, "STEPS", ())
    asked = [str(bundle_folder), "--data", "digits", "--out", str(tmp_path), "--threads"]
    monkeypatch.setattr(measured_latency, "read_table", lambda _: SimpleNamespace(prediction={}))
    monkeypatch.setattr(measured_latency, "show", lambda *_: None)
    for _ in range(2):
        assert measured_latency.main([*asked, "1"]) == 0
    capsys.readouterr()
    for given, told in (
        (["1", "--rounds", "9"], "is of rounds 60, and 9 is asked for"),
        (["1", "--data", "other"], "other is asked for: name another folder (--out)"),
    ):
        assert measured_latency.main([*asked, *given]) == 2
        assert told in capsys.readouterr().err
    (tmp_path / "settings.json").rename(tmp_path / "table-1.json")  # older folders do not have it
    assert measured_latency.main([*asked, "1", "--rounds", "9"]) == 0
