"""AutoFormer's spaces give the published subnets' numbers."""

import json

import pytest

from models.__main__ import main
from models.spaces import get_space

PUBLISHED = {
    "vit-tiny": {
        "embed_dim": 192,
        "depth": 13,
        "num_heads": [3] * 10 + [4, 3, 3],
        "mlp_ratio": [3.5, 3.5, 3.0, 3.5, 3.0, 3.0, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5],
    },
    "vit-small": {
        "embed_dim": 384,
        "depth": 13,
        "num_heads": [6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7],
        "mlp_ratio": [3.0, 3.5, 3.0, 3.5, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.5, 4.0],
    },
    "vit-base": {
        "embed_dim": 576,
        "depth": 14,
        "num_heads": [9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10],
        "mlp_ratio": [3.5, 3.5, 4, 3.5, 4, 3.5, 3.5, 3, 4, 4, 3, 4, 3, 3.5],
    },
}
PLAIN = {
    "vit-tiny": (5_768_104, 1_283_236_352),
    "vit-small": (22_791_592, 4_773_931_776),
    "vit-base": (53_584_168, 11_045_397_248),
}
RELATIVE = {
    "vit-tiny": (5_867_944, 1_481_938_432),
    "vit-small": (22_891_432, 5_161_400_832),
    "vit-base": (53_691_688, 11_691_179_008),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("options", "wanted"), [([], PLAIN), (["--relative-position"], RELATIVE)])
def test_published_subnets_have_the_published_size(name, options, wanted, capsys):
    assert main(["describe", name, "--arch", json.dumps(PUBLISHED[name]), *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["params"], answer["flops"]) == wanted[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_stepped_bias_costs_no_flops(name):
    wanted = RELATIVE[name][1]
    space = get_space(f"{name}-autoformer")
    assert space.flops(space.arch_from_json(PUBLISHED[name])) == wanted


def test_relative_position_is_refused_where_there_is_none(capsys):
    assert main(["describe", "cifar-cnn", "--relative-position"]) == 2
    assert "no search space 'cifar-cnn-rpe'" in capsys.readouterr().err
