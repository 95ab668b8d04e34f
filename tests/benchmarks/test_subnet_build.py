"""benchmarks.subnet_build: all it compares, and what an exporter that fails looks like."""

import json

import pytest
import torch

from benchmarks.subnet_build import STAGES, main

QUICK = ["--budgets", "3", "--exports", "1", "--rounds", "2"]


@pytest.mark.slow
def test_all_ways_to_a_session_are_timed_and_answer_alike(capsys):
    assert main(["--space", "nano-vit", "nano-cnn", *QUICK]) == 0
    vit, cnn = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert set(vit["stages"]) >= {*STAGES, "dynamo", "torchscript"}
    assert set(cnn["stages"]) >= {"total", "dynamo", "torchscript"}
    assert set(vit["run_ms"]) == {"own", "as served", "dynamo", "torchscript"}
    assert not vit["failed"]


@pytest.mark.slow
def test_an_exporter_that_fails_is_said_to(capsys, monkeypatch):
    export = torch.onnx.export

    def gone(*arguments, dynamo, **others):
        if not dynamo:
            raise TypeError("no such exporter")
        return export(*arguments, dynamo=dynamo, **others)

    monkeypatch.setattr(torch.onnx, "export", gone)
    assert main(["--space", "nano-cnn", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "torchscript FAILED: TypeError: no such exporter" in out
    assert "torchscript" not in json.loads(out.splitlines()[-1])["rows"][0]["ratios"]


def test_wrong_counts_are_refused(capsys):
    assert main(["--exports", "9", "--budgets", "3"]) == 2
    assert capsys.readouterr().err.startswith("error: --rounds takes")
