"""Experiments run, stop, go on, and make their tables again from their logs."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.experiments import EXPERIMENTS
from benchmarks.experiments.__main__ import main
from benchmarks.experiments.alone import alone_curve
from benchmarks.experiments.experiment import AbstractExperiment
from benchmarks.experiments.paired import interval
from benchmarks.experiments.samplers import overheads
from benchmarks.experiments.scales import digits_scale
from benchmarks.experiments.settings import Groups
from benchmarks.experiments.static_tilts import DISTRIBUTIONS, StaticTilts
from benchmarks.experiments.table import paired_table
from models.spaces import get_space
from trainer.engine.horizon import FORWARD_AND_BACKWARD

PAGES = Path(__file__).parents[2] / "docs" / "experiments"


def row(case, seed, loss):
    rows = [{"flops": 1, "held_out_loss": loss, "test_loss": loss, "test_accuracy": loss / 10}]
    return {"case": case, "seed": seed, "steps": 10, "compute": 100, "rows": rows}


def test_intervals_are_those_of_the_paired_mean():
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, round(half, 2)) == (2.0, 2.48)
    assert interval([1.0])[1] == float("inf")


def test_a_table_pairs_seeds_and_leaves_out_those_that_are_not_there():
    results = [row("a/x", 0, 1.0), row("a/x", 1, 1.2), row("b/x", 1, 1.1), row("b/x", 2, 9.0)]
    lines = paired_table(results, ["x"], ["a", "b"], lambda account: f"a/{account}").splitlines()
    assert len(lines) == 4
    assert "| b | 1 | 10 | 0.00 | -0.100 |" in lines[3]


def test_time_is_counted_as_it_was_taken():
    """Steps, passes and forward passes of a machine whose every time is known."""
    flops = [1_000_000, 3_000_000, 8_000_000]
    pass_ms = [6e-6 * (f + 500_000) for f in flops]
    taken = {
        "pass_ms": pass_ms,
        "step_ms": [ms + 12.0 for ms in pass_ms],
        "forward_ms": [0.25 * ms for ms in pass_ms],
    }
    found = overheads(flops, taken)
    assert found == {"step_flops": 2_000_000, "pass_flops": 500_000, "forward_weight": 0.75}


def test_worst_regret_is_against_the_hull_of_archs_that_train_alone(tmp_path):
    logs, setup = tmp_path / "results.jsonl", {"scale": "nano", "epochs": 4, "data": "a"}
    assert alone_curve(tmp_path, setup) is None
    (tmp_path / "setup.json").write_text(json.dumps(setup | {"archs": []}), encoding="utf-8")
    alone = [(1, 0, 4.0), (10, 0, 2.9), (10, 1, 3.1), (100, 0, 3.9), (1000, 0, 3.0)]
    lines = [
        {"case": f"alone-{f}", "seed": seed, "rows": [{"flops": f, "test_loss": loss}]}
        for f, seed, loss in alone
    ]
    lines.append({"case": "shift", "seed": 0, "rows": [{"flops": 5, "test_loss": 0.0}] * 2})
    logs.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for other in ({"scale": "cnn"}, {"epochs": 8}, {"data": "b"}):
        assert alone_curve(tmp_path, setup | other) is None
    curve = alone_curve(tmp_path, setup)
    # 100 is worse than its neighbours, so the curve passes below; it goes on beyond both ends
    expected = {0.1: 5.0, 1: 4.0, 10**0.5: 3.5, 10: 3.0, 100: 3.0, 1000: 3.0, 1e4: 3.0}
    assert {f: round(curve(f), 6) for f in expected} == expected

    results = [row("a/x", 0, 5.0), row("b/x", 0, 4.5)]
    cells = paired_table(results, ["x"], ["a", "b"], lambda of: f"a/{of}", curve).splitlines()
    assert cells[0].count("|") == cells[1].count("|") == cells[2].count("|")
    assert cells[3].endswith("| 0.500 | -0.500 |")


def test_accounts_are_equal_in_what_they_count():
    """Of static distributions the expected steps, multiply-adds and time are known."""
    experiment = StaticTilts("static-tilts", digits_scale(), None, [0])
    setup = {"flops": [1e5, 3e5, 9e5], "step_ms": [10.0, 12.0, 18.0]}
    a_step = FORWARD_AND_BACKWARD * experiment.base.batch_size

    class Splits:
        train = range(640)

    experiment.splits = lambda seed: Splits
    steps = experiment.base.epochs * 10
    import benchmarks.experiments.static_tilts as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "batches_of", lambda *_, **__: range(10))
        uniform = experiment.compute_of(setup, "uniform", "multiply-adds")
        assert uniform == pytest.approx(a_step * steps * 1.3e6 / 3)
        for account in ("time", "steps"):
            assert experiment.compute_of(setup, "uniform", account) == pytest.approx(uniform)
        for name in DISTRIBUTIONS:
            assert experiment.compute_of(setup, name, "multiply-adds") == uniform
        assert experiment.compute_of(setup, "small-4", "steps") < 0.6 * uniform
        assert experiment.compute_of(setup, "small-4", "time") < uniform
        assert experiment.compute_of(setup, "large-2", "steps") > uniform


def test_an_experiment_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(AbstractExperiment, "splits", None, raising=False)

    def run(self, case, setup, interrupt):
        if len(trained) == 4:
            raise ValueError("stopped")
        trained.append(case.key)
        return row(case.name, case.recipe.seed, 1.0)

    monkeypatch.setattr(AbstractExperiment, "run_case", run)
    arguments = ["groups", "--scale", "digits", "--seeds", "2", "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert len(trained) == 4
    trained, before = [], list(trained)
    assert main(arguments) == 0
    assert len({*before, *trained}) == 2 * len(Groups.variants) == len(before) + len(trained)
    table = capsys.readouterr().out
    assert main([*arguments, "--table"]) == 0
    assert capsys.readouterr().out == table

    assert main([*arguments, "--epochs", "3"]) == 2
    said = capsys.readouterr().err
    assert "is of epochs 2, and 3 is asked for: name another folder" in said
    assert main([*arguments, "--epochs", "0"]) == 2
    assert "a run has 1 or more" in capsys.readouterr().err
    trained = []
    assert main([*arguments[:-1], str(tmp_path / "other"), "--only", "6 groups", "5 groups"]) == 2
    assert not trained, "a name that is wrong is told before anything runs"
    assert "--only 5 groups is not a case; there are 6 groups, " in capsys.readouterr().err
    tuned = ["inherited", *arguments[1:-1], str(tmp_path / "inherited"), "--only", "tuned-0"]
    assert main(tuned) == 2
    assert "add supernet to --only" in capsys.readouterr().err

    one = tmp_path / "one"
    chosen = ["groups", "--scale", "digits", "--seeds", "2", "--only", "6 groups"]
    assert main([*chosen, "--out", str(one)]) == 0
    assert len((one / "results.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_on_digits(name, tmp_path, capsys):
    assert main([name, "--scale", "digits", "--seeds", "1", "--out", str(tmp_path / name)]) == 0
    table = capsys.readouterr().out
    assert len(table.splitlines()) > 2
    assert main([name, "--scale", "digits", "--out", str(tmp_path / name), "--table"]) == 0
    assert capsys.readouterr().out == table


def test_the_committed_tables_come_from_the_committed_logs(capsys):
    for name in EXPERIMENTS:
        assert main([name, "--table", "--out", str(PAGES / name)]) == 0
        said = capsys.readouterr().out
        assert said.strip() in (PAGES / f"{name}.md").read_text(encoding="utf-8")
    page = (PAGES / "static-tilts.md").read_text(encoding="utf-8")
    for folder in ("cifar-cnn-4", "cifar-cnn-16"):
        out = str(PAGES / "static-tilts" / folder)
        assert main(["static-tilts", "--scale", "cnn", "--table", "--out", out]) == 0
        assert capsys.readouterr().out.strip() in page


def test_a_table_is_of_the_runs_that_are_asked_for(tmp_path, capsys):
    folder = str(PAGES / "groups")
    for given, told in (
        (["--only", "6 groups"], "--table is of all runs; leave out --only"),
        (["--seeds", "0"], "--seeds is 0; give 1 or more"),
        (["--data", str(tmp_path / "nowhere")], "nowhere does not exist"),
        (["--scale", "digits"], "is of scale nano, and digits is asked for"),
        (["--epochs", "9"], "is of epochs 4, and 9 is asked for"),
    ):
        assert main(["groups", "--table", "--out", folder, *given]) == 2
        assert told in capsys.readouterr().err
    assert main(["groups", "--table", "--out", folder, "--seeds", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows
    assert all(row.split(" | ")[2] == "1" for row in rows)


def test_a_folder_of_another_experiment_is_refused(tmp_path, capsys):
    shutil.copytree(PAGES / "shift", tmp_path, dirs_exist_ok=True)
    for name in ("samplers", "inherited", "ranking", "rejection"):
        assert main([name, "--table", "--out", str(tmp_path)]) == 2
        assert "is of experiment shift, and" in capsys.readouterr().err
    setup = json.loads((tmp_path / "setup.json").read_text(encoding="utf-8"))
    del setup["experiment"]  # as older commits wrote it
    (tmp_path / "setup.json").write_text(json.dumps(setup), encoding="utf-8")
    assert main(["shift", "--table", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["ranking", "--table", "--out", str(tmp_path)]) == 2
    assert "lacks 'archs', which ranking needs: its logs are of" in capsys.readouterr().err
    (tmp_path / "results.jsonl").unlink()
    assert main(["sufficiency", "--table", "--out", str(tmp_path)]) == 2
    assert "does not hold such runs yet" in capsys.readouterr().err
    (tmp_path / "setup.json").write_text('{"sca', encoding="utf-8")
    assert main(["shift", "--table", "--out", str(tmp_path)]) == 2
    assert "setup.json is not a JSON object" in capsys.readouterr().err


def test_a_score_that_some_logs_lack_is_of_the_others(tmp_path, capsys):
    shutil.copytree(PAGES / "sufficiency", tmp_path, dirs_exist_ok=True)
    first, last = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    for moment in last["moments"]:
        moment["scores"]["gradient norm (Eq. 4)"] = moment["gained"]
    lines = "".join(json.dumps(line) + "\n" for line in (first, last))
    (tmp_path / "results.jsonl").write_text(lines)
    assert main(["sufficiency", "--table", "--out", str(tmp_path)]) == 0
    assert "| gradient norm (Eq. 4), of 1 seeds | +1.00 (+1.00 to" in capsys.readouterr().out


def test_a_line_that_was_cut_off_is_run_again(tmp_path, monkeypatch, capsys):
    def run(self, case, setup, interrupt):
        return row(case.name, case.recipe.seed, 1.0)

    monkeypatch.setattr(AbstractExperiment, "run_case", run)
    arguments = ["groups", "--scale", "digits", "--seeds", "2", "--out", str(tmp_path)]
    assert main(arguments) == 0
    file = tmp_path / "results.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-9])
    capsys.readouterr()
    assert main([*arguments, "--table"]) == 0
    assert "results.jsonl: its last line was cut off, and is left out" in capsys.readouterr().err
    assert file.read_text() == whole[:-9]
    assert main(arguments) == 0
    assert sorted(map(len, file.read_text().splitlines())) == sorted(map(len, whole.splitlines()))
    file.write_text("words\n" + whole)
    assert main(arguments) == 2
    assert "results.jsonl, line 1, is not a JSON object" in capsys.readouterr().err


def test_the_ladder_of_the_log_is_of_the_space():
    space = get_space("nano-cnn")
    setup = json.loads((PAGES / "static-tilts" / "setup.json").read_text(encoding="utf-8"))
    assert [space.flops(space.arch_from_json(d)) for d in setup["ladder"]] == setup["flops"]
