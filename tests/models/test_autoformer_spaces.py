"""What is particular to AutoFormer's spaces; their published numbers: test_published_spaces."""

import pytest

from models.__main__ import main
from models.spaces import get_space

BASES = ("vit-tiny", "vit-small", "vit-base")


@pytest.mark.parametrize("name", BASES)
def test_a_stepped_bias_costs_parameters_and_no_flops(name):
    plain, stepped = get_space(f"{name}-rpe"), get_space(f"{name}-autoformer")
    assert stepped.max_flops == plain.max_flops
    assert stepped.min_flops == plain.min_flops
    assert stepped.params(stepped.smallest) == plain.params(plain.smallest)
    heads = plain.decision["num_heads.0"].choices
    tables = max(plain.decision["depth"].choices) * 64 * heads[-1] * (len(heads) - 1)
    assert stepped.params(stepped.largest) == plain.params(plain.largest) + tables


def test_relative_position_is_refused_where_there_is_none(capsys):
    assert main(["describe", "cifar-cnn", "--relative-position"]) == 2
    assert "cifar-cnn has no variant with it" in capsys.readouterr().err
