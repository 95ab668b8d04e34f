"""What a command is to write is refused before its work."""

import importlib
from argparse import ArgumentTypeError

import pytest

from models.outputs import plot_file
from models.quantize import refuse_out


@pytest.mark.parametrize("module", ["trainer.evaluate", "benchmarks.latency_vs_flops"])
def test_a_plot_is_refused_before_anything_is_measured(module, capsys):
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(module).main(["--plot", "plot.pngg"])
    assert "argument --plot: plot.pngg is not a plot's file" in capsys.readouterr().err


def test_a_plot_has_an_ending_and_a_place(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    assert plot_file(str(tmp_path / "new" / "plot.SVG")) == tmp_path / "new" / "plot.SVG"
    for name, said in (
        ("plot", "not a plot's file"),
        ("plot.txt", "not a plot's file"),
        ("folder.png", "not a plot's file"),
        ("file/plot.png", "not a folder that can be written"),
    ):
        with pytest.raises(ArgumentTypeError, match=said):
            plot_file(str(tmp_path / name))


def test_a_bundle_below_a_file_is_refused_before_it_is_quantized(tmp_path):
    (tmp_path / "file").touch()
    refuse_out(tmp_path / "source", tmp_path / "new" / "bundle")
    with pytest.raises(ValueError, match="cannot be made"):
        refuse_out(tmp_path / "source", tmp_path / "file" / "bundle")
