"""A report needs nothing but what the run left in its folder."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.spaces import get_space
from trainer.engine.log import JsonlLog
from trainer.pairs import Curve, Point
from trainer.report.page import frontier_cells
from trainer.report.plots import frontier_figure, groups_figure, running_mean
from trainer.report.report import main, write_report
from trainer.report.run_record import RunRecord, read_run, read_runs, rows_of
from trainer.report.subnet_plot import parts

ROOT = Path(__file__).resolve().parents[3]
GROUPS = [200_000, 500_000, 900_000]


@pytest.fixture
def finished_run(tmp_path):
    """A run's folder with every kind of record, for nano-cnn."""
    run = tmp_path / "digits"
    space = get_space("nano-cnn")
    with JsonlLog(run / "log.jsonl") as log:
        for step in range(20, 401, 20):
            log.write(
                "step",
                step=step,
                epoch=step / 100,
                loss=None if step == 40 else 2 / step,
                resource_loss=1 / step,
                lr=0.1,
                images_per_s=300.0,
                budget_flops=GROUPS[1],
                flops=GROUPS[0],
            )
        for step, shift in ((100, 0.0), (200, 0.05), (300, 0.1)):
            log.write(
                "groups",
                step=step,
                groups=GROUPS,
                probabilities=[1 / 3 - shift, 1 / 3, 1 / 3 + shift],
                loss_drops=None,
            )
            log.write("generator", step=step, mean_error=0.1, mean_use=0.98, entropy=[1.0, 2, 3])
            rows = [{"budget_flops": b, "flops": b - 9, "held_out_accuracy": 0.9} for b in GROUPS]
            log.write("evaluation", step=step, rows=rows)
        point = Point(0.8, 0.7, 3e5, 0.9, (0.88, 0.92), 0.89, 0.01, (0.0, 0.02))
        pair = Curve(None, 200_000, 400_000, (point,))
        log.write("confidence", step=400, rows=json.loads(json.dumps([pair.to_json()])))
        log.write("done", step=400)
    archs = [space.smallest, space.largest]
    rows = [
        {
            "budget_flops": space.flops(arch) + 1,
            "flops": space.flops(arch),
            "params": space.params(arch),
            "held_out_accuracy": accuracy + 0.01,
            "test_accuracy": accuracy,
            "arch": space.arch_to_json(arch),
        }
        for arch, accuracy in zip(archs, (0.9, 0.95), strict=True)
    ]
    (run / "frontier.json").write_text(json.dumps(rows))
    (run / "recipe.json").write_text(
        json.dumps({"space": "nano-cnn", "sampler": "shift", "seed": 1})
    )
    return run


PLOTS = {
    *("frontier", "confidence", "probabilities", "histogram", "subnets", "generator"),
    *("evaluations", "loss"),
}


def test_a_finished_run_gets_a_table_and_every_plot(finished_run, tmp_path, capsys):
    assert main([str(finished_run)]) == 0
    report = finished_run / "report"
    printed = capsys.readouterr().out
    assert printed.splitlines()[-10] == str(report / "report.html")
    text, page = (report / "report.md").read_text(), (report / "report.html").read_text()
    for name in PLOTS:
        assert f"({name}.png)" in text
        assert f'<section id="{name}">' in page
        with Image.open(report / f"{name}.png") as image:
            assert image.width > 400
    for said in (printed, text, page):
        assert "90.00%" in said
        assert "95.00%" in said
    assert {file.stem for file in report.iterdir()} == {"report", *PLOTS}
    assert not re.search(r'(src|href)="(?!data:image)', page), "nothing is loaded from elsewhere"
    again, *_ = write_report(read_runs([finished_run]), tmp_path / "again")
    assert again.read_text() == page


