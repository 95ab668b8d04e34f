"""The published subnets' numbers come out of the command, from the files that lie in the repo."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import benchmarks.spaces
from models.__main__ import main
from models.spaces import get_space
from models.spaces.published import FOLDER, agrees, published

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("entry", published(), ids=lambda entry: f"{entry.subnet} {entry.space}")
def test_published_subnets_have_the_published_size(entry, capsys):
    assert main(["describe", entry.space, "--arch", str(entry.arch)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert agrees(answer["flops"], entry.flops)
    assert entry.params is None or agrees(answer["params"], entry.params)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_relative_position_is_the_variant_with_it(size, capsys):
    arch = (FOLDER / f"autoformer-{size}.json").read_text()
    assert main(["describe", f"vit-{size}", "--arch", arch, "--relative-position"]) == 0
    answer = json.loads(capsys.readouterr().out)
    entry = next(entry for entry in published() if entry.space == f"vit-{size}-rpe")
    assert answer["space"] == entry.space
    assert (str(answer["params"]), str(answer["flops"])) == (entry.params, entry.flops)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff\xfe\x00", "is not text"),
        (b"RETRAIN:\n  DEPTH: 13", "is not JSON"),
        (b"[192, 12]", "is a JSON object"),
        (b'{"layer_num": 13, "embed_dim": [192]}', "has no 'layer_num'"),
        (b'{"embed_dim": 192, "depth": 12, "num_heads": [3], "mlp_ratio": 4}', "is missing"),
    ],
)
def test_other_archs_are_refused_in_one_line(tmp_path, capsys, text, said):
    (tmp_path / "arch").write_bytes(text)
    assert main(["describe", "vit-tiny", "--arch", str(tmp_path / "arch")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize("name", ["attentivenas", "vit-tiny-rpe"])
def test_spaces_without_a_variant_with_relative_position_say_so(capsys, name):
    assert main(["describe", name, "--relative-position"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        f"{name} has no variant with it; these have: vit-base, vit-small, vit-tiny"
    )


def test_every_file_is_listed_and_every_space_of_the_paper_is_there():
    entries = published()
    assert {e.arch for e in entries} == {*FOLDER.glob("*.json")} - {FOLDER / "numbers.json"}
    assert {"vit-tiny", "vit-small", "vit-base", "bignas", "attentivenas"} <= {
        e.space for e in entries
    }


def test_published_ends_are_the_ends():
    attentivenas, bignas = get_space("attentivenas"), get_space("bignas")
    for space, arch, name in (
        (attentivenas, attentivenas.smallest, "attentivenas-a0"),
        (attentivenas, attentivenas.largest, "attentivenas-largest"),
        (bignas, bignas.smallest, "bignas-smallest"),
        (bignas, bignas.largest, "bignas-largest"),
    ):
        assert space.arch_from_json(json.loads((FOLDER / f"{name}.json").read_text())) == arch


def test_numbers_agree_to_the_digit_that_was_published():
    assert agrees(203_389_568, "203.390M")
    assert not agrees(203_389_568, "203.389M")
    assert agrees(1_843_030_528, "1843M")
    assert agrees(5_768_104, "5768104")
    assert not agrees(5_768_105, "5768104")


def test_the_benchmark_says_so_when_a_number_differs(monkeypatch, capsys):
    entry = next(entry for entry in published() if entry.space == "bignas")
    arguments = ["--space", "bignas", "--archs", "0"]
    for flops, status in ((entry.flops, 0), ("206.8M", 1)):
        monkeypatch.setattr(
            benchmarks.spaces, "published", lambda f=flops: [replace(entry, flops=f)]
        )
        assert benchmarks.spaces.main(arguments) == status
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["equal"] is (status == 0)


def test_the_benchmark_names_the_archs_whose_operators_differ(monkeypatch, capsys):
    space = get_space("nano-vit")
    count = benchmarks.spaces.count_operators
    monkeypatch.setattr(
        benchmarks.spaces, "count_operators", lambda s, a: (count(s, a)[0] + 2, count(s, a)[1])
    )
    assert benchmarks.spaces.main(["--space", "nano-vit", "--archs", "0"]) == 1
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["counted"]
    assert row["flops_differ"] == [space.arch_id(space.smallest), space.arch_id(space.largest)]
    assert row["params_differ"] == []


def test_a_reader_that_stops_early_gets_no_traceback():
    """As in ``python -m models describe attentivenas | head``: more than a pipe holds."""
    command = [sys.executable, "-m", "models", "describe", "vit-base"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() != 0
    process.stderr.close()


def test_a_bundle_that_is_not_there_is_not_called_a_space(capsys):
    assert main(["describe", "runs/none/bundle"]) == 2
    assert "runs/none/bundle is not a bundle: there is no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["vit-tiny", "--arch", '{"a":' * 100_000], ["x" * 300]])
def test_what_no_arch_and_no_folder_can_be_is_one_line(capsys, given):
    assert main(["describe", *given]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
