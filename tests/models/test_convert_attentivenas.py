"""Converted AttentiveNAS checkpoints answer as the public implementation does."""

import argparse
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.converters import convert
from models.nets import build_net
from tests.reference.state import inputs, state

REFERENCE = Path(__file__).parents[1] / "reference"
META = json.loads((REFERENCE / "attentivenas.json").read_text())
BIAS = "classifier.linear.linear.bias"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    tensors = {k: torch.from_numpy(v) for k, v in state(META["state_dict"], META["seed"]).items()}
    path = tmp_path_factory.mktemp("checkpoint") / "attentivenas.pth.tar"
    torch.save({"epoch": 360, "state_dict": {f"module.{k}": v for k, v in tensors.items()}}, path)
    return convert("attentivenas", path)


@pytest.fixture(scope="module")
def net(converted):
    net = build_net(converted.space).eval()
    net.load_state_dict({k: torch.from_numpy(v) for k, v in converted.weights.items()})
    return net


@pytest.mark.parametrize("name", META["archs"])
def test_logits_are_those_of_the_public_implementation(converted, net, name):
    space = converted.space
    arch = space.arch_from_json(META["archs"][name])
    assert space.flops(arch) == round(1e6 * META["flops_million"][name])
    statistics = {
        norm: tuple(torch.from_numpy(part) for part in parts)
        for norm, parts in converted.arch_statistics(arch).items()
    }
    side = space.resolution(arch)
    images = torch.from_numpy(inputs(300 + side, side))
    with torch.no_grad():
        logits = net(images, arch, statistics).numpy()
    with np.load(REFERENCE / "attentivenas.npz") as answers:
        wanted = answers[name]
    assert np.abs(logits - wanted).max() <= 1e-4 * np.abs(wanted).max()


# Tensors of one stored number each: what is refused does not depend on values.
def hollow(**changed):
    shapes = META["state_dict"] | changed
    return {
        k: torch.zeros(1).expand(s) if s else torch.zeros((), dtype=torch.int64)
        for k, s in shapes.items()
        if s is not None
    }


def refused(path, document, match):
    torch.save(document, path)
    with pytest.raises(ValueError, match=match):
        convert("attentivenas", path)


def test_other_numbers_of_classes_are_read(tmp_path):
    changed = {BIAS: [7], "classifier.linear.linear.weight": [7, 1984]}
    torch.save(hollow(**changed), tmp_path / "seven.pth")
    assert convert("attentivenas", tmp_path / "seven.pth").space.num_classes == 7


