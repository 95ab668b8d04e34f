"""A report needs nothing but what the run left in its folder."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import trainer.report.plots
from models.spaces import get_space
from trainer.engine.log import JsonlLog
from trainer.report.arch_plot import arch_rows
from trainer.report.plot_style import running_mean, save
from trainer.report.plots import frontier_figure, groups_figure
from trainer.report.report import frontier_table, main, write_report
from trainer.report.run_record import read_run

ROOT = Path(__file__).parents[2]
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
            rows = [{"budget_flops": b, "flops": b - 9, "val_accuracy": 0.9} for b in GROUPS]
            log.write("evaluation", step=step, rows=rows)
        log.write("done", step=400)
    archs = [space.smallest, space.largest]
    rows = [
        {
            "budget_flops": space.flops(arch) + 1,
            "flops": space.flops(arch),
            "params": space.params(arch),
            "val_accuracy": accuracy + 0.01,
            "test_accuracy": accuracy,
            "arch": space.arch_to_json(arch),
        }
        for arch, accuracy in zip(archs, (0.9, 0.95), strict=True)
    ]
    (run / "frontier.json").write_text(json.dumps(rows))
    (run / "recipe.json").write_text(json.dumps({"space": "nano-cnn"}))
    return run


PLOTS = {"frontier", "probabilities", "archs", "generator", "evaluations", "loss"}


def test_a_finished_run_gets_a_table_and_every_plot(finished_run):
    files = write_report(finished_run)
    report = finished_run / "report"
    assert files[0] == report / "report.md"
    text = files[0].read_text()
    assert "90.00%" in text
    assert "95.00%" in text
    for name in PLOTS:
        assert f"({name}.png)" in text
        with Image.open(report / f"{name}.png") as image:
            assert image.width > 400
        assert (report / f"{name}.svg") in files
    assert set(report.iterdir()) == set(files)


def test_the_same_rows_give_the_same_files(finished_run, tmp_path):
    rows = read_run(finished_run).frontier
    one, other = (save(frontier_figure(rows), tmp_path / name) for name in ("a", "b"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in other]


def test_a_run_under_way_gets_the_plots_it_has_data_for(tmp_path):
    with JsonlLog(tmp_path / "log.jsonl") as log:
        log.write("step", step=1, loss=1.0)
    files = write_report(tmp_path)
    assert {file.stem for file in files} == {"report", "loss"}
    assert "no frontier yet" in files[0].read_text()


def test_the_frontier_shows_the_numbers_of_the_rows(finished_run):
    rows = read_run(finished_run).frontier
    axes = frontier_figure(rows[::-1]).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    test = lines["test images"]
    assert list(test.get_ydata()) == [0.9, 0.95]
    scale = 1e6 if "MFLOPs" in axes.get_xlabel() else 1e3
    assert np.allclose(np.array(test.get_xdata()) * scale, [row["flops"] for row in rows])
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


def test_the_table_has_a_row_per_budget_from_the_smallest():
    rows = [
        {"budget_flops": 2e6, "flops": 1.9e6, "params": 12345, "val_accuracy": 0.5},
        {"budget_flops": 1e6, "flops": 1e6, "val_accuracy": 0.25, "test_accuracy": 0.2},
    ]
    small, large = frontier_table(rows)[2:]
    assert small == "| 1M | 1M | 100.0% |  | 25.00% | 20.00% |"
    assert large == "| 2M | 1.9M | 95.0% | 12,345 | 50.00% |  |"


def test_arch_rows_leave_out_what_is_no_choice_and_blank_dropped_blocks():
    space = get_space("nano-vit")
    archs = [space.arch_to_json(space.smallest), space.arch_to_json(space.largest)]
    rows = {row.label: row for row in arch_rows(archs, "nano-vit")}
    assert len(rows) == sum(len(decision.choices) > 1 for decision in space.decisions)
    for decision in space.decisions:
        if len(decision.choices) == 1:
            continue
        words = decision.kind.replace("_", " ")
        row = rows[words if decision.index is None else f"{words} {decision.index}"]
        assert row.cells[1] == (decision.choices[-1], 1.0)
        dropped = decision.block is not None and not decision.block.present(space.smallest)
        assert row.cells[0] == (None if dropped else (decision.choices[0], 0.0))
    kinds = [row.kind for row in arch_rows(archs, "nano-vit")]
    assert len(set(kinds)) == 1 + sum(a != b for a, b in itertools.pairwise(kinds))


def test_archs_of_an_unknown_space_are_drawn_from_their_json():
    archs = [{"depth": 1, "width": [8]}, {"depth": 2, "width": [8, 16]}]
    rows = {row.label: row.cells for row in arch_rows(archs, None)}
    assert rows == {
        "depth": ((1, 0.0), (2, 1.0)),
        "width 0": ((8, 0.0), (8, 0.0)),
        "width 1": (None, (16, 1.0)),
    }


def test_running_mean_looks_back_only():
    values = np.array([1.0, 3.0, 5.0, 7.0])
    assert running_mean(values, 2).tolist() == [1, 2, 4, 6]
    assert running_mean(values, 10).tolist() == [1, 2, 3, 4]


# -- the command -----------------------------------------------------------------------------------


def test_the_command_prints_one_json_object(finished_run, capsys, monkeypatch):
    draw = trainer.report.plots.draw
    monkeypatch.setattr(
        trainer.report.plots, "draw", lambda *given: itertools.islice(draw(*given), 1)
    )
    assert main([str(finished_run), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["frontier"]) == 2
    assert all(Path(file).is_file() for file in document["files"])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "log.jsonl").unlink(), "log.jsonl does not exist"),
        (lambda run: (run / "log.jsonl").write_text("x\n"), "line 1"),
        (lambda run: (run / "frontier.json").write_text("{"), "frontier.json is no JSON"),
        (lambda run: (run / "frontier.json").write_text("[1]"), "list of rows"),
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


@pytest.mark.parametrize("option", ["--out", "--html", "--pdf"])
def test_what_cannot_be_written_is_one_line(finished_run, tmp_path, capsys, monkeypatch, option):
    monkeypatch.setattr(trainer.report.plots, "draw", lambda *_: [])
    (tmp_path / "file").touch()
    refused = tmp_path / "file" / "inside"
    assert main([str(finished_run), option, str(refused)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line in {
        f"error: cannot write {refused}: {said}" for said in ("Not a directory", "File exists")
    }


@pytest.mark.parametrize("option", ["--html", "--pdf"])
def test_a_folder_for_all_files_and_one_file_exclude_each_other(finished_run, capsys, option):
    assert main([str(finished_run), "--out", "all", option, "one"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --out all is a folder for all files; leave it out, or ")


def test_help_and_a_missing_folder_as_a_program(tmp_path):
    def program(*arguments):
        command = [sys.executable, "-m", "trainer.report", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    shown = program("--help")
    assert shown.returncode == 0
    assert "--json" in shown.stdout
    failed = program(str(tmp_path / "nowhere"))
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    assert failed.stderr.count("\n") == 1