def test_a_run_under_way_gets_the_plots_it_has_data_for(tmp_path):
    with JsonlLog(tmp_path / "log.jsonl") as log:
        log.write("step", step=1, loss=1.0)
    files = write_report(read_runs([tmp_path]), tmp_path / "report")
    assert {file.stem for file in files} == {"report", "loss"}
    assert "No frontier and no test accuracy yet" in files[0].read_text()


def test_a_sampler_that_learns_without_a_distribution_gets_the_other_plots(tmp_path):
    """As greedy does: its updates tell no probabilities."""
    for name in ("one", "two"):
        with JsonlLog(tmp_path / name / "log.jsonl") as log:
            log.write("step", step=1, loss=1.0, flops=GROUPS[0])
            log.write("groups", step=1, groups=GROUPS, probabilities=[], loss_drops=None)
    runs = [tmp_path / "one", tmp_path / "two"]
    for folders in (runs[:1], runs):
        files = write_report(read_runs(folders), tmp_path / "report")
        assert "loss" in {file.stem for file in files}
        assert "probabilities" not in {file.stem for file in files}


@pytest.mark.usefixtures("without_plots")
def test_what_words_come_from_others_is_text_in_the_page(finished_run):
    recipe = json.loads((finished_run / "recipe.json").read_text())
    (finished_run / "recipe.json").write_text(json.dumps(recipe | {"name": "<b>bold</b>"}))
    page = write_report(read_runs([finished_run]), finished_run / "report")[0].read_text()
    assert "&lt;b&gt;bold" in page
    assert "<b>bold" not in page


def test_the_frontier_shows_the_numbers_of_the_rows(finished_run):
    run = read_run(finished_run)
    axes = frontier_figure([run]).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    test = lines["test images"]
    assert list(test.get_ydata()) == [0.9, 0.95]
    scale = 1e6 if "MFLOPs" in axes.get_xlabel() else 1e3
    assert np.allclose(np.array(test.get_xdata()) * scale, [row["flops"] for row in run.frontier])
    assert list(lines["held-out training images"].get_ydata()) == pytest.approx([0.91, 0.96])


def test_the_probabilities_show_every_group_over_time_and_the_last_state(finished_run):
    record = read_run(finished_run)
    over_time, at_end = groups_figure(record.of_kind("groups")).axes[:2]
    assert [line.get_ydata()[-1] for line in over_time.lines] == pytest.approx(
        [1 / 3 - 0.1, 1 / 3, 1 / 3 + 0.1]
    )
    assert list(over_time.lines[0].get_xdata()) == [100, 200, 300]
    heights = [bar.get_height() for bar in at_end.patches]
    assert heights == pytest.approx([1 / 3 - 0.1, 1 / 3, 1 / 3 + 0.1])


def test_a_run_of_an_earlier_version_is_read():
    """Its log and its frontier say val_accuracy."""
    run = read_run(ROOT / "docs" / "runs" / "cifar10-cnn-first")
    rows = [*run.frontier, *(row for r in run.of_kind("evaluation") for row in rows_of(r))]
    assert all(row["held_out_accuracy"] > 0.3 for row in rows)


def test_the_table_leaves_blank_what_a_row_lacks():
    rows = [
        {"budget_flops": 1e6, "flops": 1e6, "held_out_accuracy": 0.25, "test_accuracy": 0.2},
        {"budget_flops": 2e6, "flops": 1.9e6, "params": 12345, "held_out_accuracy": 0.5},
    ]
    small, large = frontier_cells(RunRecord("run", {}, [], rows))
    assert small == ["1M", "1M", "100.0%", "", "25.00%", "20.00%"]
    assert large == ["2M", "1.9M", "95.0%", "12,345", "50.00%", ""]
    start = {"kind": "start", "step": 0, "images": [900, 100, 400]}
    small, large = frontier_cells(RunRecord("run", {}, [start], rows))
    assert small[4:] == ["25.00% [17.5, 34.3]", "20.00% [16.4, 24.2]"]
    assert large[4:] == ["50.00% [40.4, 59.6]", ""]


