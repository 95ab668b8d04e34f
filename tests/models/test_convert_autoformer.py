"""Converted AutoFormer checkpoints answer as the public implementation does."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from models.__main__ import main
from models.bundle.folder import load_bundle
from models.converters import convert
from models.converters.autoformer import PACKED, carry
from models.converters.deployment import convert_to_bundle
from models.nets import build_net
from models.nets.extract import extract
from models.space.weights import weight_slices
from models.spaces import get_space
from tests.one_hot import relax
from tests.reference.state import inputs, state

REFERENCE = Path(__file__).parents[1] / "reference"


@cache
def meta(size):
    return json.loads((REFERENCE / f"autoformer_{size}.json").read_text())


@pytest.fixture(scope="module", params=["T", "S"])
def size(request):
    return request.param


@pytest.fixture(scope="module")
def net(size, tmp_path_factory):
    weights = state(meta(size)["state_dict"], meta(size)["seed"])
    path = tmp_path_factory.mktemp("checkpoint") / "supernet.pth"
    torch.save({"model": {k: torch.from_numpy(v) for k, v in weights.items()}, "epoch": 500}, path)
    converted = convert("autoformer", path)
    net = build_net(converted.space).eval()
    net.load_state_dict({k: torch.from_numpy(v) for k, v in converted.weights.items()})
    return net


@pytest.mark.parametrize("name", ["published", "min", "max", "r0", "r1"])
def test_logits_are_those_of_the_public_implementation(size, net, name):
    given = meta(size)["archs"][name]
    arch = net.space.arch_from_json(
        {
            "embed_dim": given["embed_dim"][0],
            "depth": given["layer_num"],
            "num_heads": given["num_heads"],
            "mlp_ratio": given["mlp_ratio"],
        }
    )
    images = torch.from_numpy(inputs(meta(size)["input_seed"], 224))
    with np.load(REFERENCE / f"autoformer_{size}.npz") as answers:
        wanted = torch.from_numpy(answers[name])
    with torch.no_grad():
        ways = [net(images, arch)]
        if name == "published":
            ways += [extract(net, arch)(images), net(images, relax(net.space, arch))]
    for logits in ways:
        assert (logits - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("heads", [8, 9, 10])
def test_queries_keys_and_values_of_base_are_those_of_the_packed_table(heads):
    """By the rule of the public implementation, for a block of the size without a reference."""
    space, width, rng = get_space("vit-base-autoformer"), 576, np.random.default_rng(heads)
    packed = rng.normal(size=(1920, 640)).astype(np.float32) / 25
    bias = rng.normal(size=1920).astype(np.float32)
    stream = rng.normal(size=(5, width)).astype(np.float32)
    channels = 64 * heads
    # there: every third row, but the bias plainly cut
    rows = np.concatenate([packed[i : 3 * channels : 3, :width] for i in range(3)])
    query, key, value = np.split(stream @ rows.T + bias[: 3 * channels], 3, axis=1)

    taken = {"blocks.3.attn.qkv.weight": packed, "blocks.3.attn.qkv.bias": bias}
    arch = space.arch({**space.largest, "embed_dim": width, "num_heads.3": heads})
    names = [f"blocks.3.attention.{part}.{w}" for part in PACKED for w in ("weight", "bias")]
    weights = {n: carry(space, n, taken)[weight_slices(space, arch)[n]] for n in names}
    ours = {}
    for part in PACKED:
        table = weights[f"blocks.3.attention.{part}.bias"]
        shift = table.sum(0) if part == "value" else table
        ours[part] = stream @ weights[f"blocks.3.attention.{part}.weight"].T + shift
    np.testing.assert_allclose(ours["query"], query, atol=1e-4)
    np.testing.assert_allclose(ours["value"], value, atol=1e-4)
    # another bias of the keys moves all logits of a query and head by the same
    moved = np.einsum(
        "qhd,khd->hqk",
        *(x.reshape(5, heads, 64) for x in (query, ours["key"] - key)),
    )
    np.testing.assert_allclose(moved, moved[:, :, :1] + np.zeros_like(moved), atol=1e-3)


# Tensors of one stored number each: what is refused does not depend on values.
def refused(path, match, **changed):
    shapes = {k: s for k, s in (meta("T")["state_dict"] | changed).items() if s is not None}
    torch.save({k: torch.zeros(1).expand(s) for k, s in shapes.items()}, path)
    with pytest.raises(ValueError, match=match):
        convert("autoformer", path)


def test_what_has_no_place_is_refused_by_name(tmp_path):
    refused(tmp_path / "a.pth", "has dist_token, for which", dist_token=[1, 1, 256])


def test_checkpoints_without_relative_position_are_refused_by_name(tmp_path):
    key = "blocks.3.attn.rel_pos_embed_k.embeddings_table_v"
    refused(tmp_path / "a.pth", f"lacks {key}", **{key: None})


def test_another_shape_is_named_with_both_shapes(tmp_path):
    key = "blocks.3.attn.qkv.weight"
    refused(
        tmp_path / "a.pth", rf"{key} is .*\(576, 256\), not .*\(768, 256\)", **{key: [576, 256]}
    )


def test_other_widths_are_refused(tmp_path):
    key = "patch_embed_super.proj.bias"
    refused(tmp_path / "a.pth", r"is 300 wide; .*256 \(vit-tiny\)", **{key: [300]})


def test_other_networks_are_refused(tmp_path):
    refused(tmp_path / "a.pth", "is not an AutoFormer supernet", **{"head.bias": None})


def test_the_command_tells_what_is_wrong_in_one_line(tmp_path, capsys):
    out = str(tmp_path / "bundle")
    assert main(["convert", "autoformer", str(tmp_path / "nothing.pth"), "--out", out]) == 2
    assert capsys.readouterr().err.startswith("error: no checkpoint at")
    assert main(["convert", "autoforme", str(tmp_path / "nothing.pth"), "--out", out]) == 2
    assert "did you mean 'autoformer'" in capsys.readouterr().err


@pytest.mark.slow
def test_converted_bundle_keeps_budgets_and_answers_alike(tmp_path):
    weights = state(meta("T")["state_dict"], meta("T")["seed"])
    checkpoint = tmp_path / "supernet.pth"
    torch.save({k: torch.from_numpy(v) for k, v in weights.items()}, checkpoint)
    convert_to_bundle("autoformer", checkpoint, tmp_path / "bundle", steps=3)
    bundle = load_bundle(tmp_path / "bundle")
    space = bundle.space
    for budget in np.linspace(space.min_flops, space.max_flops, 20):
        assert space.flops(bundle.answer(float(budget))) <= budget
    given = meta("T")["archs"]["r0"]
    arch = space.arch_from_json(
        {
            "embed_dim": given["embed_dim"][0],
            "depth": given["layer_num"],
            "num_heads": given["num_heads"],
            "mlp_ratio": given["mlp_ratio"],
        }
    )
    session = onnxruntime.InferenceSession(
        bundle.build_onnx(arch).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"images": inputs(meta("T")["input_seed"], 224)})
    with np.load(REFERENCE / "autoformer_T.npz") as answers:
        wanted = answers["r0"]
    assert np.abs(logits - wanted).max() <= 1e-4 * np.abs(wanted).max()
