"""A user's mistake costs one line, whichever benchmark it is given to."""

import importlib

import pytest

import models
from tests.test_foundations import BENCHMARKS

NOWHERE = {
    "distilled_answers": ["{}", "{}", "--photos", "{}"],
    "elastic_dimensions": ["--photos", "{}"],
    "imagenet_mobile": ["--photos", "{}", "--out", "{}"],
    "older_processor": ["{}", "--emulator", "{}"],
    "photo_folder": ["{}", "--out", "{}", "--each", "1"],
    "photos_to_teach": ["{}", "--data", "{}", "--each", "1", "--out", "{}"],
    "plain_litserve": ["--bundle", "{}"],
}


@pytest.mark.parametrize("name", NOWHERE)
def test_a_path_that_is_not_there_is_told_in_one_line(name, tmp_path, capsys):
    main = importlib.import_module(f"benchmarks.{name}").main
    assert main([word.format(tmp_path / "nowhere") for word in NOWHERE[name]]) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert said.count("\n") == 1
    assert said.startswith(f"error: {tmp_path / 'nowhere'}")


@pytest.mark.parametrize("name", [*BENCHMARKS, "experiments.__main__"])
@pytest.mark.parametrize(
    ("fault", "status"), [(ValueError("9 is too many"), 2), (KeyboardInterrupt(), 130)]
)
def test_every_benchmark_tells_what_ends_it(name, fault, status, capsys, monkeypatch):
    main = importlib.import_module(f"benchmarks.{name}").main

    def end(*_: object) -> None:
        raise fault

    monkeypatch.setattr("argparse.ArgumentParser.parse_args", end)
    assert main([]) == status
    assert capsys.readouterr().err in ("error: 9 is too many\n", "stopped\n")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_tell_their_version(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"benchmarks.{name}").main(["--version"])
    assert capsys.readouterr().out == f"{models.PRODUCT}\n"