@pytest.mark.parametrize("name", ["nano-vit", "nano-cnn"])
def test_a_plotted_subnet_lacks_the_blocks_that_were_dropped(name):
    space = get_space(name)
    dropped = [part for part in parts(space, space.smallest).values() if part is None]
    assert len(dropped) > 0
    assert None not in parts(space, space.largest).values()


def test_running_mean_looks_back_only():
    values = np.array([1.0, 3.0, 5.0, 7.0])
    assert running_mean(values, 2).tolist() == [1, 2, 4, 6]
    assert running_mean(values, 10).tolist() == [1, 2, 3, 4]


# ------------------------------------------------------------------------ runs over one another


def copies(run, tmp_path, **changes):
    """Two runs of one name: as it is, and with another recipe and accuracy."""
    other = tmp_path / "other" / run.name
    shutil.copytree(run, other)
    recipe = json.loads((run / "recipe.json").read_text())
    (other / "recipe.json").write_text(json.dumps(recipe | changes))
    rows = json.loads((run / "frontier.json").read_text())
    lower = [row | {"test_accuracy": row["test_accuracy"] - 0.1} for row in rows]
    (other / "frontier.json").write_text(json.dumps(lower))
    return [str(run), str(other)]


def test_runs_are_laid_over_one_another(finished_run, tmp_path, capsys):
    runs = copies(finished_run, tmp_path, seed=2)
    assert main([*runs, "--out", str(tmp_path / "compared")]) == 0
    printed = capsys.readouterr().out
    page = (tmp_path / "compared" / "report.html").read_text()
    for run, mean in zip(runs, ("92.50%", "82.50%"), strict=True):
        (row,) = [line for line in printed.splitlines() if line.startswith(f"| {run} ")]
        assert mean in row
        assert run in page
    assert "| 90.00% | 80.00% |" in printed
    assert re.findall('<section id="(.*)">', page) == [
        *("frontier", "loss", "probabilities"),
    ]
    told = page.partition("What differs")[2].partition("</table>")[0]
    assert "seed" in told
    assert "space" not in told
    drawn = frontier_figure(read_runs([finished_run, tmp_path / "other" / "digits"]))
    assert [line.get_label() for line in drawn.axes[0].lines] == runs


def test_without_a_folder_runs_are_a_table_or_json(finished_run, tmp_path, capsys):
    runs = copies(finished_run, tmp_path, seed=2)
    (tmp_path / "other" / "digits" / "frontier.json").unlink()
    assert main(runs) == 0
    assert "Not finished" in capsys.readouterr().out
    assert main([*runs, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == []
    assert [len(run["frontier"]) for run in told["runs"]] == [2, 0]
    assert [run["mean_test_accuracy"] for run in told["runs"]] == ["92.50%", None]


def test_what_cannot_be_compared_is_one_line(finished_run, tmp_path, capsys):
    assert main(copies(finished_run, tmp_path, space="nano-vit")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be compared: space nano-cnn and nano-vit" in line


# ----------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "log.jsonl").unlink(), "log.jsonl does not exist"),
        (lambda run: (run / "log.jsonl").write_text("x\n"), "line 1"),
        (lambda run: (run / "frontier.json").write_text("{"), "frontier.json is not JSON"),
        (lambda run: (run / "frontier.json").write_text("[1]"), "list of objects"),
        (lambda run: (run / "frontier.json").write_text('[{"flops": 1}]'), "budget_flops"),
    ],
)
def test_a_broken_run_is_one_line_and_status_2(finished_run, capsys, spoil, words):
    spoil(finished_run)
    assert main([str(finished_run)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.usefixtures("without_plots")
def test_what_cannot_be_written_is_one_line(finished_run, tmp_path, capsys):
    (tmp_path / "file").touch()
    refused = tmp_path / "file" / "inside"
    assert main([str(finished_run), "--out", str(refused)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line in {
        f"error: cannot write {refused}: {said}" for said in ("Not a directory", "File exists")
    }
