"""What int8 gains is told of a bundle that holds it."""

import json

from benchmarks.int8 import main
from models.quantize import quantize_bundle
from tests.pictures import write_photos


def test_both_precisions_are_timed(other_folder, tmp_path, capsys):
    assert main([str(other_folder)]) == 2
    assert "holds no int8" in capsys.readouterr().err
    out = tmp_path / "int8"
    quantize_bundle(other_folder, out, write_photos(tmp_path / "photos", 64))
    assert main([str(out), "--points", "2", "--rounds", "2"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["rows"]
    assert len(rows) == len(table) - 3 == 2
    for row in rows:
        for times in ("ms_batch_1", "ms_batch_8", "build_ms"):
            assert min(row[times]) > 0
        assert row["right"][2] > 0.5
