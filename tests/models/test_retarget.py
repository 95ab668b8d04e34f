"""Bundles that also answer budgets of a measured cost."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from models.__main__ import main
from models.bundle.folder import load_bundle
from models.retarget import estimated_statistics, retarget
from tests.bundles import make_bundle
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
    used = []
    for budget in np.random.default_rng(0).uniform(low, 1.1 * high, 300):
        arch = ms.answer(budget)
        assert ms.cost.value(ms.cost.of(arch)) <= budget
        used.append(min(ms.cost.value(ms.cost.of(arch)) / min(budget, high), 1))
    assert np.mean(used) > 0.9
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


def test_every_answer_can_be_built(made):
    out, told = made
    bundle = load_bundle(out)
    assert "estimated for" in told["statistics"]
    for arch in bundle.costs["latency_ms"].archs():
        assert all(np.isfinite(w).all() for w in bundle.subnet_weights(arch).values())


def test_statistics_that_follow_choices_are_estimated(source):
    """Means and logarithms that are linear in the choices before a norm; one arch was left out."""
    bundle = load_bundle(source)
    space, rng = bundle.space, np.random.default_rng(0)
    slopes = {
        norm.name: rng.normal(0, 0.3, (2, len(space.decisions), norm.size(space.largest)))
        for norm in space.norms
    }

    def statistics(arch):
        found = {}
        for norm in space.norms:
            if norm.block is not None and not norm.block.present(arch):
                continue
            names = set(space.weight[f"{norm.conv}.weight"].decisions)
            last = max(i for i, d in enumerate(space.decisions) if d.name in names)
            chosen = space.indices(arch).astype(float)
            chosen[last + 1 :] = 0
            mean, log = np.einsum("d,pdc->pc", chosen, slopes[norm.name])
            found[norm.name] = mean[: norm.size(arch)], np.exp(log)[: norm.size(arch)]
        return found

    archs = [space.random_arch(rng) for _ in range(400)]
    known = {arch: statistics(arch) for arch in archs}
    fake = SimpleNamespace(space=space, archs=lambda: archs, arch_statistics=known.__getitem__)
    unseen = next(a for a in (space.random_arch(rng) for _ in range(100)) if a not in known)
    for name, (mean, variance) in estimated_statistics(fake, unseen).items():
        wanted = statistics(unseen)[name]
        np.testing.assert_allclose(mean, wanted[0], atol=0.1)
        np.testing.assert_allclose(variance, wanted[1], rtol=0.15)


def test_with_images_statistics_are_measured(source, tmp_path):
    photos = write_photos(tmp_path / "photos", 32)
    table = made_up_table(load_bundle(source).space)
    told = retarget(source, table, tmp_path / "out", data=photos, steps=5)
    assert "on 32 images" in told["statistics"]
    bundle = load_bundle(tmp_path / "out")
    assert all(bundle.arch_statistics(a) for a in bundle.costs["latency_ms"].archs())


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
