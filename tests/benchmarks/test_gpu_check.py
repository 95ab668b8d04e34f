"""The check of a GPU names what is missing, goes on after a failure, and always leaves a report."""

import sys

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import Step, main


def test_a_report_has_every_step_whatever_became_of_it(tmp_path, monkeypatch, capsys):
    def command(code):
        return (sys.executable, "-c", code)

    made = [
        Step("fine", "prints", command("print('a line')"), 1),
        Step("broken", "fails", command("raise SystemExit(3)"), 1),
        Step("slow", "never ends", command("import time; time.sleep(60)"), 0.01),
        Step("alone", "needs two", command("raise SystemExit(4)"), 1, lambda: "it takes two"),
    ]
    monkeypatch.setattr(gpu_check, "steps", lambda out, rehearse: made)
    assert main(["--rehearse", "--out", str(tmp_path)]) == 1
    report = (tmp_path / "report.md").read_text()
    assert "| fine | prints | passed |" in report
    assert "| broken | fails | failed: exit status 3 |" in report
    assert "| slow | never ends | failed: not done after 0.01 minutes |" in report
    assert "| alone | needs two | not run: it takes two |" in report
    assert "a line" in report
    assert main(["--rehearse", "--out", str(tmp_path), "--only", "fine"]) == 0
    assert main(["--rehearse", "--out", str(tmp_path), "--only", "nothing"]) == 2
    assert "there are: fine, broken" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_names_the_rehearsal(tmp_path, capsys):
    assert main(["--out", str(tmp_path)]) == 2
    assert "--rehearse" in capsys.readouterr().err
    assert any(line.startswith("CUDA in torch") for line in gpu_check.missing())


def test_commands_for_a_gpu_are_those_of_the_rehearsal_but_for_their_size(tmp_path):
    """So that what CI rehearses is what runs there."""
    real, small = (gpu_check.steps(tmp_path, rehearse=rehearse) for rehearse in (False, True))
    for one, other in zip(real, small, strict=True):
        assert one.name == other.name
        assert one.command[:4] == other.command[:4]
        assert one.environment.keys() == other.environment.keys()
    assert real[-1].environment["SHIFTNAS_DEVICE"] == "cuda"
    assert real[-1].environment["SHIFTNAS_RUNTIME"] != "auto"
