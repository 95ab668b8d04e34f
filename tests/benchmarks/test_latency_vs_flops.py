"""The benchmark leaves no file where nobody asked for one."""

from __future__ import annotations

import json

from benchmarks.latency_vs_flops import main


def test_a_plot_is_drawn_only_where_it_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = ["--points", "2", "--rounds", "1", "--json"]
    assert main(few) == 0
    assert json.loads(capsys.readouterr().out)["plot"] is None
    assert list(tmp_path.iterdir()) == []
    assert main([*few, "--plot", "latency.png"]) == 0
    assert json.loads(capsys.readouterr().out)["plot"] == "latency.png"
    assert [file.name for file in tmp_path.iterdir()] == ["latency.png"]
