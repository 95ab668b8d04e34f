"""Bundles that also answer budgets of a measured cost."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

import models.__main__
import trainer.run
from models.__main__ import main
from models.bundle.costs import cost_answers
from models.bundle.folder import load_bundle
from models.bundle.manifest import version_of
from models.retarget import retarget
from models.spaces import get_space
from tests.bundles import make_bundle, say_trained_alone
from tests.models.test_costs import made_up_table
from tests.pictures import write_photos


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_bundle("nano-cnn", tmp_path_factory.mktemp("retarget") / "bundle")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("retargeted") / "bundle"
    told = retarget(source, made_up_table(load_bundle(source).space), out, steps=30)
    return out, told


def test_answers_keep_milliseconds_and_flops_are_answered_as_before(source, made):
    before, bundle = load_bundle(source), load_bundle(made[0])
    ms = bundle.costs["latency_ms"]
    low, high = ms.cost.value(ms.min), ms.cost.value(ms.cost.max)
    for budget in np.random.default_rng(0).uniform(low, 1.1 * high, 300):
        arch = ms.answer(budget)
        assert ms.cost.value(ms.cost.of(arch)) <= budget
    assert ms.answer(high) == bundle.space.largest
    flops = [bundle.space.flops(arch) for arch in ms.archs()]
    assert flops == sorted(flops)  # more time never buys a smaller subnet
    assert flops[0] >= before.min_flops
    with pytest.raises(ValueError, match="below the cheapest subnet"):
        ms.answer(0.99 * low)
    for budget in np.linspace(before.min_flops, before.max_flops, 40):
        assert bundle.answer(budget) == before.answer(budget)
    assert bundle.version != before.version
    assert "latency_ms" in bundle.provenance


def test_a_budget_of_what_an_answer_costs_is_answered_by_it():
    """However a cost in nanoseconds is rounded as a float. What is below the least is refused."""
    space = get_space("nano-cnn")
    made_up = made_up_table(space)
    for fixed in (0.125014, 0.125015, 0.125016, 0.125017):  # int(0.125014 * 1e6) is 125013
        table = replace(made_up, fixed=fixed)
        known = cost_answers(space, table, [space.smallest, space.largest])
        for whole, arch in known.answers:
            assert known.answer(known.cost.value(whole)) == arch
        assert known.answer(math.inf) == space.largest
        least = known.cost.value(known.min)
        assert known.cost.written(known.min) == f"{least} ms"
        with pytest.raises(ValueError, match=f"of {least - 1e-9:.15g} ms is .* at {least} ms"):
            known.answer(least - 1e-9)


def test_without_images_the_answers_that_a_bundle_stores_stay(source, made):
    before, bundle = load_bundle(source), load_bundle(made[0])
    assert set(bundle.costs["latency_ms"].archs()) <= set(before.archs())
    assert made[1]["of_the_generator"] == 0
    assert made[1]["steps"] == 0, "no generator learns what nobody asks of it"


def test_a_bundle_that_stores_no_answers_takes_the_generators(tmp_path):
    vit = make_bundle("nano-vit", tmp_path / "vit")
    document = json.loads((vit / "bundle.json").read_text()) | {"answers": []}
    document["version"] = version_of(document)
    (vit / "bundle.json").write_text(json.dumps(document))
    table = made_up_table(load_bundle(vit).space)
    told = retarget(vit, table, tmp_path / "out", steps=20)
    assert told["of_the_generator"] > 10
    ms = load_bundle(tmp_path / "out").costs["latency_ms"]
    costs = [whole for whole, _ in ms.answers]
    assert costs == sorted(set(costs))


def test_with_images_statistics_are_measured(source, tmp_path):
    photos = write_photos(tmp_path / "photos", 32)
    table = made_up_table(load_bundle(source).space)
    told = retarget(source, table, tmp_path / "out", data=photos, steps=5)
    assert told["images"] == 32
    bundle = load_bundle(tmp_path / "out")
    assert all(bundle.arch_statistics(a) for a in bundle.costs["latency_ms"].archs())


def test_archs_that_nobody_trained_are_not_tried(tmp_path):
    bundle = make_bundle("nano-cnn", tmp_path / "bundle")
    space = load_bundle(bundle).space
    say_trained_alone(bundle, space.smallest)
    table, photos = made_up_table(space), write_photos(tmp_path / "photos", 32)
    with pytest.raises(ValueError, match=r"did not train \(it trained 1 alone\): leave out --data"):
        retarget(bundle, table, tmp_path / "out", data=photos, steps=5)
    assert retarget(bundle, table, tmp_path / "out")["of_the_generator"] == 0


def test_the_command_and_what_it_refuses(source, tmp_path, capsys):
    table = tmp_path / "table.json"
    space = load_bundle(source).space
    table.write_text(json.dumps(made_up_table(space).to_json()))
    out, another = str(tmp_path / "out"), str(tmp_path / "other.json")

    def refused(*words):
        assert main([str(word) for word in words]) == 2
        return capsys.readouterr().err

    assert "models retarget" in refused("generate", source, "--ms", "1")
    (tmp_path / "other.json").write_text(
        json.dumps(
            made_up_table(space).to_json() | {"space": {"name": "cifar-cnn", "num_classes": 2}}
        )
    )
    assert "of cifar-cnn" in refused("retarget", source, "--table", another, "--out", out)
    assert "exists" in refused("retarget", source, "--table", table, "--out", tmp_path)


@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "0", "-1", "many"])
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (models.__main__, ["generate", "bundle", "--ms"]),
        (models.__main__, ["measure", "bundle", "--out", "table", "--minutes"]),
        (trainer.run, ["--hours"]),
    ],
)
def test_numbers_that_are_not_above_0_are_refused_by_their_option(command, words, text, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main([*words, text])
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {words[-1]}: {text!r} is not a number above 0" in last


def test_answers_that_were_changed_are_refused(made, tmp_path):
    broken = tmp_path / "bundle"
    shutil.copytree(made[0], broken)
    file = broken / "latency_ms.cost.json"
    file.write_text(file.read_text().replace("latency_ms", "latency_MS"))
    with pytest.raises(ValueError, match="it was changed"):
        load_bundle(broken)
    file.unlink()
    with pytest.raises(ValueError, match=r"latency_ms.cost.json is missing"):
        load_bundle(broken)
