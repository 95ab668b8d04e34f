"""A refactor that should not change numbers does not: the committed curves come out again."""

import json

import pytest

from tests.trainer.golden import CURVES, FILE, here, run_curve

RECORDED = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", CURVES)
def test_the_recorded_curve_comes_out_again(tmp_path, name):
    curve = json.loads(json.dumps(run_curve(name, tmp_path / name)))
    if RECORDED["made_with"] == here():
        assert curve == RECORDED[name]
    else:
        # another processor or another torch: the last bits may differ, and grow
        compare(curve, RECORDED[name], name)


def compare(one, other, path):
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key, value in one.items():
            compare(value, other[key], f"{path}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for index, value in enumerate(one):
            compare(value, other[index], f"{path}[{index}]")
    elif isinstance(one, float):
        absolute = 0.01 if "accuracy" in path else 1e-6
        assert one == pytest.approx(other, rel=1e-4, abs=absolute), path
    else:
        assert one == other, path
