"""What is plotted of milliseconds by a table."""

import pytest

from benchmarks import measured_latency


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