@pytest.mark.parametrize("name", ["other.safetensors", "other.pth", "other"])
def test_safetensors_are_read_whatever_their_name(tmp_path, name):
    save_file({"weight": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ValueError, match=f"it has no {BIAS}"):
        convert("attentivenas", tmp_path / name)


def test_half_precision_is_read(tmp_path):
    tensors = {k: v.bfloat16() if v.is_floating_point() else v for k, v in hollow().items()}
    torch.save(tensors, tmp_path / "a.pth")
    weights = convert("attentivenas", tmp_path / "a.pth").weights
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "before", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_what_wrappers_put_before_names_is_taken_off(tmp_path, before):
    torch.save({before + k: v for k, v in hollow().items()}, tmp_path / "a.pth")
    assert convert("attentivenas", tmp_path / "a.pth").taken == "the whole file"


def test_names_that_become_the_same_are_refused(tmp_path):
    refused(tmp_path / "a.pth", hollow() | {f"module.{BIAS}": torch.zeros(7)}, "differ only in mod")


def test_numbers_of_numpy_stand_beside_the_weights(tmp_path):
    numbers = {"acc": np.float64(76.1), "epoch": np.int64(3), "lr": np.float32(0.1), "best": True}
    for document in ({"state_dict": hollow(), **numbers}, hollow() | numbers):
        torch.save(document, tmp_path / "a.pth")
        assert convert("attentivenas", tmp_path / "a.pth").space.num_classes == 1000


def test_which_of_several_networks_is_taken_is_said_and_may_be_chosen(tmp_path):
    seven = {BIAS: [7], "classifier.linear.linear.weight": [7, 1984]}
    torch.save({"model_ema": hollow(**seven), "model": hollow(), "epoch": 3}, tmp_path / "a.pth")
    first = convert("attentivenas", tmp_path / "a.pth")
    assert first.taken == "entry 'model'; it also has model_ema"
    assert first.space.num_classes == 1000
    asked = convert("attentivenas", tmp_path / "a.pth", "model_ema")
    assert asked.taken == "entry 'model_ema'; it also has model"
    assert asked.space.num_classes == 7
    with pytest.raises(ValueError, match="no entry 'ema'; it has: model, model_ema"):
        convert("attentivenas", tmp_path / "a.pth", "ema")
    torch.save({"model_ema": hollow()}, tmp_path / "b.pth")
    assert convert("attentivenas", tmp_path / "b.pth").taken == "entry 'model_ema'"


def test_what_has_no_place_is_refused_by_name(tmp_path):
    strange = {"blocks.5.attention.qkv.weight": [8, 8]}
    refused(tmp_path / "a.pth", hollow(**strange), r"has blocks\.5\.attention\.qkv\.weight, for")


def test_what_is_missing_is_named(tmp_path):
    missing = {"first_conv.bn.bn.running_var": None}
    refused(tmp_path / "a.pth", hollow(**missing), r"lacks first_conv\.bn\.bn\.running_var; it")


def test_another_shape_is_named_with_both_shapes(tmp_path):
    key = "blocks.0.mobile_inverted_conv.depth_conv.conv.conv.weight"
    refused(tmp_path / "a.pth", hollow(**{key: [24, 1, 3, 3]}), rf"{key} is .*3, 3\), not .*5, 5\)")


def test_pickled_objects_are_refused(tmp_path):
    document = {"state_dict": hollow(), "args": Path("x")}
    refused(tmp_path / "a.pth", document, r"tensors only: to make its pathlib\.\w+, code from")


class Attack:
    """Unpickled, it would make a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_code_in_a_checkpoint_is_not_run(tmp_path, save):
    mark = tmp_path / "ran"
    save({"state_dict": Attack(mark)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"tensors only|not a file of torch\.save") as refusal:
        convert("attentivenas", tmp_path / "a.pth")
    assert "\n" not in str(refusal.value)
    assert not mark.exists()


def test_arguments_that_training_scripts_keep_are_no_obstacle(tmp_path):
    """As DeiT's and AutoFormer's do: an argparse.Namespace of plain values."""
    document = {"state_dict": hollow(), "args": argparse.Namespace(lr=0.1, name="x")}
    torch.save(document, tmp_path / "a.pth")
    assert convert("attentivenas", tmp_path / "a.pth").space.num_classes == 1000


def test_numbers_that_are_none_are_refused_by_name(tmp_path):
    key = "blocks.0.mobile_inverted_conv.depth_conv.conv.conv.weight"
    tensors = hollow()
    tensors[key] = torch.full((1,), float("nan")).expand(tensors[key].shape)
    refused(tmp_path / "a.pth", tensors, rf"{key} holds numbers that are not finite")


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    torch.save({"state_dict": hollow()}, tmp_path / "a.pth")
    data = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cut off"):
        convert("attentivenas", tmp_path / "a.pth")


@pytest.mark.parametrize("document", [{"epoch": 3}, {}, [torch.zeros(1)]])
def test_files_without_a_network_are_refused(tmp_path, document):
    refused(tmp_path / "a.pth", document, "tensors by name")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_files_that_are_no_checkpoints_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"these are not the weights you are looking for")
    with pytest.raises(ValueError, match=r"cannot be read|not a safetensors file"):
        convert("attentivenas", tmp_path / name)


def test_missing_files_and_unknown_converters_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at"):
        convert("attentivenas", tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="did you mean 'attentivenas'"):
        convert("attentivnas", tmp_path / "nothing.pth")
