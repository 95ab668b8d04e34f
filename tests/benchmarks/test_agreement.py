"""Answers are compared on images, with what is exact and with the same precision."""

import json

import pytest

from benchmarks.agreement import main
from models.bundle.folder import load_bundle
from models.quantize import quantize_bundle
from tests.pictures import write_photos


def test_int8_is_near_fp32_and_itself_in_its_own_runtime(other_folder, tmp_path, capsys):
    out = tmp_path / "int8"
    quantize_bundle(other_folder, out, write_photos(tmp_path / "photos", 64))
    labelled = tmp_path / "labelled"
    for label in load_bundle(out).labels[:2]:
        write_photos(labelled / label, 8)
    asked = [str(out), "--data", str(labelled), "--points", "2", "--precision", "fp32", "int8"]
    assert main([*asked, "--runtime", "onnxruntime", "torch"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["runs"] for row in told["rows"]] == 2 * [
        "onnxruntime cpu fp32",
        "onnxruntime cpu int8",
        "torch cpu fp32",
    ]
    for exact, int8, torch in zip(*[iter(told["rows"])] * 3, strict=True):
        assert exact["apart"][0] == {"largest": 0, "mean": 0, "same": 1, "surer": 0}
        assert torch["apart"][0]["largest"] < 1e-4
        assert int8["apart"][0]["mean"] == pytest.approx(0.1, abs=0.09)
        assert int8["apart"][1] == exact["apart"][0]
    assert main([*asked[:3], "--points", "1"]) == 2
