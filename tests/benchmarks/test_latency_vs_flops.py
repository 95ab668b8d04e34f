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


def test_a_line_for_each_runtime_batch_and_number_of_threads(capsys):
    few = ["--points", "2", "--rounds", "1", "--json"]
    more = ["--runtime", "onnxruntime", "torch", "tensorrt", "--batch", "1", "3", "--threads", "1"]
    assert main([*few, *more, "--precision", "fp32", "int8", "--cpu-time"]) == 0
    told = json.loads(capsys.readouterr().out)
    lines = [(line["runtime"], line["precision"], line["batch"]) for line in told["lines"]]
    ran = (("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("torch", "fp32"))
    assert lines == [(*one, n) for one in ran for n in (1, 3)]
    whole = ("torch cpu int8: ", "tensorrt cuda fp32: ", "tensorrt cuda int8: ")
    assert len(told["not_run"]) == len(whole)
    assert all(map(str.startswith, told["not_run"], whole))


def test_a_runtime_that_is_not_there_is_named(capsys):
    assert main(["--runtime", "onnx"]) == 2
    assert "there are: onnxruntime" in capsys.readouterr().err
    assert main(["--runtime", "tensorrt"]) == 2
    assert "tensorrt" in capsys.readouterr().err
