"""Runs over one another: what is shown, and what is refused."""

import json
import re

import pytest

import trainer.report.compare_plots
from models.spaces import get_space
from trainer.engine.log import JsonlLog
from trainer.report.compare import main

GROUPS = [200_000, 500_000, 900_000]


def write_run(folder, *, seed=0, data="digits", space="nano-cnn", accuracy=0.9, finished=True):
    with JsonlLog(folder / "log.jsonl") as log:
        log.write("start", step=0, total_steps=400, data=data, images=[90, 10, 20], commit="abc")
        for step in range(20, 401, 20):
            log.write("step", step=step, loss=2 / step, elapsed_s=step / 10)
        if seed:
            log.write("groups", step=400, groups=GROUPS, probabilities=[0.2, 0.3, 0.5])
        log.write("generator", step=400, mean_error=0.01 * (seed + 1), mean_use=0.98)
    shape = get_space(space)
    rows = [
        {
            "budget_flops": shape.flops(arch) + 1,
            "flops": shape.flops(arch),
            "test_accuracy": accuracy + place / 100,
        }
        for place, arch in enumerate((shape.smallest, shape.largest))
    ]
    if finished:
        (folder / "frontier.json").write_text(json.dumps(rows))
    recipe = {"space": space, "sampler": "shift", "seed": seed, "optimizer": {"name": "sgd"}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return str(folder)


def test_a_page_a_pdf_and_tables_hold_all_runs(tmp_path, capsys):
    runs = [write_run(tmp_path / f"run{i}", seed=i, accuracy=0.8 + i / 20) for i in range(3)]
    page, pdf = tmp_path / "out" / "page.html", tmp_path / "out" / "runs.pdf"
    assert main([*runs, "--html", str(page), "--pdf", str(pdf)]) == 0
    printed = capsys.readouterr().out
    assert "| run | sampler | seed |" in printed
    for name, mean in (("run0", "80.50%"), ("run1", "85.50%"), ("run2", "90.50%")):
        (row,) = [line for line in printed.splitlines() if line.startswith(f"| {name} ")]
        assert mean in row
    assert "80.00% | 85.00% | 90.00% |" in printed
    assert pdf.read_bytes().startswith(b"%PDF")
    text = page.read_text()
    assert text.count("<svg") == 4
    assert not re.search(r'(src|href)="(?!#)', text), "nothing is loaded from elsewhere"
    for name in ("frontier", "loss", "probabilities", "generator"):
        assert f'id="{name}-caption"' in text
    legend = text.partition("Accuracy against FLOPs")[2].partition("</figure>")[0]
    assert all(f"run{i}" in legend for i in range(3))
    told = text.partition("What differs")[2].partition("</table>")[0]
    assert "seed" in told
    assert "optimizer.name" not in told


def test_json_has_every_frontier(tmp_path, capsys):
    runs = [write_run(tmp_path / f"run{i}", seed=i) for i in range(2)]
    assert main([*runs, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in told["runs"]] == ["run0", "run1"]
    assert told["runs"][1]["generator_mean_error"] == 0.02
    assert told["runs"][0]["mean_test_accuracy"] == pytest.approx(0.905)
    assert len(told["runs"][1]["frontier"]) == 2


def test_runs_that_go_on_are_compared_as_far_as_they_are(tmp_path, capsys):
    runs = [write_run(tmp_path / f"run{i}", seed=i, finished=False) for i in range(2)]
    assert main([*runs, "--html", str(tmp_path / "page.html")]) == 0
    assert "Not finished" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().count("<svg") == 3


def test_runs_of_one_name_are_told_apart(tmp_path, capsys):
    runs = [write_run(tmp_path / f"{i}" / "digits", seed=i) for i in range(2)]
    assert main(runs) == 0
    assert all(f"| {run} |" in capsys.readouterr().out for run in runs[:1])


def test_what_cannot_be_compared_is_one_line(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    other_space = write_run(tmp_path / "vit", space="nano-vit")
    other_data = write_run(tmp_path / "cifar", data="cifar10")
    for runs, words in (
        (
            [run, other_space],
            "run and vit cannot be compared: space nano-cnn and nano-vit",
        ),
        ([run, other_data], "data digits and cifar10"),
        ([run], "name at least two"),
        ([run, str(tmp_path / "none")], "is no folder"),
    ):
        assert main(runs) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


@pytest.mark.parametrize("option", ["--html", "--pdf"])
def test_what_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch, option):
    monkeypatch.setattr(trainer.report.compare_plots, "draw", lambda _: [])
    runs = [write_run(tmp_path / f"{number}") for number in range(2)]
    (tmp_path / "file").touch()
    refused = tmp_path / "file" / "inside"
    assert main([*runs, option, str(refused)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line in {
        f"error: cannot write {refused}: {said}" for said in ("Not a directory", "File exists")
    }
